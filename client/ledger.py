"""`ledger.jsonl`: what this hospital's patients have paid for all training so far.

One line a round, across runs and plans: how often each patient may have been drawn, and
under how much noise. The line is on the disk before the first number of that noise is
drawn, so whatever instant the power fails or the process is killed, the ledger holds at
least what was spent; a round that was paid for and never finished stays paid. All lines
together are composed into one epsilon (`common.accounting`), and an order whose price
is more than what is left of the hospital's budget is refused.

Each line holds the hash of the line before and its own, and the first one that of the
site's verifying key, so that a line which was changed, taken out, put in or moved
shows, and so does another site's ledger. `ledger.head` beside it holds number and hash
of the last line, so that it shows if one of the two files was cut short, put back from
an old backup or taken away. If that was done to both, the audit log shows it: a round
whose update left under a private plan (`client.private_rounds`) has to be in the
ledger. What a power failure cut in mid-line was never drawn for.

Not covered here: somebody who may write in this folder and changes both files, working
out every hash anew, or who takes the audit log away with them, or puts the whole folder
back: he starts anew. Of that, the hub sees the audit log go back (`server.witness`).
Nor are patients whose images are in another store, or who are here under two ids.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.last_line import read_both, read_last, what_is_cut, write_last
from client.private_files import FILE_MODE, sync_folder
from client.private_rounds import private_rounds
from client.site_file import SIGN_KEY
from common.accounting import NoisySteps, check_noise, cost_of
from common.errors import PolicyError, StoreError
from common.keys import read_signing_key
from common.signing import Mark, fingerprint

LEDGER = "ledger.jsonl"
HEAD = "ledger.head"
_ROUND_UP = 1e-9


class Spending(BaseModel):
    """The noisy steps of one round; without what chains it to the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    """Id of the run."""
    plan: str
    """Digest of the plan."""
    round: int
    """Its round; one that is trained anew has a line for each time."""
    rate: Annotated[float, Field(gt=0.0, le=1.0)]
    """Chance of each patient to be drawn for a step."""
    noise_multiplier: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
    """Standard deviation of the noise, in clip norms."""
    steps: Annotated[int, Field(ge=1)]
    """Noisy steps."""
    patients: Annotated[int, Field(ge=1)]
    """Training patients of the round."""


class Line(Spending):
    """A line of the file."""

    number: int
    """From 1."""
    time: datetime
    """By this machine's clock, UTC."""
    torn_bytes: int = 0
    """Bytes of an unfinished line that stood in this one's place."""
    before: str
    """Hash of the line before."""
    hash: str
    """SHA-256 of this line's JSON with this key empty."""


@dataclass(frozen=True)
class Budget:
    """What the hospital lets all runs together cost each patient."""

    epsilon: float | None = None
    """Unset: the ledger is kept, and nothing is refused."""
    delta: float = 1e-5
    """Chance of losing more than epsilon."""


def spend(folder: Path, spending: Spending, budget: Budget) -> tuple[Line, ...]:
    """Pay for a round, durably; its noise may be drawn once this has returned.

    Args:
        folder: The site's folder.
        spending: The round's steps.
        budget: Of the hospital; read anew for every round.

    Returns:
        All lines, the new one last.

    Raises:
        PlanError: Nobody can tell what it costs; nothing was written.
        PolicyError: It would cost more than is left; nothing was written.
        StoreError: The ledger was altered, or can't be written. `code` is "ledger".
        JoinError: The site's key can't be read.
    """
    check_noise(spending.noise_multiplier)
    path, first = folder / LEDGER, first_of(folder)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = path.read_bytes()
            known = _checked(content, read_last(folder / HEAD), first)
            _check_complete(folder, known)
            check_affordable(known, [spending], budget)
            if not known:
                write_last(folder / HEAD, Mark(0, first))
            before = known[-1] if known else None
            line = _append(descriptor, content, before, first, spending)
            os.fsync(descriptor)
            if not known:
                sync_folder(folder)
            write_last(folder / HEAD, Mark(line.number, line.hash))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(
            f"site can't write {LEDGER} ({error.strerror}), expected a disk with room; "
            "nothing was trained",
            code="ledger",
        ) from error
    return (*known, line)


def read_ledger(folder: Path) -> tuple[Line, ...]:
    """Every line; none if nothing was ever spent here.

    Raises:
        StoreError: The ledger was altered, cut short or taken away, or can't be read.
            `code` is "ledger".
        JoinError: The site's key can't be read.
    """
    try:
        content, last = read_both(folder / LEDGER, folder / HEAD)
    except OSError as error:
        raise StoreError(
            f"site can't read {LEDGER} ({error.strerror}), expected a file of its own "
            "user",
            code="ledger",
        ) from error
    lines = _checked(content, last, first_of(folder))
    _check_complete(folder, lines)
    return lines


def first_of(folder: Path) -> str:
    """What stands for the hash before the first line: the hash of the site's key.

    Raises:
        JoinError: The key can't be read.
    """
    return fingerprint(read_signing_key(folder / SIGN_KEY).public_key())


def check_affordable(
    known: Iterable[Spending], wanted: Iterable[Spending], budget: Budget
) -> None:
    """Refuse what would cost more than is left.

    Args:
        known: What was spent.
        wanted: What is to be spent on top.
        budget: Of the hospital.

    Raises:
        PolicyError: The sentence names what is spent and what is left. `code` is
            "budget".
    """
    if budget.epsilon is None:
        return
    known = tuple(known)
    after = epsilon_of((*known, *wanted), budget.delta)
    if after > budget.epsilon * (1.0 + _ROUND_UP):
        spent = epsilon_of(known, budget.delta)
        left = max(0.0, budget.epsilon - spent)
        raise PolicyError(
            f"site's patients have {left:.2f} of epsilon {budget.epsilon:g} left at "
            f"delta {budget.delta:g} ({spent:.2f} is spent), the order would bring "
            f"them to {after:.2f}, expected within the budget (policy.dp_epsilon); "
            "nothing was trained",
            code="budget",
        )


def epsilon_of(spent: Iterable[Spending], delta: float) -> float:
    """What all of it costs together, by the larger of two accountants."""
    return cost_of(map(steps_of, spent), delta).epsilon


def steps_of(spending: Spending) -> NoisySteps:
    """The steps as accountants take them."""
    return NoisySteps(spending.rate, spending.noise_multiplier, spending.steps)


def _append(
    descriptor: int,
    content: bytes,
    last: Line | None,
    first: str,
    spending: Spending,
) -> Line:
    torn = len(content) - (content.rfind(b"\n") + 1)
    line = _sealed(
        Line(
            **spending.model_dump(),
            number=1 if last is None else last.number + 1,
            time=datetime.now(UTC),
            torn_bytes=torn,
            before=first if last is None else last.hash,
            hash="",
        )
    )
    written = line.model_dump_json().encode() + b"\n"
    os.ftruncate(descriptor, len(content) - torn)
    if os.pwrite(descriptor, written, len(content) - torn) != len(written):
        raise OSError(28, "no room for a whole line")
    return line


def _checked(content: bytes, last: Mark | None, first: str) -> tuple[Line, ...]:
    """The whole lines, if they are those that were written."""
    lines: list[Line] = []
    before = first
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        line = _parse(text)
        if line is None or line.number != number:
            raise _altered(f"line {number} is not the line that was written")
        if line.before != before and number == 1:
            raise _altered("it was begun under another site's key")
        if line.before != before:
            raise _altered(f"line {number} does not follow the one before")
        lines.append(line)
        before = line.hash
    if cut := what_is_cut([line.hash for line in lines], last, HEAD, first):
        raise _altered(cut)
    return tuple(lines)


def _check_complete(folder: Path, lines: tuple[Line, ...]) -> None:
    """See that no private round that left by the audit log was never paid for."""
    paid = {(line.run, line.round) for line in lines}
    if unpaid := private_rounds(folder) - paid:
        run, number = min(unpaid)
        raise _altered(
            f"round {number} of run {run!r} has left by the audit log, and is not in it"
        )


def _altered(what: str) -> StoreError:
    return StoreError(
        f"site found a {LEDGER} that was altered: {what}, expected it as it was "
        "written; put both files back as they were last. Without it nobody knows what "
        "the patients have paid, so nothing is trained",
        code="ledger",
    )


def _sealed(line: Line) -> Line:
    blank = line.model_copy(update={"hash": ""})
    digest = hashlib.sha256(blank.model_dump_json().encode()).hexdigest()
    return line.model_copy(update={"hash": digest})


def _parse(text: bytes) -> Line | None:
    """The line, if it is byte for byte what was written."""
    try:
        line = Line.model_validate_json(text)
    except ValidationError:
        return None
    same = line.model_dump_json().encode() == text and _sealed(line) == line
    return line if same else None
