"""One prepared case as one file: a checked header, then raw arrays.

    offset 0    b"FEDCTC01"             8 bytes, kind and version of the file
           8    length of the header    4 bytes, little endian
          12    sha256 of the header    32 bytes
          44    header                  JSON: grids, label, where each array lies
          ...   image, mask, foreground each at a multiple of 64 bytes, C order

One file and not a folder of arrays, because collections of thousands of small crops
then cost one open and one rename each. The arrays are read through a memory map, so a
patch costs the pages it lies on, not the volume. The sha256 of every array stands in
the header and is compared on request; the header's own is checked at each opening.
"""

import hashlib
import json
import math
import mmap
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client.private_files import create_private
from common.case import PreparedCase
from common.errors import StoreError
from common.volume import Grid

MAGIC = b"FEDCTC01"
HEAD_BYTES = len(MAGIC) + 4 + 32
ALIGN_BYTES = 64
"""Arrays start on cache lines."""
HEADER_LIMIT_BYTES = 1 << 20
SMALL_BYTES = 1 << 20
"""Files up to this size are not synced one by one when written; instead the CRC-32 of
their arrays is checked at each opening, which takes a third of a millisecond at most
and finds what a power failure may have torn."""
ARRAYS = ("image", "mask", "foreground")
_DTYPES = {"image": "<f2", "mask": "|u1", "foreground": "<i4"}

Header = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class CaseFile:
    """An open case file: its header and the bytes of the whole file, mapped."""

    header: Header
    """As written by `write_case`, its sha256 checked."""
    mapped: mmap.mmap
    """Read-only; pages come in as they are touched."""


def write_case(path: Path, case: PreparedCase, about: Header) -> None:
    """Write a new file of mode 0600; large ones are synced to disk.

    Args:
        path: Must not exist.
        case: Arrays of any layout; written in C order.
        about: What else the header shall say; plain JSON values.
    """
    arrays = {
        name: np.ascontiguousarray(array, dtype=_DTYPES[name])
        for name in ARRAYS
        if (array := getattr(case, name)) is not None
    }
    places, size_bytes = _lay_out(arrays)
    header = json.dumps({**about, **_describe(case), "arrays": places}).encode()
    with os.fdopen(create_private(path), "wb") as file:
        file.write(MAGIC + len(header).to_bytes(4, "little"))
        file.write(hashlib.sha256(header).digest() + header)
        start = _aligned(file.tell())
        for name, array in arrays.items():
            file.write(bytes(start + places[name]["offset"] - file.tell()))
            file.write(_bytes_of(array))
        if size_bytes > SMALL_BYTES:
            file.flush()
            os.fsync(file.fileno())


def open_case_file(path: Path) -> CaseFile:
    """Map a file and check its header and size; small files are checked as a whole.

    Raises:
        StoreError: The file is absent, cut short, altered or of another version.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file can't be mapped
        raise _damaged(path, f"can't be read ({type(error).__name__})") from error
    length = int.from_bytes(mapped[len(MAGIC) : len(MAGIC) + 4], "little")
    text = mapped[HEAD_BYTES : HEAD_BYTES + min(length, HEADER_LIMIT_BYTES)]
    if mapped[: len(MAGIC)] != MAGIC:
        raise _damaged(path, "is no prepared case of this version")
    if hashlib.sha256(text).digest() != mapped[HEAD_BYTES - 32 : HEAD_BYTES]:
        raise _damaged(path, "has an altered header")
    case_file = CaseFile(json.loads(text), mapped)
    end = max(_span(case_file, name)[1] for name in case_file.header["arrays"])
    if len(mapped) != end:
        raise _damaged(path, f"has {len(mapped)} bytes, expected {end}")
    if len(mapped) <= SMALL_BYTES:
        _compare(path, case_file, "crc32", zlib.crc32)
    return case_file


def verify_arrays(path: Path, case_file: CaseFile) -> None:
    """Read all arrays and compare their sha256 with the header's.

    Raises:
        StoreError: A bit is not as it was written.
    """
    _compare(path, case_file, "sha256", _sha256)


def as_case(case_file: CaseFile) -> PreparedCase:
    """The prepared case; its arrays are read-only views of the map."""
    header = case_file.header
    return PreparedCase(
        case_id=header["case_id"],
        patient_id=header["patient_id"],
        image=_array(case_file, "image"),
        grid=_grid(header["grid"]),
        source_grid=_grid(header["source_grid"]),
        mask=_array(case_file, "mask") if "mask" in header["arrays"] else None,
        foreground=_array(case_file, "foreground")
        if "foreground" in header["arrays"]
        else None,
        label=header["label"],
        attributes=header["attributes"],
        has_spacing=header["has_spacing"],
    )


def _compare(
    path: Path,
    case_file: CaseFile,
    kind: str,
    checksum: Callable[[memoryview], str | int],
) -> None:
    for name, place in case_file.header["arrays"].items():
        start, end = _span(case_file, name)
        with memoryview(case_file.mapped) as view, view[start:end] as part:
            if checksum(part) != place[kind]:
                raise _damaged(path, f"has an altered {name}")


def _sha256(content: memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def _describe(case: PreparedCase) -> dict[str, Any]:
    return {
        "case_id": case.case_id,
        "patient_id": case.patient_id,
        "grid": _grid_json(case.grid),
        "source_grid": _grid_json(case.source_grid),
        "label": case.label,
        "attributes": dict(case.attributes),
        "has_spacing": case.has_spacing,
    }


def _lay_out(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int]:
    """Where each array goes, counted from the first one; and the bytes of all."""
    places: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        offset = _aligned(offset)
        content = _bytes_of(array)
        places[name] = {
            "shape": list(array.shape),
            "offset": offset,
            "crc32": zlib.crc32(content),
            "sha256": _sha256(content),
        }
        offset += array.nbytes
    return places, offset


def _bytes_of(array: np.ndarray) -> memoryview:
    """The array's memory; an empty array has none that could be cast."""
    return array.data.cast("B") if array.size else memoryview(b"")


def _span(case_file: CaseFile, name: str) -> tuple[int, int]:
    """First byte of an array in the file, and the one behind its last."""
    place = case_file.header["arrays"][name]
    length = int.from_bytes(case_file.mapped[len(MAGIC) : len(MAGIC) + 4], "little")
    start = _aligned(HEAD_BYTES + length) + place["offset"]
    size = math.prod(place["shape"]) * np.dtype(_DTYPES[name]).itemsize
    return start, start + size


def _array(case_file: CaseFile, name: str) -> np.ndarray:
    shape = case_file.header["arrays"][name]["shape"]
    start, _ = _span(case_file, name)
    count, dtype = math.prod(shape), np.dtype(_DTYPES[name])
    return np.frombuffer(case_file.mapped, dtype, count, start).reshape(shape)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN_BYTES) * ALIGN_BYTES


def _grid_json(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist()}


def _grid(value: Mapping[str, Any]) -> Grid:
    d, h, w = value["shape"]
    return Grid((d, h, w), np.array(value["affine"]))


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"store entry {path.stem[:12]} {what}, expected it as it was written; "
        "purge the store and take in again"
    )
