"""The mark beside a chained log: number and hash of its last line.

A chain shows what was changed in it, not what was cut off its end. So the mark is
written after each line, and read before the lines: a line that is written meanwhile, or
whose mark a power failure kept back, is one too many and no harm.

Not covered here: somebody who changes log and mark alike.
"""

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
    """The mark; unset if there is none, number 0 if it is not what was written.

    Raises:
        OSError: It can't be read.
    """
    try:
        return _MARK.validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        return Mark(0, "")


def what_is_cut(hashes: Sequence[str], last: Mark | None, name: str) -> str | None:
    """What of a log's end is not as it was; none, if all is.

    Args:
        hashes: Of its lines.
        last: Its mark.
        name: Of the mark's file.
    """
    if last is None:
        return f"{name} is missing" if len(hashes) > 1 else None
    if last.number < 1:
        return f"{name} is not what was written"
    if len(hashes) < last.number:
        return f"it ends with line {len(hashes)}, and had {last.number}"
    if hashes[last.number - 1] != last.hash:
        return f"line {last.number} is not the one that {name} names"
    return None
