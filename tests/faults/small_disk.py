"""A folder on a disk of its own that is small, or can't be written to."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_CHUNK = 4096


def _mount(*words: str) -> bool:
    done = subprocess.run(["mount", *words], capture_output=True, check=False)
    return done.returncode == 0


def can_mount() -> bool:
    """Whether this process may make a disk, which takes root."""
    with tempfile.TemporaryDirectory() as folder:
        done = _mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder)
        if done:
            subprocess.run(["umount", folder], check=True)
    return done


needs_mount = pytest.mark.skipif(
    os.geteuid() != 0 or not can_mount(), reason="only root may mount a small disk"
)


class SmallDisk:
    """A folder on a disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, leave_bytes: int = 0) -> None:
        """Leave so much room, and no more."""
        with self._ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(_CHUNK))
        size = self._ballast.stat().st_size
        os.truncate(self._ballast, max(0, size - leave_bytes))

    def free(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, size: str = "64m") -> Iterator[SmallDisk]:
    """Move a folder that nobody uses onto a small disk, and back afterwards."""
    before = folder.with_name(folder.name + ".before")
    folder.mkdir(exist_ok=True)
    shutil.copytree(folder, before)
    assert _mount("-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder))
    disk = SmallDisk(folder)
    try:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        yield disk
    finally:
        disk.free()
        shutil.rmtree(before)
        shutil.copytree(folder, before)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.copytree(before, folder, dirs_exist_ok=True)
        shutil.rmtree(before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder on a disk that the system has made read-only, as after an error."""
    assert _mount("--bind", str(folder), str(folder))
    try:
        assert _mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
