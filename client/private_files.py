"""Files and folders that only the site's own user may read.

Modes are set when a file is created, not afterwards, so that there is no moment in
which others could open it. How a file is written whole or not at all: `common.durable`.
"""

import os
import stat
from pathlib import Path

from common import durable
from common.durable import write_whole
from common.errors import StoreError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
TEMPORARY = durable.TEMPORARY
sync_folder = durable.sync_folder


def make_private_folder(folder: Path) -> None:
    """Create the folder for this user alone, or check that it is so.

    An empty folder that others may enter is closed to them; one that holds files is not
    touched, as it may be somebody else's.

    Raises:
        StoreError: It can't be made, or others may enter it.
    """
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077 and not any(folder.iterdir()):
            folder.chmod(FOLDER_MODE)
            mode = FOLDER_MODE
    except OSError as error:
        raise StoreError(
            f"store got a folder that can't be made ({error.strerror}), "
            "expected a place this user may write to; choose another --store"
        ) from error
    if mode & 0o077:
        raise StoreError(
            f"store got a folder of mode {mode:04o}, expected 0700; it holds patient "
            "data: make it private (chmod 700) or choose an empty place"
        )


def create_private(path: Path) -> int:
    """A descriptor to write a new file of mode 0600 with; fails if it exists."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, FILE_MODE)


def write_private(path: Path, content: bytes) -> None:
    """Replace a small file by new content, durably and as a whole."""
    write_whole(path, content, mode=FILE_MODE)


def sweep(folder: Path) -> int:
    """Remove what a killed process left half-written; call it under the store's lock.

    Returns:
        How many leftovers there were.
    """
    leftovers = list(folder.glob(f"*{TEMPORARY}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return len(leftovers)
