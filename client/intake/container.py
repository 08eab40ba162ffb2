"""Opens one untrusted file and finds the data set and the pixel data in it.

Own code only where pydicom has no limit: pydicom inflates a deflated data set whole, so
that half a megabyte becomes half a gigabyte before anybody asked for a pixel. Here a
deflate stream is inflated only as far as it is needed. The elements themselves are
pydicom's work (`read_dataset`).

Runs in the decoder processes only. Not covered here: a directory that is swapped for a
link while intake runs; the last component of a path is never followed.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset

DEFLATED = "1.2.840.10008.1.2.1.99"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"

HEAD_BYTES = 16 << 20
"""Most bytes of an inflated data set that are looked at to find the pixel data."""
_META_VALUE_BYTES = 64 << 10
_LONG_VR = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")
_TRANSFER_SYNTAX = (0x0002, 0x0010)
_SOP_CLASS = (0x0002, 0x0002)
_FIRST_PIXEL_TAG = 0x7FE00008
_PIXEL_DATA = 0x7FE00010


class FileProblemError(Exception):
    """A file can't be used; caught at the edge of the decoder process."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        """Name of a verdict code."""


@dataclass(frozen=True)
class Container:
    """A DICOM file, read up to its pixel data."""

    dataset: Dataset
    """The wanted elements."""
    transfer_syntax: str
    """As declared, corrected where the bytes are plainly of the other VR kind."""
    media_sop_class_uid: str | None
    """MediaStorageSOPClassUID of the file meta group."""
    preamble: bytes
    """The 128 bytes before DICM; empty where there are none."""
    dataset_offset: int
    """Where the data set begins in the file."""
    data_offset: int | None
    """Where PixelData's value begins in the (inflated) data; None without pixels."""
    data_bytes: int | None
    """Its length; None where undefined."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; no link, FIFO, socket or device is opened.

    Raises:
        FileProblemError: It is one, or it can't be opened.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise FileProblemError("UNREADABLE") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileProblemError("SPECIAL_FILE")
    return os.fdopen(descriptor, "rb")


def read_container(path: Path, tags: Sequence[int]) -> Container:
    """Read the given elements of a file, up to its pixel data.

    Raises:
        FileProblemError: The file is empty, no DICOM, damaged, or inflates without end.
    """
    with open_regular(path) as file:
        preamble, start = _find_start(file)
        meta = _read_meta(file, start)
        dataset_offset = file.tell()
        syntax = _text(meta.get(_TRANSFER_SYNTAX)) or IMPLICIT
        source: BinaryIO = file
        if syntax == DEFLATED:
            source = io.BytesIO(inflate(file, HEAD_BYTES))
        syntax = _sniff_syntax(source, syntax)
        try:
            dataset = read_dataset(
                source,
                is_implicit_VR=syntax == IMPLICIT,
                is_little_endian=syntax != BIG_ENDIAN,
                stop_when=lambda tag, _vr, _length: tag >= _FIRST_PIXEL_TAG,
                specific_tags=list(tags),
            )
            data_offset, data_bytes = _locate_pixels(source, syntax)
        except MemoryError:
            raise
        except Exception as error:  # any of pydicom's, on a file that may be hostile
            raise FileProblemError("UNREADABLE") from error
    return Container(
        dataset=dataset,
        transfer_syntax=syntax,
        media_sop_class_uid=_text(meta.get(_SOP_CLASS)),
        preamble=preamble,
        dataset_offset=dataset_offset,
        data_offset=data_offset,
        data_bytes=data_bytes,
    )


def inflate(file: BinaryIO, size_bytes: int) -> bytes:
    """Inflate from the file's position, at most `size_bytes` of output."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    missing = size_bytes
    try:
        while missing > 0 and not stream.eof:
            chunk = stream.unconsumed_tail or file.read(1 << 16)
            if not chunk:
                break
            parts.append(stream.decompress(chunk, missing))
            missing -= len(parts[-1])
    except zlib.error as error:
        raise FileProblemError("UNREADABLE") from error
    return b"".join(parts)


def _find_start(file: BinaryIO) -> tuple[bytes, int]:
    """The preamble and where the elements begin, with or without a preamble."""
    head = file.read(132)
    if not head:
        raise FileProblemError("EMPTY_FILE")
    if head[128:] == b"DICM":
        return head[:128], 132
    # Without a preamble: the first element must be of group 2 or 8 and have a plausible
    # value length, or any binary file would pass.
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        raise FileProblemError("NOT_DICOM")
    explicit = _is_vr(head[4:6])
    length = struct.unpack(
        "<H" if explicit else "<I", head[6:8] if explicit else head[4:8]
    )
    if length[0] > 4096 or head[3] > 0x20:
        raise FileProblemError("NOT_DICOM")
    return b"", 0


def _read_meta(file: BinaryIO, start: int) -> dict[tuple[int, int], bytes]:
    """The file meta group (always explicit VR little endian, PS3.10 7.1)."""
    file.seek(start)
    meta: dict[tuple[int, int], bytes] = {}
    while True:
        position = file.tell()
        head = file.read(8)
        if len(head) < 8 or head[:2] != b"\x02\x00":
            file.seek(position)
            return meta
        (length,) = struct.unpack("<H", head[6:8])
        if head[4:6] in _LONG_VR:
            (length,) = struct.unpack("<I", file.read(4).ljust(4, b"\0"))
        elif not _is_vr(head[4:6]):
            (length,) = struct.unpack("<I", head[4:8])
        if length > _META_VALUE_BYTES:
            raise FileProblemError("UNREADABLE")
        group, element = struct.unpack("<HH", head[:4])
        meta[group, element] = file.read(length)


def _sniff_syntax(source: BinaryIO, declared: str) -> str:
    """The declared syntax, unless the first element is of the other VR kind."""
    position = source.tell()
    head = source.read(6)
    source.seek(position)
    if len(head) < 6:
        raise FileProblemError("UNREADABLE")
    explicit = _is_vr(head[4:6])
    if explicit and declared == IMPLICIT:
        return EXPLICIT
    if not explicit and declared == EXPLICIT:
        return IMPLICIT
    return declared


def _locate_pixels(source: BinaryIO, syntax: str) -> tuple[int | None, int | None]:
    """Offset and length of PixelData's value, from its element header."""
    order = ">" if syntax == BIG_ENDIAN else "<"
    head = source.read(8)
    if len(head) < 8:
        return None, None
    group, element = struct.unpack(order + "HH", head[:4])
    if (group << 16 | element) != _PIXEL_DATA:
        return None, None
    raw = head[4:8] if syntax == IMPLICIT else source.read(4)
    (length,) = struct.unpack(order + "I", raw)
    return source.tell(), None if length == 0xFFFFFFFF else length


def _is_vr(two: bytes) -> bool:
    return len(two) == 2 and all(65 <= byte <= 90 for byte in two)


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    return value.rstrip(b"\0 ").decode("ascii", "replace") or None
