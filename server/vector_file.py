"""Vectors in a safetensors file, written and read without a copy on the way.

The library's own functions make up to three copies of a model on the way. The server
holds three models at its peak, and none of them should be such a copy. The format is a
length, a header in JSON and the bytes one after another (safetensors 0.x), so other
programs read these files as any.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import Float32

from common.durable import write_chunks

_LENGTH_BYTES = 8
_HEADER_LIMIT = 1 << 20
"""Longer than any header of ours."""
_STEP = 1 << 20

Vectors = Mapping[str, Float32[np.ndarray, " P"]]


def write_vectors(path: Path, vectors: Vectors) -> str:
    """Write the file durably, whole or not at all; returns its sha256 (hex)."""
    flat = {n: np.ascontiguousarray(v, dtype="<f4") for n, v in vectors.items()}
    chunks: list[bytes | memoryview] = [_header(flat)]
    chunks += [vector.data.cast("B") for vector in flat.values()]

    def digest() -> str:
        total = hashlib.sha256()
        for chunk in chunks:
            total.update(chunk)
        return total.hexdigest()

    with ThreadPoolExecutor(1) as beside:  # hash while the disk is busy
        sha256 = beside.submit(digest)
        write_chunks(path, chunks)
    return sha256.result()


def read_vectors(path: Path) -> tuple[dict[str, Float32[np.ndarray, " P"]], str]:
    """The vectors of a file that `write_vectors` wrote, and its sha256 (hex).

    Raises:
        OSError: It can't be read.
        ValueError: It is no such file.
    """
    total = hashlib.sha256()
    vectors: dict[str, Float32[np.ndarray, " P"]] = {}
    with path.open("rb") as file:
        length = file.read(_LENGTH_BYTES)
        size = int.from_bytes(length, "little")
        if size > _HEADER_LIMIT:
            raise ValueError("a header longer than any")
        header = file.read(size)
        total.update(length + header)
        for name, count in _described(header):
            vectors[name] = np.empty(count, dtype="<f4")
            for part in _filled(file, vectors[name].data.cast("B")):
                total.update(part)
        if file.read(1):
            raise ValueError("more bytes than the header tells of")
    return vectors, total.hexdigest()


def _filled(file: BinaryIO, room: memoryview) -> Iterator[memoryview]:
    """Read into `room`, and give what was read in steps that fit into a cache."""
    for start in range(0, len(room), _STEP):
        part = room[start : start + _STEP]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise ValueError("fewer bytes than the header tells of")
        yield part


def _header(vectors: Vectors) -> bytes:
    """Length and JSON, filled up with blanks to a multiple of eight."""
    start, table = 0, {}
    for name, vector in vectors.items():
        end = start + vector.nbytes
        table[name] = {
            "dtype": "F32",
            "shape": [vector.size],
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _described(header: bytes) -> list[tuple[str, int]]:
    """Name and number of elements of each vector, in the order of their bytes."""
    table = json.loads(header)
    if not isinstance(table, dict):
        raise ValueError("a header that is no table")
    start, found = 0, []
    try:
        for name, row in sorted(table.items(), key=lambda i: i[1]["data_offsets"]):
            (size,) = row["shape"]
            if row["dtype"] != "F32" or row["data_offsets"] != [
                start,
                start + 4 * size,
            ]:
                raise ValueError("vectors of another kind or order")
            start += 4 * size
            found.append((name, int(size)))
    except (KeyError, TypeError) as error:
        raise ValueError("a header without what belongs there") from error
    return found
