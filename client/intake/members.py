"""Reads named files out of a folder or a zip: never outside it, never without limit.

Nothing is unpacked to disk: a zip's member is found by its exact name and its bytes
stay in memory, so a name such as `../../x` finds nothing. In a folder, names and links
that lead out are refused. What is larger than the caller allows is not read to its end.
"""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from client.intake.refusal import RefusedError
from client.intake.verdict import Code
from common.errors import IntakeError


class Members(Protocol):
    """An open folder or zip."""

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The whole content of one file.

        Raises:
            RefusedError: Absent, outside, damaged, or larger than the limit.
        """
        ...


@contextmanager
def open_members(path: Path) -> Iterator[Members]:
    """A folder or zip, open for reading.

    Raises:
        IntakeError: It is neither.
    """
    if path.is_dir():
        yield _Folder(path.resolve())
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as cause:
        raise IntakeError(
            "intake got a source that is no zip, expected a folder or a zip of pictures"
        ) from cause
    with archive:
        yield _Zip(archive)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, name: str, limit_bytes: int) -> bytes:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise RefusedError(
                Code.UNSAFE_LINK,
                "a named file lies outside the source, expected inside",
            )
        if not path.is_file():
            raise _absent()
        with path.open("rb") as file:
            return _whole(file, limit_bytes)


class _Zip:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive

    def read(self, name: str, limit_bytes: int) -> bytes:
        try:
            with self._archive.open(name) as file:
                return _whole(file, limit_bytes)
        except KeyError as cause:
            raise _absent() from cause
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as cause:
            sentence = "a file in the zip is damaged or encrypted; pack it again"
            raise RefusedError(Code.UNREADABLE, sentence) from cause


def _whole(file: IO[bytes], limit_bytes: int) -> bytes:
    content = file.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise RefusedError(
            Code.DECODE_LIMIT,
            f"a file has more than {limit_bytes} bytes, expected less",
        )
    return content


def _absent() -> RefusedError:
    return RefusedError(Code.UNREADABLE, "a named file is absent from the source")
