"""What people see while a run works: a live line on a terminal, log lines elsewhere.

The road itself only logs events (a verb and its numbers, in the record's extras) and
knows nothing of terminals. This handler turns the events into words.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from server.record import RoundRecord, SiteRound

log = logging.getLogger("fedct.run")

_STEP_EVERY_S = 0.2
_LINE_EVERY_S = 2.0
"""How often a log line says how far the work is where there is no terminal."""


class ProgressHandler(logging.Handler):
    """Turns events of `fedct.*` loggers into a live bar or into lines."""

    def __init__(self, console: Console) -> None:
        """Write to a console; live if it is a terminal."""
        super().__init__(logging.DEBUG)
        self._console = console
        self._live = console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}", markup=False),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._task = self._bar.add_task("", total=None, now="", visible=False)
        self._monitor = ""
        self._rounds = 0
        self._stepped = 0.0
        self._said = time.monotonic()

    def start(self) -> None:
        """Begin to draw."""
        self._bar.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Show one event."""
        extra = record.__dict__
        show = getattr(self, "_on_" + record.msg.replace(" ", "_"), None)
        if show is not None:
            show(extra)
        elif record.levelno >= logging.WARNING:
            details = [
                str(extra[key]) for key in ("arm", "site", "why") if key in extra
            ]
            self._warn(record.getMessage(), ", ".join(details))

    def _on_phantom(self, extra: dict[str, object]) -> None:
        done, total = extra["done"], extra["total"]
        self._now(f"phantom {extra['hospital']} {done}/{total}")
        if done == total:
            self._say(f"phantom hospital {extra['hospital']}: {total} patients written")

    def _on_work(self, extra: dict[str, object]) -> None:
        done, total = int(str(extra["done"])), int(str(extra["total"]))
        now = str(extra["what"])
        self._bar.update(self._task, completed=done, total=total, now=now, visible=True)
        if not self._live and time.monotonic() - self._said > _LINE_EVERY_S:
            self._say(f"{now} {done}/{total}")

    def _on_intake(self, extra: dict[str, object]) -> None:
        self._now(f"intake of {extra['site']}")

    def _on_taken_in(self, extra: dict[str, object]) -> None:
        counted = f"{extra['accepted']} of {extra['found']} accepted"
        self._say(f"intake {extra['site']}: {counted}")

    def _on_arm(self, extra: dict[str, object]) -> None:
        self._monitor = str(extra["monitor"])
        self._rounds = int(str(extra["rounds"]))
        done = int(str(extra["done"]))
        if done:
            self._say(f"{extra['arm']}: resumed after round {done}")
        self._bar.reset(self._task)
        self._bar.update(
            self._task,
            description=str(extra["arm"]),
            total=self._rounds,
            completed=done,
            visible=True,
        )

    def _on_step(self, extra: dict[str, object]) -> None:
        if time.monotonic() - self._stepped > _STEP_EVERY_S:
            self._stepped = time.monotonic()
            self._now(f"{extra['site']} step {extra['done']}/{extra['steps']}")

    def _on_reply(self, extra: dict[str, object]) -> None:
        row = extra["row"]
        assert isinstance(row, SiteRound)
        if row.outcome != "accepted":
            self._warn(f"round {extra['round']}: {row.site} {row.outcome}", row.reason)

    def _on_round(self, extra: dict[str, object]) -> None:
        record = extra["record"]
        assert isinstance(record, RoundRecord)
        accepted = sum(row.outcome == "accepted" for row in record.sites)
        value = record.validation_mean.get(self._monitor)
        score = "" if value is None else f", {self._monitor} {value:.3f}"
        self._bar.update(self._task, completed=record.number)
        self._now(f"{record.outcome}{score}")
        if not self._live:
            self._say(
                f"{extra['arm']} round {record.number}/{self._rounds} "
                f"{record.outcome}: {accepted}/{len(record.sites)} sites{score}, "
                f"{record.seconds:.1f} s"
            )

    def _now(self, words: str) -> None:
        self._bar.update(self._task, now=words, visible=True)

    def _warn(self, what: str, why: str) -> None:
        self._say(Text.assemble((what, "yellow"), " ", why))

    def _say(self, words: str | Text) -> None:
        self._said = time.monotonic()
        # One event, one line: nothing is wrapped, no bracket is taken for a style.
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)


def tell_phantom(hospital: str, done: int, total: int) -> None:
    """Log that a phantom patient was written."""
    log.info("phantom", extra={"hospital": hospital, "done": done, "total": total})


def tell_work(what: str, done: int, total: int) -> None:
    """Log how far a piece of work is."""
    log.debug("work", extra={"what": what, "done": done, "total": total})


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the events of everything inside the block, on standard error."""
    handler = ProgressHandler(Console(file=sys.stderr))
    logger = logging.getLogger("fedct")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    handler.start()
    try:
        yield
    finally:
        handler.stop()
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
