"""`orders.jsonl`: one line for every order that was served, and what left with it.

Each line holds the hash of the line before and its own, so that a line which was
changed, taken out, put in or moved shows. A line is on the disk before the answer
leaves. What a power failure cut in mid-line belongs to an answer that never left; the
next line says how many such bytes it replaced.

Not covered here: somebody who may write the file and works out every hash after his
change anew, and lines taken off the end. Against both, note the last hash elsewhere.
"""

import fcntl
import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from client.private_files import FILE_MODE, sync_folder
from common.errors import StoreError

ORDERS = "orders.jsonl"
FIRST = "0" * 64
"""What stands for the hash before the first line."""
_LINE_BYTES = 4096
"""Longer than any line."""

Kind = Literal["hello", "train", "judge"]
Short = Annotated[str, BeforeValidator(lambda text: text[:64])]
"""A word of a server's, cut after 64 characters."""


class Served(BaseModel):
    """One order, and what was answered; without what chains it to the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    """What was asked."""
    run: Short
    """Id of the run."""
    round: int | None
    """Its round; unset for an introduction."""
    plan: Short
    """Digest of the plan that the order named."""
    code: int
    """0, or the exit code of the error that was answered."""
    bytes_in: int
    """Of the order's arrays."""
    bytes_out: int
    """Of the answer's arrays."""
    sha256: str | None
    """Of what left; unset when nothing but the code did."""


class Line(Served):
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
class Log:
    """The lines of a file, as far as they hold together."""

    lines: tuple[Line, ...]
    """In order; up to the first broken one."""
    broken: str | None
    """What is wrong with which line; unset when nothing is."""


def record_order(folder: Path, served: Served) -> Line:
    """Append one line, durably.

    Raises:
        StoreError: It can't be written, or the line before is broken. The answer must
            not leave then.
    """
    path = folder / ORDERS
    try:
        fresh = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            line = _append(descriptor, served)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"site can't write {ORDERS} ({error.strerror}), expected a disk with room; "
            "nothing was sent"
        ) from error
    return line


def read_orders(folder: Path) -> Log:
    """Every line, and whether the chain holds. A line being written now is left out.

    Raises:
        StoreError: The file can't be read.
    """
    try:
        content = (folder / ORDERS).read_bytes()
    except FileNotFoundError:
        return Log((), None)
    except OSError as error:
        raise StoreError(
            f"site can't read {ORDERS} ({error.strerror}), expected a file of its own "
            "user"
        ) from error
    lines: list[Line] = []
    before = FIRST
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        line = _parse(text)
        if line is None or line.number != number:
            return Log(tuple(lines), f"line {number} is not the line that was written")
        if line.before != before:
            return Log(tuple(lines), f"line {number} does not follow the one before")
        lines.append(line)
        before = line.hash
    return Log(tuple(lines), None)


def _append(descriptor: int, served: Served) -> Line:
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, 2 * _LINE_BYTES, max(0, size - 2 * _LINE_BYTES))
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    whole = tail[: len(tail) - torn].splitlines()
    last = _parse(whole[-1]) if whole else None
    if last is None and (whole or size > torn):
        raise StoreError(
            f"site found a broken last line in {ORDERS}, expected what it wrote; keep "
            "the file, find out who changed it, and move it away to go on"
        )
    line = _sealed(
        Line(
            **served.model_dump(),
            number=1 if last is None else last.number + 1,
            time=datetime.now(UTC),
            torn_bytes=torn,
            before=FIRST if last is None else last.hash,
            hash="",
        )
    )
    os.ftruncate(descriptor, size - torn)
    content = line.model_dump_json().encode() + b"\n"
    if os.pwrite(descriptor, content, size - torn) != len(content):
        raise OSError(28, "no room for a whole line")
    return line


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
