"""Making a folder that did not exist before: whole, or swept at the next try.

A hub or a site begins as a folder with keys in it. A process that is killed on the way
leaves a folder that is marked as unfinished; the next try clears it, for everything in
it is ours. A folder that holds anything else is never touched.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import JoinError

MARKER = ".unfinished"
"""Name of the file that marks a folder whose making was begun."""


@contextmanager
def new_folder(folder: Path, who: str) -> Iterator[None]:
    """Make a folder of mode 0700 and fill it in the body.

    Args:
        folder: May exist, if it is empty.
        who: Whose folder it is to be, as errors call it.

    Raises:
        JoinError: It can't be made, holds files, or is being made right now.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise JoinError(
            f"{who} got a folder that can't be made ({error.strerror}), expected a "
            "place this user may write to; choose another folder"
        ) from error
    try:
        _claim(folder, descriptor, who)
        try:
            yield
            _sync(folder)
            (folder / MARKER).unlink()
            os.fsync(descriptor)
        except BaseException:
            _clear(folder)
            raise
    finally:
        os.close(descriptor)


def check_finished(folder: Path, maker: str) -> None:
    """Check that the making of a folder was not interrupted.

    Raises:
        JoinError: It was.
    """
    if (folder / MARKER).exists():
        raise JoinError(
            f"folder is unfinished, expected one that `{maker}` completed; run it again"
        )


def _claim(folder: Path, descriptor: int, who: str) -> None:
    """Lock the folder, sweep what a killed process left, mark it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise JoinError(f"{who} got a folder that is being made already") from error
    marker = folder / MARKER
    if not marker.exists() and any(folder.iterdir()):
        raise JoinError(
            f"{who} got a folder in use, expected an empty or new one; choose another "
            "folder (nothing in this one was touched)"
        )
    folder.chmod(0o700)
    marker.touch(mode=0o600)
    os.fsync(descriptor)
    _clear(folder, but=marker)


def _clear(folder: Path, but: Path | None = None) -> None:
    """Remove everything inside, the marker last."""
    marker = folder / MARKER
    for path in sorted(folder.iterdir(), key=lambda path: path == marker):
        if path == but:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _sync(folder: Path) -> None:
    """Make names in all folders below survive a power failure."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(descriptor)
            os.close(descriptor)
