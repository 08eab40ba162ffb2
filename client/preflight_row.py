"""A row of the preflight table, and the runner that no check can stop.

Every check runs at once, in a thread of its own with its own time. One that raises or
hangs costs its own row; a thread that hangs dies with the command.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import FedctError

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True)
class Row:
    """What one check found."""

    name: str
    """Of the check."""
    verdict: Verdict
    """WARN: works, or could not be tried; look at it. FAIL: a round would fail."""
    found: str
    """What there is, for people."""
    fix: str | None = None
    """What to do; unset when there is nothing to do."""


@dataclass(frozen=True)
class Check:
    """A question with the time it may take."""

    name: str
    """As the row is called."""
    run: Callable[[], Row]
    """Answers it."""
    timeout_s: float = 20.0
    """After this the row is FAIL."""


def passed(name: str, found: str) -> Row:
    """A row with nothing to do."""
    return Row(name, "PASS", found)


def warned(name: str, found: str, fix: str) -> Row:
    """A row that deserves a look."""
    return Row(name, "WARN", found, fix)


def failed(name: str, found: str, fix: str) -> Row:
    """A row that has to be mended first."""
    return Row(name, "FAIL", found, fix)


def refused(name: str, error: FedctError) -> Row:
    """A row from an error's sentence, whose last part says what to do."""
    found, semicolon, fix = str(error).rpartition("; ")
    if not semicolon:
        return failed(name, fix, "mend that, then check again")
    return failed(name, found, fix)


def run_checks(checks: Sequence[Check]) -> list[Row]:
    """All rows, in the order of the checks."""
    rows: dict[str, Row] = {}

    def run(check: Check) -> None:
        try:
            rows[check.name] = check.run()
        except FedctError as error:
            rows[check.name] = refused(check.name, error)
        except Exception as error:  # a check that breaks is a finding like any other
            found = f"the check itself broke ({type(error).__name__})"
            rows[check.name] = failed(check.name, found, "report it to FedCT's makers")

    started = time.monotonic()
    threads = [threading.Thread(target=run, args=(c,), daemon=True) for c in checks]
    for thread in threads:
        thread.start()
    found = []
    for check, thread in zip(checks, threads, strict=True):
        thread.join(max(0.0, started + check.timeout_s - time.monotonic()))
        late = failed(
            check.name,
            f"no answer within {check.timeout_s:.0f} s",
            "look at what it waits for: a name server, a slow disk, a driver",
        )
        found.append(rows.get(check.name, late))
    return found
