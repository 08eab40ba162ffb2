"""What the resident service is doing at this moment, and how to stop it.

One object per site, shared by the thread that works and those that answer the engineer.
The service asks for each order's `tell`, which training calls after every step: it
notes the step and, once the engineer has asked for it, raises, so that training ends
before anything of the round is remembered. A copy goes to `desk/activity.json`, at most
every half second and without waiting for the disk, for those who ask when no service
runs.

Not covered here: judging. It has no steps, so it is not cut short.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from client.desk import check_open
from client.desk_file import DESK
from client.private_files import FOLDER_MODE, TEMPORARY, create_private
from common.error_numbers import UNFORESEEN, number_of, parts_of
from common.errors import FedctError, StoppedError

EVERY_S = 0.5
"""Seconds between two copies on the disk while training."""

Doing = Literal["starting", "idle", "introducing", "masking", "training", "judging"]
Tell = Callable[[int, int], None]
"""Called with (steps done, steps of the round)."""


class OrderCancelledError(StoppedError):
    """The engineer stopped the order at work; nothing of it was kept."""


class Activity(BaseModel):
    """What a service is doing; the content of `activity.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    doing: Doing
    """In a word."""
    since: datetime
    """When it began with that, UTC."""
    run: str | None = None
    """Id of the run whose order is at work."""
    round: int | None = None
    """Its round; unset for an introduction."""
    plan: str | None = None
    """Digest of its plan."""
    step: int | None = None
    """Steps done; unset unless training."""
    steps: int | None = None
    """Steps of the round."""
    last_error: int | None = None
    """Exit code that the last failed order would have as a command."""
    last_check: int | None = None
    """Number of the check behind that, as the 1 of 53.1; unset where it has none."""
    last_error_at: datetime | None = None
    """When that was, UTC."""


class Work:
    """The activity of one site's service, as long as its process lives."""

    def __init__(self, folder: Path) -> None:
        """Begin as "starting".

        Args:
            folder: The site's folder.
        """
        self._folder = folder
        self._path = folder / DESK / "activity.json"
        self._lock = threading.Lock()
        self._cancelled = False
        self._written_s = -EVERY_S
        self._now = Activity(doing="starting", since=datetime.now(UTC))

    @property
    def now(self) -> Activity:
        """What the service is doing."""
        return self._now

    def ready(self) -> None:
        """Say that the service has started and waits for orders."""
        self._become("idle")

    @contextmanager
    def order(
        self, doing: Doing, run: str, plan: str, number: int | None = None
    ) -> Iterator[Tell]:
        """Work on one order in the body; afterwards the service is idle again.

        Whether the site is paused is looked up after the order counts as begun: an
        engineer who pauses and cancels finds the order in one state or the other.

        Args:
            doing: What the order asks for.
            run: Id of its run.
            plan: Digest of its plan.
            number: Its round.

        Yields:
            What to call after each step. It raises `OrderCancelledError` once the
            engineer has asked for that.

        Raises:
            PolicyError: The site is paused; the body was not entered.
        """
        with self._lock:
            self._cancelled = False
        self._become(doing, run=run, plan=plan, round=number)
        try:
            check_open(self._folder)
            yield self._tell
        except Exception as error:
            number = number_of(error) if isinstance(error, FedctError) else UNFORESEEN
            code, check = parts_of(number)
            failed = {"last_error": code, "last_check": check}
            self._become("idle", **failed, last_error_at=datetime.now(UTC))
            raise
        self._become("idle")

    def cancel(self) -> bool:
        """Stop the order at work at its next step; whether there is one with steps."""
        with self._lock:
            self._cancelled = self._now.doing == "training"
            return self._cancelled

    def _tell(self, step: int, steps: int) -> None:
        with self._lock:
            self._now = self._now.model_copy(update={"step": step, "steps": steps})
            cancelled = self._cancelled
        if cancelled:
            raise OrderCancelledError(
                f"site stopped at step {step} of {steps}, as its engineer asked; "
                "nothing of this round was kept"
            )
        if time.monotonic() - self._written_s >= EVERY_S:
            self._write()

    def _become(self, doing: Doing, **changes: object) -> None:
        with self._lock:
            last = self._now
            self._now = Activity.model_validate(
                {
                    "doing": doing,
                    "since": datetime.now(UTC),
                    "last_error": last.last_error,
                    "last_check": last.last_check,
                    "last_error_at": last.last_error_at,
                    **changes,
                }
            )
        self._write()

    def _write(self) -> None:
        """Keep a copy; a full disk is no reason to stop training."""
        self._written_s = time.monotonic()
        temporary = self._path.with_name(self._path.name + TEMPORARY)
        with suppress(OSError):
            self._path.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with os.fdopen(create_private(temporary), "wb") as file:
                file.write(self._now.model_dump_json(indent=1).encode())
            temporary.replace(self._path)


def work_of(folder: Path) -> Work:
    """The one `Work` of a site's folder in this process."""
    return _work(folder.resolve())


@cache
def _work(folder: Path) -> Work:
    return Work(folder)


def last_activity(folder: Path) -> Activity | None:
    """What the service of a site's folder last wrote down, if anything legible."""
    try:
        content = (folder / DESK / "activity.json").read_bytes()
        return Activity.model_validate_json(content)
    except (OSError, ValidationError):
        return None
