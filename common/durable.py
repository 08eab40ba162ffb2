"""Files that are whole or absent, whatever instant the power fails.

Written to a temporary name beside the target, synced, then renamed: a reader sees the
old file or the new one. The mode is set when the file is created, not afterwards, so
that there is no moment in which others could open a private one.
"""

import os
from collections.abc import Iterable
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of files that are being written; leftovers of a killed process."""


def write_whole(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file by new content, durably and as a whole.

    Args:
        path: The file.
        content: All of it.
        mode: Of the file from its first instant, less the umask.
    """
    write_chunks(path, (content,), mode=mode)


def write_chunks(
    path: Path, chunks: Iterable[bytes | memoryview], *, mode: int = 0o666
) -> None:
    """As `write_whole`, of content that lies in several places."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    temporary.unlink(missing_ok=True)  # of a killed process that had our number
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:  # a full disk or Ctrl-C; there is nothing to remove after the rename
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names in the folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
