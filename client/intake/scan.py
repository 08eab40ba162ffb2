"""Every file below a folder, in one order, without opening any.

The order is by path, so that the same folder gives the same verdicts on any file
system. Links are never followed: what lies inside the folder is found under its own
name anyway, and what lies outside was not offered for intake. FIFOs, sockets and
devices are listed and left alone, because opening one may block or act.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.intake.header import DirectoryEntry
from client.intake.verdict import Code
from common.errors import IntakeError


@dataclass(frozen=True)
class Scan:
    """What lies below a folder."""

    root: Path
    """The folder, absolute, links in its own path resolved."""
    files: tuple[Path, ...]
    """Regular files that are not empty, absolute, sorted."""
    refused: tuple[tuple[Path, Code], ...]
    """Everything else but folders, with why it is not opened; sorted by path."""


def scan_folder(root: Path) -> Scan:
    """List a folder.

    Raises:
        IntakeError: It does not exist, is no folder or can't be read.
    """
    try:
        resolved = root.resolve(strict=True)
        found = sorted(_walk(resolved))
    except (OSError, RuntimeError) as error:
        raise IntakeError(
            "intake got a source folder that can't be read, expected a readable "
            "folder; check the path and its permissions"
        ) from error
    return Scan(
        root=resolved,
        files=tuple(path for path, code in found if code is None),
        refused=tuple((path, code) for path, code in found if code is not None),
    )


def printable(path: Path, root: Path) -> str:
    """The path relative to the root, as text that any terminal and file can hold."""
    relative = path.relative_to(root)
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def missing_entries(
    entries: Sequence[DirectoryEntry], directory: Path
) -> tuple[list[DirectoryEntry], list[DirectoryEntry]]:
    """Entries of a DICOMDIR that lead out of the root, and those with no file there.

    Nothing is read through a DICOMDIR: all files are found by listing the folder. A
    case-insensitive match counts, because media are written in capitals and copied to
    file systems that change them.
    """
    outside: list[DirectoryEntry] = []
    missing: list[DirectoryEntry] = []
    for entry in entries:
        if not all(_is_plain(part) for part in entry.components):
            outside.append(entry)
        elif not _exists(directory, entry.components):
            missing.append(entry)
    return outside, missing


def _walk(folder: Path) -> Iterator[tuple[Path, Code | None]]:
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        path = Path(entry.path)
        if entry.is_symlink():
            yield path, Code.UNSAFE_LINK
        elif entry.is_dir(follow_symlinks=False):
            try:
                yield from _walk(path)
            except PermissionError:
                yield path, Code.UNREADABLE
        else:
            yield path, _file_code(entry.stat(follow_symlinks=False))


def _file_code(found: os.stat_result) -> Code | None:
    if not stat.S_ISREG(found.st_mode):
        return Code.SPECIAL_FILE
    return None if found.st_size else Code.EMPTY_FILE


def _is_plain(part: str) -> bool:
    return part not in ("", ".", "..") and not set(part) & set("/\0")


def _exists(folder: Path, components: Sequence[str]) -> bool:
    for part in components:
        if folder.is_symlink() or not folder.is_dir():
            return False
        names = {found.name.casefold(): found.name for found in folder.iterdir()}
        name = part if (folder / part).exists() else names.get(part.casefold())
        if name is None:
            return False
        folder = folder / name
    return not folder.is_symlink() and folder.is_file()
