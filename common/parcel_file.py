"""The file format of parcels: header, signature, content.

    8 bytes    "FEDCTPCL"
    4 bytes    length of the header, little endian
    header     JSON (`Header`)
    64 bytes   Ed25519 signature over "fedct parcel" and the header
    content    compressed, in an answer encrypted too (`common.parcel`)

The header holds length and hash of the content, so one signature covers the file and a
reader knows whether it is whole, and who wrote it, before it unpacks a byte.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.durable import write_whole
from common.errors import ContributionError
from common.exchange import RUN_ID
from common.signing import fingerprint

VERSION = 1
"""Of the format."""
LARGEST_BYTES = (1 << 31) - (1 << 20)
"""Largest content before compression: a protobuf message ends at 2 GiB."""
_MAGIC = b"FEDCTPCL"
_HEADER_BYTES = 4096
"""No header is longer."""
_SIGNATURE_BYTES = 64
_OVERHEAD_BYTES = 1 << 20
"""More than header, signature and encryption add, and than zlib adds to noise."""
_PURPOSE = b"fedct parcel\0"
"""Keeps these signatures apart from all others that the same keys make."""

_AGAIN = "copy it anew from where it was written"

Format = Literal["fedct-order", "fedct-answer"]
Kind = Literal["query", "train", "evaluate"]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]
KeyOf = Callable[[str], Ed25519PublicKey | None]
"""The verifying key of who must have written a parcel, by the site in its header."""


class Header(BaseModel):
    """What a parcel says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Format
    """Which of the two."""
    version: Literal[1] = 1
    """Of the format."""
    message_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """Of the order; its answer has the same."""
    site: Annotated[str, Field(min_length=1, max_length=64)]
    """Whom an order is for, or whom an answer is from."""
    kind: Kind
    """Flower's type of message."""
    key: Hash | None = None
    """Fingerprint of the key that the header is signed by; names the hub."""
    reply_key: Hash | None = None
    """In an order: X25519 key to seal the answer to."""
    run: Annotated[str, Field(pattern=f"^{RUN_ID.pattern}$")] | None = None
    """In an order: id of its run."""
    number: Annotated[int, Field(ge=1)] | None = None
    """In an order: its place among the orders of this run to this site."""
    due: Size | None = None
    """In an order: until when the hub waits, seconds since 1970, UTC."""
    unpacked_bytes: Size
    """Of the content before compression."""
    content_bytes: Size = 0
    """Of the content in the file."""
    sha256: Hash = "0" * 64
    """Of the content in the file."""


def write_parcel(
    path: Path, header: Header, content: bytes, key: Ed25519PrivateKey
) -> None:
    """Write a parcel: whole or not at all, for this user alone.

    Args:
        path: The file.
        header: All but size and hash of the content.
        content: As it stands in the file.
        key: Of who writes it.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    about = {
        "key": fingerprint(key.public_key()),
        "content_bytes": len(content),
        "sha256": sha256,
    }
    said = header.model_copy(update=about).model_dump_json().encode()
    length = struct.pack("<I", len(said))
    signature = key.sign(_PURPOSE + said)
    whole = b"".join((_MAGIC, length, said, signature, content))
    write_whole(path, whole, mode=0o600)


def peek(path: Path) -> Header:
    """A parcel's header. Nothing about it is verified: anybody may have written it.

    Raises:
        ContributionError: It can't be read.
    """
    with _opened(path) as file:
        return _parse(path, _header_bytes(path, file.read(12 + _HEADER_BYTES)))


def open_parcel(
    path: Path, format_: Format, key_of: KeyOf, largest_bytes: int
) -> tuple[Header, memoryview]:
    """A parcel whose header and content are its writer's.

    Args:
        path: The file.
        format_: Which of the two it must be.
        key_of: Who must have written it.
        largest_bytes: Of the content.

    Returns:
        The header, and the content as it stands in the file.

    Raises:
        ContributionError: `code` says why in a word: "file" (can't be read), "size",
            "format" (no parcel), "truncated", "version", "kind" (order for answer or
            the reverse), "key" (nobody is known by this name, or by another key),
            "signature", "altered".
    """
    with _opened(path) as file:
        whole = file.read(largest_bytes + _OVERHEAD_BYTES + 1)
    if len(whole) > largest_bytes + _OVERHEAD_BYTES:
        raise refused(path, "size", "is too large", f"at most {largest_bytes} bytes")
    said = _header_bytes(path, whole)
    header = _parse(path, said)
    if header.format != format_:
        raise refused(
            path,
            "kind",
            f"is a {header.format}",
            f"a {format_}",
            "orders (*.order) go to the site, answers (*.answer) to the hub",
        )
    key = key_of(header.site)
    _check_writer(path, header, key)
    assert key is not None
    start = 12 + len(said) + _SIGNATURE_BYTES
    if len(whole) < start:
        raise refused(path, "truncated", "ends in its signature", "all of it")
    try:
        key.verify(whole[12 + len(said) : start], _PURPOSE + said)
    except InvalidSignature as error:
        raise refused(
            path,
            "signature",
            "was not signed by the key it must be signed by, or was altered",
            "it as it was written",
        ) from error
    content = memoryview(whole)[start:]
    _check_content(path, header, content)
    return header, content


def refused(
    path: Path, code: str, got: str, want: str, todo: str = _AGAIN
) -> ContributionError:
    """What to say of a parcel that is not taken.

    Args:
        path: The parcel.
        code: Why, in a word.
        got: What it is.
        want: What it should be.
        todo: What a person may do.
    """
    return ContributionError(
        f"parcel {path.name!r} {got}, expected {want}; nothing was taken from it: "
        f"{todo}",
        code=code,
    )


def _check_writer(path: Path, header: Header, key: Ed25519PublicKey | None) -> None:
    """Whether it says that it is from who must have written it."""
    from_hub = header.format == "fedct-order"
    if key is not None and header.key in (None, fingerprint(key)):
        return
    if not from_hub:
        raise refused(
            path,
            "key",
            f"is from site {header.site!r}, or who calls itself so",
            "an enrolled site's, by the key it was enrolled with",
            "see `fedct server sites`; a site with new keys has to be enrolled again",
        )
    raise refused(
        path,
        "key",
        f"was written by the hub of key {str(header.key)[:16]}",
        "the hub that this site has joined",
        "give it to the site that it is for; if the hub's key is new, ask the "
        "coordinator for a new kit (fedct client renew)",
    )


def _check_content(path: Path, header: Header, content: memoryview) -> None:
    if len(content) < header.content_bytes:
        raise refused(
            path,
            "truncated",
            f"ends after {len(content)} of {header.content_bytes} bytes of content",
            "all of it",
        )
    if len(content) > header.content_bytes:
        raise refused(path, "altered", "has bytes after its end", "none")
    if hashlib.sha256(content).hexdigest() != header.sha256:
        raise refused(path, "altered", "has another content", "the one it names")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise refused(
            path, "file", f"can't be read ({error.strerror})", "a file"
        ) from error


def _header_bytes(path: Path, whole: bytes) -> bytes:
    """The header's bytes from the beginning of a file."""
    if whole[:8] != _MAGIC[: len(whole)] or not whole:
        raise refused(path, "format", "is no parcel", "a file that FedCT wrote")
    if len(whole) < 12:
        raise refused(path, "truncated", "ends in its header", "all of it")
    (length,) = struct.unpack_from("<I", whole, 8)
    if length > _HEADER_BYTES:
        raise refused(path, "format", "has a damaged header", "one that FedCT wrote")
    if len(whole) < 12 + length:
        raise refused(path, "truncated", "ends in its header", "all of it")
    return whole[12 : 12 + length]


def _parse(path: Path, said: bytes) -> Header:
    try:
        values = json.loads(said)
        version = values.get("version")
        if type(version) is int and version != VERSION:
            raise refused(
                path,
                "version",
                f"is of format version {version}",
                str(VERSION),
                "bring FedCT to one version on both sides",
            )
        return Header.model_validate(values)
    except (ValueError, AttributeError, RecursionError, ValidationError) as error:
        raise refused(
            path, "format", "has a damaged header", "one that FedCT wrote"
        ) from error
