"""A large array in parts, each of which is a file named by its digest.

Flower's SuperLink has one core, and a database through which every byte of a message
goes. So a message says of a large array only which parts it has; the parts themselves
pass the hub's nginx as plain files (decision 29). Whoever reads one knows by its name
that it is whole and the right one. A line that breaks costs one part, not the array.

Whoever sends is not believed; see `common.pieces`.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from flwr.app import Array
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from common.pieces import MalformedError

PART_BYTES = 1 << 22
"""4 MiB: 34 s at 1 Mbit/s, less than any wait on the way."""
PATH = "/v1/parts/"
"""Before a part's digest: GET what the hub has laid out, PUT what a site brings."""
_AT_ONCE = 2
"""Parts under way: one is encrypted while the other is stored."""

Put = Callable[[str, memoryview], None]
"""Puts a part, by its digest, where the other side finds it; from several threads."""
Get = Callable[[str], bytes]
"""Fetches a part by its digest; from several threads."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Short = Annotated[str, StringConstraints(max_length=32)]


class Parted(BaseModel):
    """What a message says of an array that is not in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dtype: _Short
    """As `flwr.app.Array` has it."""
    shape: list[Annotated[int, Field(ge=0)]]
    """Of the array."""
    stype: _Short
    """How its bytes are to be read."""
    size: Annotated[int, Field(ge=0)]
    """Bytes."""
    parts: list[Digest]
    """SHA-256 of each part, in order; all but the last have `PART_BYTES`."""


def hand_over(array: Array, put: Put) -> Parted:
    """Put an array's parts where the other side finds them.

    Args:
        array: Its bytes are read where they are.
        put: Called once for each part; may raise.
    """
    views = list(_split(memoryview(array.data)))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(lambda view: _hand_one(view, put), views))
    return Parted(
        dtype=array.dtype,
        shape=list(array.shape),
        stype=array.stype,
        size=len(array.data),
        parts=parts,
    )


def fetch(parted: Parted, get: Get, most_bytes: int) -> Array:
    """The array, in memory only once.

    Args:
        parted: What the message says of it.
        get: Called once for each part, in order; may raise.
        most_bytes: More than that is refused before anything is fetched.

    Raises:
        MalformedError: It is too large, or a part is not what its digest says.
    """
    if parted.size > most_bytes:
        raise MalformedError("it is larger than any answer may be")
    if len(parted.parts) != -(-parted.size // PART_BYTES):
        raise MalformedError(f"{len(parted.parts)} parts for {parted.size} bytes")
    buffer = io.BytesIO()
    for content in _in_order(parted.parts, get):
        buffer.write(content)
        del content  # before the next one comes
    if buffer.tell() != parted.size:
        raise MalformedError(f"{buffer.tell()} bytes came for {parted.size}")
    array = Array(parted.dtype, tuple(parted.shape), parted.stype, b"")
    array.data = buffer.getvalue()  # the buffer's own bytes, not a copy
    return array


def read_parted(text: str) -> Mapping[str, Parted]:
    """What a message says of its arrays, by their names.

    Raises:
        MalformedError: It says nothing of the kind.
    """
    try:
        return _Group.model_validate_json(text).arrays
    except ValidationError as error:
        raise MalformedError("it names no parts of arrays") from error


def write_parted(arrays: Mapping[str, Parted]) -> str:
    """The inverse of `read_parted`."""
    return _Group(arrays=dict(arrays)).model_dump_json()


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    arrays: dict[_Short, Parted]


def _split(data: memoryview) -> Iterator[memoryview]:
    for start in range(0, len(data), PART_BYTES):
        yield data[start : start + PART_BYTES]


def _hand_one(view: memoryview, put: Put) -> str:
    digest = hashlib.sha256(view).hexdigest()
    put(digest, view)
    return digest


def _in_order(parts: Sequence[str], get: Get) -> Iterator[bytes]:
    """Each part, checked; the next is fetched meanwhile."""
    pool = ThreadPoolExecutor(1)
    try:
        coming = [pool.submit(get, part) for part in parts[:1]]
        for number, digest in enumerate(parts):
            content = coming.pop().result()
            if number + 1 < len(parts):
                coming.append(pool.submit(get, parts[number + 1]))
            if hashlib.sha256(content).hexdigest() != digest:
                raise MalformedError(f"part {number + 1} is not what it is called")
            yield content
            del content
    finally:
        pool.shutdown(cancel_futures=True)
