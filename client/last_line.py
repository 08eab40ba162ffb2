"""The mark beside a chained log: number and hash of its last line.

A chain shows what was changed in it, not what was cut off its end. So the mark is
written after each line, and before the first one as number 0: lines without a mark are
lines whose mark was taken away. A line whose mark a power failure kept back is one too
many and no harm.

Not covered here: somebody who changes log and mark alike, or takes both away.
"""

import fcntl
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.private_files import write_private
from common.signing import Mark

_MARK = TypeAdapter(Mark)


def write_last(path: Path, mark: Mark) -> None:
    """Replace the mark, durably.

    Raises:
        OSError: The disk does not take it.
    """
    write_private(path, _MARK.dump_json(mark))


def read_last(path: Path) -> Mark | None:
    """The mark; unset if there is none, number -1 if it is not what was written.

    Raises:
        OSError: It can't be read.
    """
    try:
        return _MARK.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return Mark(-1, "")


def read_both(log: Path, mark: Path) -> tuple[bytes, Mark | None]:
    """A log and its mark, as they are between two lines; an absent log is empty.

    Raises:
        OSError: One can't be read.
    """
    try:
        with log.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # who writes holds it alone
            return file.read(), read_last(mark)
    except FileNotFoundError:
        return b"", read_last(mark)


def what_is_cut(
    hashes: Sequence[str], last: Mark | None, name: str, first: str
) -> str | None:
    """What of a log's end is not as it was; none, if all is.

    Args:
        hashes: Of its lines.
        last: Its mark.
        name: Of the mark's file.
        first: What stands for the hash before the first line.
    """
    if last is None:
        return f"{name} is missing" if hashes else None
    if last.number < 0 or (last.number == 0 and last.hash != first):
        return f"{name} is not what was written"
    if len(hashes) < last.number:
        return f"it ends with line {len(hashes)}, and had {last.number}"
    if (first, *hashes)[last.number] != last.hash:
        return f"line {last.number} is not the one that {name} names"
    return None
