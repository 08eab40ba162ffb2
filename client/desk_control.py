"""What an engineer may ask of a site's service, and the answers.

The five questions of `common/control.proto` as Python types. `DeskControl` answers them
from the site's desk and from what the service is doing; the way the questions travel
(`client.control`, `client.control_calls`) knows only the Protocol.
"""

import os
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from client import desk
from client.activity import Activity, last_activity, work_of
from client.desk_file import PLANS, PauseNote, PlanEntry, read_desk
from common.errors import StoreError


class Status(BaseModel):
    """What a site is doing, and what waits for the engineer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    """Of the FedCT that answers."""
    pid: int | None = None
    """Process of the resident service; unset when none runs."""
    started: datetime | None = None
    """When it started, UTC."""
    activity: Activity | None = None
    """What it is doing; of a service that is gone: what it last did."""
    pause: PauseNote | None = None
    """Unset unless the site is paused."""
    approved: int = 0
    """Plans that are approved."""
    waiting: int = 0
    """Plans that wait for the engineer."""
    denied: int = 0
    """Plans that are denied."""


class PlanView(PlanEntry):
    """A plan with its text."""

    toml: str
    """The effective plan, without `[simulation]`."""


class PauseDone(BaseModel):
    """What a request to pause led to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pause: PauseNote
    """The pause."""
    cancelled: bool
    """Whether an order at work was told to stop."""


class Control(Protocol):
    """What answers an engineer."""

    def status(self) -> Status:
        """What the site is doing."""

    def plans(self) -> tuple[PlanView, ...]:
        """Every plan that was queued here."""

    def decide(self, digest: str, *, approve: bool) -> PlanView:
        """Approve or deny a plan by its digest or the beginning of it."""

    def pause(self, reason: str, *, now: bool) -> PauseDone:
        """Take no further orders; `now` cancels the one at work."""

    def resume(self) -> bool:
        """Take orders again; whether the site was paused."""


class DeskControl:
    """`Control` over a site's folder, in the process of its resident service."""

    def __init__(self, folder: Path) -> None:
        """Answer for the service of this folder, started now."""
        self._folder = folder
        self._started = datetime.now(UTC)

    def status(self) -> Status:
        """What the service is doing."""
        return status_on_disk(self._folder).model_copy(
            update={
                "pid": os.getpid(),
                "started": self._started,
                "activity": work_of(self._folder).now,
            }
        )

    def plans(self) -> tuple[PlanView, ...]:
        """Every plan with its text, in the order in which they came."""
        return tuple(self._view(entry) for entry in read_desk(self._folder).plans)

    def decide(self, digest: str, *, approve: bool) -> PlanView:
        """Approve or deny; holds from the moment this returns."""
        state = desk.decide(self._folder, digest, "approved" if approve else "denied")
        return self._view(state)

    def pause(self, reason: str, *, now: bool) -> PauseDone:
        """Pause first, then cancel, so that no order slips in between."""
        note = desk.pause(self._folder, reason)
        return PauseDone(pause=note, cancelled=now and work_of(self._folder).cancel())

    def resume(self) -> bool:
        """Take orders again."""
        return desk.resume(self._folder)

    def _view(self, entry: PlanEntry) -> PlanView:
        try:
            text = (self._folder / PLANS / f"{entry.digest}.toml").read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(
                f"site can't read the text of plan {entry.digest[:12]} "
                f"({type(error).__name__}), expected it in {PLANS}, in UTF-8; put it "
                "back from a backup"
            ) from error
        return PlanView(**entry.model_dump(), toml=text)


def status_on_disk(folder: Path) -> Status:
    """What a site's folder says by itself, whether or not a service runs."""
    known = read_desk(folder)
    states = [entry.state for entry in known.plans]
    return Status(
        version=version("fedct"),
        activity=last_activity(folder),
        pause=known.pause,
        approved=states.count("approved"),
        waiting=states.count("waiting"),
        denied=states.count("denied"),
    )
