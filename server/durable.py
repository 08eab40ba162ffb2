"""Files that are whole or absent, whatever instant the power fails."""

import os
from pathlib import Path


def write_durable(path: Path, content: bytes) -> None:
    """Replace a file: write beside it, sync, rename, sync the folder."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
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
