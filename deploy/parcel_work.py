"""One order from a file, worked on at the site, and the answer as a file.

The site's own app does the work, by the same rules as over a live line: approval,
pause, the audit log, the signature. What can't be done is an error here and not an
answer, so that the engineer may mend it and give the same order again; only who asks
for it has the hub told.

An order that was answered is not worked on again. The site keeps the newest answer of
each run, for a memory stick may be lost.

What trains takes seconds to import, and is imported once the file turned out to be an
order that should be worked on.
"""

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Message, RecordDict

from client.install import Membership, read_membership
from client.private_files import make_private_folder, write_private
from client.site import SIGN_KEY
from common.errors import (
    EngineError,
    FedctError,
    JoinError,
    error_from,
)
from common.keys import read_signing_key
from common.parcel import (
    AnswerParcel,
    Failure,
    OrderParcel,
    read_order,
    write_answer,
)

PARCELS = "parcels"
"""Folder of a site: for each run RUN.json, what was answered, and RUN.answer."""


def work_parcel(folder: Path, order: Path, out: Path, *, decline: bool = False) -> str:
    """Work on an order and write the answer.

    Args:
        folder: The site's folder.
        order: The order's file.
        out: The answer's file; replaced.
        decline: Whether the hub is told if the site can't do it.

    Returns:
        What the hub is told, in a sentence.

    Raises:
        ContributionError: The order is not taken; `code` says why in a word.
        FedctError: The site can't work on it; nothing was written.
    """
    now = datetime.now(UTC)
    member, asked = _read(folder, order, now)
    site = member.settings.name
    content, error = _work(folder, asked, member.settings.threads)
    said = f"{site} answers order {asked.number} of run {asked.run}"
    if error is not None:
        if not decline:
            raise _unanswered(error)
        said = f"{site} declines order {asked.number} of run {asked.run}"
    key = read_signing_key(folder / SIGN_KEY)
    answer = AnswerParcel(asked.message_id, site, asked.kind, content)
    kept = folder / PARCELS / f"{asked.run}.answer"
    write_answer(kept, answer, asked.reply_key, key)
    if not isinstance(content, Failure):
        note = json.dumps({"number": asked.number, "at": now.isoformat()})
        write_private(folder / PARCELS / f"{asked.run}.json", note.encode())
    try:
        out.write_bytes(kept.read_bytes())  # a stick may know no rename and no mode
    except OSError as error:
        raise EngineError(
            f"site {site!r} could not write its answer to {out.name!r} "
            f"({error.strerror}), expected room and rights; it is kept as "
            f"{PARCELS}/{kept.name} in the site's folder: copy it from there"
        ) from error
    return said


def _read(folder: Path, path: Path, now: datetime) -> tuple[Membership, OrderParcel]:
    """The site, and an order that it should work on."""
    member = read_membership(folder, now)
    if member.order_key is None:
        raise JoinError(
            "site has a join kit without the key that orders in files are signed by, "
            "expected a kit of the hub's present version; run `fedct client renew`, "
            "let the hub enroll it and install its kit"
        )
    make_private_folder(folder / PARCELS)
    name, answered = member.settings.name, _answered(folder)
    return member, read_order(path, name, member.order_key, answered, now)


def _answered(folder: Path) -> dict[str, int]:
    """Run to the number of its newest order that was answered here."""
    found = {}
    for path in (folder / PARCELS).glob("*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found[path.stem] = int(json.loads(path.read_text())["number"])
    return found


def _work(
    folder: Path, order: OrderParcel, threads: int | None
) -> tuple[RecordDict | Failure, FedctError | None]:
    """What leaves; and, for the engineer alone, why it is only a number."""
    import torch

    from client.app import serve_order
    from deploy.engine import InProcessGrid

    if threads is not None:
        torch.set_num_threads(threads)
    grid = InProcessGrid([folder])
    (node,) = grid.get_node_ids()
    message = Message(order.content, node, order.kind)
    message.metadata.__dict__["_message_id"] = order.message_id
    reply, error = serve_order(folder, message)
    if error is not None:
        return Failure(reply.error.code), error
    return reply.content, None


def _unanswered(error: FedctError) -> FedctError:
    """The error, and what the engineer can do about the order."""
    return error_from(
        error.exit_code,
        f"{error} (no answer was written: mend this and give the order again, or tell "
        "the hub with --decline)",
        EngineError,
    )
