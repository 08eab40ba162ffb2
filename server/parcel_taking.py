"""Taking an answer that was brought back as a file.

It is checked for all that can be checked before the run sees it: whole, by the site
that was asked and with the key it was enrolled with, sealed to this hub, an answer to
an order that is open. Then it is kept in the run's book, still sealed. A refused one
changes nothing.

Not covered here: what the answer says. That is looked at where it is folded.
"""

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.durable import sync_folder
from common.errors import ContributionError
from common.parcel import read_answer
from common.parcel_file import LARGEST_BYTES, peek, refused
from common.signing import public_from_text
from server.parcel_book import (
    PARCELS,
    PostedOrder,
    State,
    answer_path,
    locked,
    order_path,
    reply_key,
    state_of,
)
from server.register import read_register

_LEAVE = "leave it be"
_WHY: dict[State, tuple[str, str, str, str]] = {
    "answered": (
        "replay",
        "answers an order that was answered already",
        "the first answer to it",
        f"that one counts; {_LEAVE}",
    ),
    "ended": (
        "ended",
        "answers an order of a run that has ended",
        "one of a run that goes on",
        _LEAVE,
    ),
    "older": (
        "older",
        "answers an order that a newer one took the place of",
        "an answer to the newest order of this site",
        "bring the site the order that `fedct server status` names",
    ),
}


def take(hub: Path, runs: Path, path: Path, now: datetime) -> tuple[Path, PostedOrder]:
    """Take an answer, or refuse it and change nothing.

    Args:
        hub: The hub's folder.
        runs: Its folder of runs.
        path: The file; it stays where it is.
        now: The hub's clock, UTC.

    Returns:
        The run's folder, and the order that was answered.

    Raises:
        ContributionError: `code` says why in a word: "unknown" (no order of this hub),
            "replay", "older", "late", "ended", or one of `parcel.read_answer`.
    """
    header = peek(path)
    if header.format != "fedct-answer":
        raise refused(
            path,
            "kind",
            "is an order",
            "an answer",
            f"bring it to {header.site!r}, and what comes of it back here",
        )
    entry = next(runs.glob(f"*/{PARCELS}/orders/{header.message_id}.json"), None)
    if entry is None:
        raise refused(
            path,
            "unknown",
            "answers no order of this hub",
            "an answer to an order that it gave",
            "bring it to the hub that gave the order",
        )
    run = entry.parents[2]
    order = PostedOrder.model_validate_json(entry.read_bytes())
    with locked(run):
        _check_wanted(path, run, order, now)
        _keep(path, run, order, site_keys(hub, now))
    order_path(hub, run, order).unlink(missing_ok=True)
    return run, order


def site_keys(hub: Path, now: datetime) -> Mapping[str, Ed25519PublicKey]:
    """Verifying keys of the sites that are let in now."""
    return {
        name: public_from_text(entry.verify_key)
        for name, entry in read_register(hub).latest().items()
        if entry.status(now) == "active"
    }


def _check_wanted(path: Path, run: Path, order: PostedOrder, now: datetime) -> None:
    state = state_of(run, order, now)
    if state == "late":
        raise refused(
            path,
            "late",
            f"was waited for until {order.due_text}",
            "an answer by then",
            "the round closes without it; the site is asked again in the next one",
        )
    if state != "open":
        code, got, want, todo = _WHY[state]
        raise refused(path, code, got, want, todo)


def _keep(
    path: Path, run: Path, order: PostedOrder, keys: Mapping[str, Ed25519PublicKey]
) -> None:
    """Copy, then check the copy, then give it its name."""
    answer = answer_path(run, order)
    answer.parent.mkdir(mode=0o700, exist_ok=True)
    new = answer.parent / "new" / path.name
    shutil.rmtree(new.parent, ignore_errors=True)  # of a process that was killed
    new.parent.mkdir(mode=0o700)
    try:
        if path.stat().st_size > 2 * LARGEST_BYTES:
            raise ContributionError(f"parcel {path.name!r} is too large", code="size")
        shutil.copyfile(path, new)
        new.chmod(0o600)
        read_answer(new, {order.message_id: order.site}, keys, reply_key(run))
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(answer)
        sync_folder(answer.parent)
    finally:
        shutil.rmtree(new.parent, ignore_errors=True)
