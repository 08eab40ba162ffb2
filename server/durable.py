"""Files that are whole or absent, whatever instant the power fails."""

import os
from pathlib import Path


def write_durable(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file: write beside it, sync, rename, sync the folder.

    Args:
        path: The file.
        content: All of it.
        mode: Of the file from its first instant, less the umask.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # a killed process's; its mode would stay
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:  # a full disk or Ctrl-C; there is nothing to remove after the rename
        temporary.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
