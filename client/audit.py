"""`audit.jsonl`: one line for everything that left this hospital, or was refused.

Each line says what left, how large it was, its digest, to whom, and why it was allowed:
under which plan and which policy. It holds the hash of the line before and its own, and
the site's signature under that (Ed25519), so that a line which was changed, taken out,
put in or moved shows, and nobody without the site's key can write the file anew; behind
a line that was altered nothing is written, and so nothing leaves. A line is on the disk
before the answer leaves. What a power failure cut in mid-line belongs to
an answer that never left; the next line says how many such bytes it replaced.

Lines taken off the end show too: `audit.head` beside it holds number and hash of the
last line, and a log that does not reach it was altered. Who changes both files is seen
by others: the hash of an answer's line is in the answer's seal (`common.signing`), so
the hub knows how far the log was, and signs that for whoever asks (`server.witness`).

Not covered here: what the line itself tells (that the site is there, what it has
taken, how long it worked); and who can read the site's key, as root can. He can write
the whole file anew, but not what the hub has seen of it.
"""

import fcntl
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from client.last_line import read_both, read_last, what_is_cut, write_last
from client.private_files import FILE_MODE, sync_folder
from client.site_file import SIGN_KEY
from common.canonical import items
from common.errors import StoreError
from common.keys import read_signing_key
from common.signing import Mark

AUDIT = "audit.jsonl"
HEAD = "audit.head"
"""Beside it: the mark of its last line."""
FIRST = "0" * 64
"""What stands for the hash before the first line."""
_PURPOSE = "fedct audit line"
"""Keeps these signatures apart from all others that the same key makes."""

Kind = Literal["hello", "keys", "shares", "train", "open", "judge", "unknown"]
Short = Annotated[str, BeforeValidator(lambda text: text[:64])]
"""A word of a server's, cut after 64 characters."""


class Left(BaseModel):
    """What was answered to one order; without what chains it to the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    """What was asked; unknown if it was no order."""
    run: Short | None
    """Id of the run."""
    round: int | None
    """Its round; unset for an introduction."""
    plan: Short | None
    """Digest of the plan that the order named."""
    to: str
    """Address of the hub."""
    what: str
    """Kind of the answer, or "error"."""
    code: int
    """0, or the number that was answered (`common.error_numbers`)."""
    bytes_in: int
    """Of the order's arrays."""
    bytes_out: int
    """Of the answer's arrays."""
    digest: str | None
    """`digest_of_answer` of what left; unset when nothing but the number did."""
    policy: str | None
    """Digest of the policy that allowed it (`client.policy`)."""
    allowed: str | None
    """How the plan was approved: "engineer 2026-03-01 12:00 UTC", "listed" or "auto";
    unset for an error."""


class Line(Left):
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
    """SHA-256 of this line's JSON with this key and the next one empty."""
    signature: str
    """Of the site's key over the hash (`statement`), hexadecimal."""


@dataclass(frozen=True)
class Log:
    """The lines of a file, as far as they hold together."""

    lines: tuple[Line, ...]
    """In order; up to the first broken one."""
    broken: str | None
    """What is wrong with which line; unset when nothing is."""

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self.lines[-1].hash if self.lines else FIRST


@dataclass(frozen=True)
class _End:
    """How a file ended when this process last looked."""

    stamp: tuple[int, ...]
    """`_stamp` of the file."""
    line: Line | None
    """Its last whole line."""
    torn_bytes: int
    """Bytes of an unfinished line behind that."""


_ends: dict[Path, _End] = {}
"""Files that this process has checked and written to."""


def record_left(folder: Path, left: Left, key: Ed25519PrivateKey) -> Line:
    """Append one line, signed and durably.

    The first time in a process, and whenever somebody else wrote to the file, all lines
    are checked.

    Raises:
        StoreError: It can't be written, or a line was altered. The answer must not
            leave then. `code` is "audit".
    """
    path = folder / AUDIT
    try:
        fresh = not path.exists()
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(path, flags, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            end = _end_of(path, descriptor, key.public_key())
            if end.line is None:
                write_last(folder / HEAD, Mark(0, FIRST))
            line = _append(descriptor, end, left, key)
            os.fsync(descriptor)
            write_last(folder / HEAD, Mark(line.number, line.hash))
            _ends[path] = _End(_stamp(descriptor), line, torn_bytes=0)
        finally:
            os.close(descriptor)
        if fresh:
            sync_folder(folder)
    except OSError as error:
        raise StoreError(
            f"site can't write {AUDIT} ({error.strerror}), expected a disk with room; "
            "nothing was sent",
            code="audit",
        ) from error
    return line


def check_log(folder: Path) -> None:
    """See that what is begun can be written down; all lines as in `record_left`.

    Raises:
        StoreError: A line was altered, or can't be read. `code` is "audit".
        JoinError: The site's key can't be read.
    """
    path = folder / AUDIT
    try:
        if not path.exists():
            return _refuse(_broken(Log((), None), read_last(folder / HEAD)))
        key = read_signing_key(folder / SIGN_KEY).public_key()
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            _ends[path] = _end_of(path, file.fileno(), key)
    except OSError as error:
        raise _unreadable(AUDIT, error) from error


def read_log(path: Path, key: Ed25519PublicKey) -> Log:
    """Every line, and whether the chain holds. A line being written now is left out.

    Args:
        path: The file, or a copy of it.
        key: The site's.

    Raises:
        StoreError: The file can't be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path.name, error) from error
    return _checked(content, key)


def _checked(content: bytes, key: Ed25519PublicKey) -> Log:
    """The whole lines, and whether the chain holds."""
    lines: list[Line] = []
    before = FIRST
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        line = _parse(text)
        if line is None or line.number != number:
            return Log(tuple(lines), f"line {number} is not the line that was written")
        if line.before != before:
            return Log(tuple(lines), f"line {number} does not follow the one before")
        if not _is_signed(line, key):
            return Log(tuple(lines), f"line {number} is not signed by the site's key")
        lines.append(line)
        before = line.hash
    return Log(tuple(lines), None)


def read_audit(folder: Path) -> Log:
    """The log of a site's own folder, checked by its own key.

    Raises:
        StoreError: The file can't be read.
        JoinError: The key can't.
    """
    try:
        content, last = read_both(folder / AUDIT, folder / HEAD)
    except OSError as error:
        raise _unreadable(Path(error.filename or AUDIT).name, error) from error
    log = Log((), None)
    if content:
        log = _checked(content, read_signing_key(folder / SIGN_KEY).public_key())
    return replace(log, broken=_broken(log, last))


def _unreadable(name: str, error: OSError) -> StoreError:
    why, wanted = error.strerror, "expected a file that this user may read"
    return StoreError(f"{name} can't be read ({why}), {wanted}", code="audit")


def missing(log: Log, marks: Sequence[Mark]) -> str | None:
    """What of a log that others have seen is not in it any more; none, if all is.

    Args:
        log: Whose chain holds.
        marks: What was seen, in any order.
    """
    for mark in sorted(marks, key=lambda mark: mark.number):
        if mark.number > len(log.lines):
            return (
                f"it ends with line {len(log.lines)}, but the hub has seen line "
                f"{mark.number}: lines were cut off"
            )
        if log.lines[mark.number - 1].hash != mark.hash:
            return f"line {mark.number} is not the one that the hub has seen"
    return None


def statement(line_hash: str) -> bytes:
    """What is signed for a line."""
    return items({"purpose": _PURPOSE, "hash": line_hash})


def _end_of(path: Path, descriptor: int, key: Ed25519PublicKey) -> _End:
    """How the file ends, if all of it is as it was written."""
    stamp, end = _stamp(descriptor), _ends.get(path)
    if end is not None and end.stamp == stamp:
        return end
    content, last = path.read_bytes(), read_last(path.parent / HEAD)
    log = _checked(content, key)
    _refuse(_broken(log, last))
    torn = len(content) - (content.rfind(b"\n") + 1)
    return _End(stamp, log.lines[-1] if log.lines else None, torn)


def _refuse(broken: str | None) -> None:
    if broken is not None:
        raise StoreError(
            f"site found an {AUDIT} that was altered: {broken}, expected its own; "
            f"keep it, find out who changed it, and move it and {HEAD} away to go on",
            code="audit",
        )


def _broken(log: Log, last: Mark | None) -> str | None:
    hashes = [line.hash for line in log.lines]
    return log.broken or what_is_cut(hashes, last, HEAD, FIRST)


def _stamp(descriptor: int) -> tuple[int, ...]:
    """What is another as soon as anybody else writes to the file."""
    now = os.fstat(descriptor)
    return now.st_dev, now.st_ino, now.st_size, now.st_ctime_ns


def _append(descriptor: int, end: _End, left: Left, key: Ed25519PrivateKey) -> Line:
    last, size = end.line, os.fstat(descriptor).st_size
    line = _hashed(
        Line(
            **left.model_dump(),
            number=1 if last is None else last.number + 1,
            time=datetime.now(UTC),
            torn_bytes=end.torn_bytes,
            before=FIRST if last is None else last.hash,
            hash="",
            signature="",
        )
    )
    signature = key.sign(statement(line.hash)).hex()
    line = line.model_copy(update={"signature": signature})
    begin = size - end.torn_bytes
    os.ftruncate(descriptor, begin)
    content = line.model_dump_json().encode() + b"\n"
    if os.pwrite(descriptor, content, begin) != len(content):
        raise OSError(28, "no room for a whole line")
    return line


def _hashed(line: Line) -> Line:
    blank = line.model_copy(update={"hash": "", "signature": ""})
    digest = hashlib.sha256(blank.model_dump_json().encode()).hexdigest()
    return line.model_copy(update={"hash": digest})


def _is_signed(line: Line, key: Ed25519PublicKey) -> bool:
    try:
        key.verify(bytes.fromhex(line.signature), statement(line.hash))
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse(text: bytes) -> Line | None:
    """The line, if it is byte for byte what was written."""
    try:
        line = Line.model_validate_json(text)
    except ValidationError:
        return None
    same = line.model_dump_json().encode() == text and _hashed(line) == line
    return line if same else None
