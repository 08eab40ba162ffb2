"""The file behind a hospital's desk: what its engineer decided, replaced as a whole.

Everything lies in one file, `desk/desk.json`; the plans themselves lie beside it as
`plans/DIGEST.toml`. A desk that can't be read approves nothing.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.private_files import FILE_MODE, FOLDER_MODE, write_private
from common.errors import StoreError
from common.plan import Plan
from common.plan_file import plan_toml

DESK = "desk"
PLANS = "plans"

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
    sites: dict[str, str] = {}
    """Where there may be masks: who takes part, by verifying key."""
    are_confirmed: bool = False
    """Whether a person approved the plan with these sites; else taken on first use."""
    changed: dict[str, str] = {}
    """Other sites that a hub named since and was refused for."""


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
            `code` is "desk".
    """
    try:
        return Desk.model_validate_json((folder / DESK / "desk.json").read_bytes())
    except FileNotFoundError:
        return Desk()
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"site found a desk.json that can't be read ({type(error).__name__}), "
            "expected what FedCT wrote; put it back from a backup, or remove it and "
            "approve the plans again",
            code="desk",
        ) from error


@contextmanager
def editing(folder: Path) -> Iterator[None]:
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
        "user may write to, on a disk with room; nothing was changed",
        code="desk",
    )


def write_desk(folder: Path, desk: Desk) -> None:
    """Replace what is on the desk; the caller holds it by `editing`."""
    content = desk.model_dump_json(indent=1).encode()
    write_private(folder / DESK / "desk.json", content)


def write_plan(folder: Path, plan: Plan) -> None:
    """Lay a plan beside the desk, written anew from what was understood of it."""
    (folder / PLANS).mkdir(mode=FOLDER_MODE, exist_ok=True)
    text = plan_toml(plan, with_simulation=False)
    write_private(folder / PLANS / f"{plan.digest}.toml", text.encode())
