"""The desk of a hospital's engineer: which plans are approved, and whether to pause.

Everything that a person at the hospital decides lies in one file, `desk/desk.json`,
which is replaced as a whole; the plans themselves lie beside it as `plans/DIGEST.toml`.
So a decision holds from the moment it is on the disk, through crashes and restarts, and
can be read without a running service. A desk that can't be read approves nothing.

Plans come from the server and are believed in nothing: they are bounded, parsed, and
written anew from what was understood; the digest is ours.

Not covered here: who may decide. That is whoever can write in the site's folder.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.policy import Policy, check_listed
from client.private_files import FILE_MODE, FOLDER_MODE, write_private
from common.errors import PolicyError, StoreError, UsageError
from common.exchange import RUN_ID
from common.plan import Plan
from common.plan_file import load_plan, parse_plan, plan_toml

DESK = "desk"
PLANS = "plans"
MOST_WAITING = 16
"""Plans that may wait at a time; bounds what a server can put on the disk."""
LARGEST_PLAN = 256 << 10
"""Bytes of a plan's text; the largest one written so far has 6 kB."""
SHORTEST_PREFIX = 8
"""Fewest digits of a digest by which a person may name a plan."""
_DIGITS = re.compile(rf"[0-9a-f]{{{SHORTEST_PREFIX},64}}")

PlanState = Literal["waiting", "approved", "denied"]


class PlanEntry(BaseModel):
    """One plan that a server asked for, and what became of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    """Canonical hash of the plan."""
    state: PlanState
    """What the hospital says of it."""
    first_seen: datetime
    """When it was first asked for, UTC."""
    run: str
    """Id of the run that first asked."""
    decided: datetime | None = None
    """When it was last approved or denied; unset while it waits."""


class PauseNote(BaseModel):
    """Why no orders are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: datetime
    """When the pause began, UTC."""
    reason: str
    """For the engineers who come after; never leaves the site."""


class Desk(BaseModel):
    """The content of `desk.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    """Of the format."""
    plans: tuple[PlanEntry, ...] = ()
    """In the order in which they were first seen."""
    pause: PauseNote | None = None
    """Unset unless the site is paused."""


def read_desk(folder: Path) -> Desk:
    """What was decided in a site's folder so far; empty for a new one.

    Raises:
        StoreError: The file is damaged or can't be read; nothing is approved then.
    """
    try:
        return Desk.model_validate_json((folder / DESK / "desk.json").read_bytes())
    except FileNotFoundError:
        return Desk()
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"site found a desk.json that can't be read ({type(error).__name__}), "
            "expected what FedCT wrote; put it back from a backup, or remove it and "
            "approve the plans again"
        ) from error


# --- what the resident service asks -------------------------------------------------


def queue_plan(
    folder: Path, plan_text: str, run: str, policy: Policy | None = None
) -> PlanEntry:
    """Put a plan before the engineer, unless it was there before.

    Args:
        folder: The site's folder.
        plan_text: The plan as TOML, from a server.
        run: Id of the run that wants it.
        policy: The hospital's; it may approve what it has not denied, or take no plan
            but those it lists. Unset: the engineer is asked.

    Returns:
        Its entry, decided or not.

    Raises:
        PlanError: It is not a valid plan.
        PolicyError: It is far too long, too many plans wait, the run has no name, or
            the policy does not list it.
    """
    if len(plan_text.encode("utf-8", "replace")) > LARGEST_PLAN:
        raise PolicyError(
            f"site was sent a plan of more than {LARGEST_PLAN} bytes, expected a plan",
            code="queue",
        )
    if not RUN_ID.fullmatch(run):
        raise PolicyError(
            "site was sent a plan by a run whose id is no plain name, expected up to "
            "64 letters, digits, dots, hyphens and underscores",
            code="queue",
        )
    plan, policy = parse_plan(plan_text), policy or Policy()
    check_listed(policy, plan)
    with _editing(folder):
        desk = read_desk(folder)
        entry = _entry(desk, plan.digest)
        if entry is None:
            if sum(known.state == "waiting" for known in desk.plans) >= MOST_WAITING:
                raise PolicyError(
                    f"site has {MOST_WAITING} plans waiting already; the hospital's "
                    "engineer has to approve or deny some first",
                    code="queue",
                )
            _write_plan(folder, plan)
            seen = datetime.now(UTC)
            entry = PlanEntry(
                digest=plan.digest, state="waiting", first_seen=seen, run=run
            )
            desk = desk.model_copy(update={"plans": (*desk.plans, entry)})
            _write_desk(folder, desk)
        auto = policy.approve == "auto" or plan.digest in policy.plans
        if auto and entry.state == "waiting":
            entry = _decided(folder, desk, entry, "approved")
    return entry


def is_approved(folder: Path, digest: str) -> bool:
    """Whether the hospital approved the plan of this digest."""
    entry = _entry(read_desk(folder), digest)
    return entry is not None and entry.state == "approved"


def check_approved(folder: Path, digest: str) -> str:
    """Refuse an order whose plan is not approved; say when it was.

    Raises:
        PolicyError: It waits, was denied, or was never seen here.
    """
    entry = _entry(read_desk(folder), digest)
    if entry is None or entry.state != "approved":
        what = "never saw it" if entry is None else f"has it as {entry.state}"
        raise PolicyError(
            f"site got an order for plan {digest[:12]!r}, expected one that the "
            f"hospital approved (it {what}); its engineer decides, with `fedct client "
            "approve`",
            code="approval",
        )
    decided = entry.decided or entry.first_seen
    return f"approved {decided:%Y-%m-%d %H:%M} UTC"


def check_open(folder: Path) -> None:
    """Refuse an order while the site is paused.

    Raises:
        PolicyError: It is paused; the reason stays at the site.
    """
    pause = read_desk(folder).pause
    if pause is not None:
        raise PolicyError(
            f"site is paused by its engineer since {pause.since:%Y-%m-%d %H:%M} UTC; "
            "it takes no orders until it is resumed there",
            code="paused",
        )


def plan_of(folder: Path, digest: str) -> Plan:
    """A plan that was queued here.

    Raises:
        StoreError: There is none, or its file is no longer the plan of this digest.
    """
    if _entry(read_desk(folder), digest) is None:
        raise StoreError(f"site never saw plan {digest[:12]!r}, expected one it knows")
    plan = load_plan(folder / PLANS / f"{digest}.toml")
    if plan.digest != digest:
        raise StoreError(
            f"site has a file for plan {digest[:12]} that is now plan "
            f"{plan.digest[:12]}, expected it as it was queued; put it back from a "
            "backup, or have the plan sent and approved again"
        )
    return plan


# --- what the engineer decides ------------------------------------------------------


def decide(
    folder: Path, prefix: str, state: Literal["approved", "denied"]
) -> PlanEntry:
    """Approve or deny a plan; denying an approved one takes the approval back.

    Args:
        folder: The site's folder.
        prefix: Its digest, or the first digits of it, if they are unique.
        state: What it shall be.

    Raises:
        UsageError: No plan, or more than one, has such a digest.
        StoreError: The plan's file is not what was queued; nothing was decided.
    """
    with _editing(folder):
        desk = read_desk(folder)
        entry = _named(desk, prefix.strip().lower())
        plan_of(folder, entry.digest)  # what is decided on is what was queued
        return _decided(folder, desk, entry, state)


def pause(folder: Path, reason: str) -> PauseNote:
    """Take no further orders, from now on and after a restart."""
    with _editing(folder):
        desk = read_desk(folder)
        since = datetime.now(UTC) if desk.pause is None else desk.pause.since
        note = PauseNote(since=since, reason=reason)
        _write_desk(folder, desk.model_copy(update={"pause": note}))
    return note


def resume(folder: Path) -> bool:
    """Take orders again; whether the site was paused."""
    with _editing(folder):
        desk = read_desk(folder)
        if desk.pause is not None:
            _write_desk(folder, desk.model_copy(update={"pause": None}))
    return desk.pause is not None


# --- files --------------------------------------------------------------------------


@contextmanager
def _editing(folder: Path) -> Iterator[None]:
    """One writer at a time, be it a thread or a process."""
    try:
        (folder / DESK).mkdir(mode=FOLDER_MODE, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(folder / DESK / "desk.lock", flags, FILE_MODE)
    except OSError as error:
        raise _unwritable(error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        os.close(descriptor)


def _unwritable(error: OSError) -> StoreError:
    return StoreError(
        f"site can't keep a decision ({error.strerror}), expected a folder that its "
        "user may write to, on a disk with room; nothing was changed"
    )


def _write_desk(folder: Path, desk: Desk) -> None:
    content = desk.model_dump_json(indent=1).encode()
    write_private(folder / DESK / "desk.json", content)


def _write_plan(folder: Path, plan: Plan) -> None:
    (folder / PLANS).mkdir(mode=FOLDER_MODE, exist_ok=True)
    text = plan_toml(plan, with_simulation=False)
    write_private(folder / PLANS / f"{plan.digest}.toml", text.encode())


def _entry(desk: Desk, digest: str) -> PlanEntry | None:
    return next((entry for entry in desk.plans if entry.digest == digest), None)


def _named(desk: Desk, prefix: str) -> PlanEntry:
    if not _DIGITS.fullmatch(prefix):
        raise UsageError(
            f"plan was named {prefix[:64]!r}, expected its digest, or at least "
            f"{SHORTEST_PREFIX} hexadecimal digits of it"
        )
    found = [entry for entry in desk.plans if entry.digest.startswith(prefix)]
    if len(found) != 1:
        raise UsageError(
            f"plan {prefix!r} names {len(found)} plans, expected one of the "
            f"{len(desk.plans)} that were seen here; `fedct client approve` lists them"
        )
    return found[0]


def _decided(folder: Path, desk: Desk, entry: PlanEntry, state: PlanState) -> PlanEntry:
    changed = entry.model_copy(update={"state": state, "decided": datetime.now(UTC)})
    plans = tuple(changed if known is entry else known for known in desk.plans)
    _write_desk(folder, desk.model_copy(update={"plans": plans}))
    return changed
