"""What is packed in a parcel: a record as compressed bytes, and back.

A reader is told in the signed header how many bytes come out, and never unpacks more.
"""

import zlib
from pathlib import Path

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordProto
from google.protobuf.message import DecodeError

from common.errors import ContributionError
from common.parcel_file import LARGEST_BYTES, Header, refused

_LEVEL = 1
"""zlib's quickest: weights are noise, and what can be saved is saved at once."""


def pack(record: RecordDict) -> tuple[bytes, int]:
    """A record as compressed bytes, and how many they were before."""
    content = recorddict_to_proto(record).SerializeToString()
    if len(content) > LARGEST_BYTES:
        raise ContributionError(
            f"a parcel would hold {len(content)} bytes, expected at most "
            f"{LARGEST_BYTES}; a model of this size needs a live line",
            code="size",
        )
    return zlib.compress(content, _LEVEL), len(content)


def unpack(
    path: Path, packed: bytes | memoryview, header: Header, largest_bytes: int
) -> RecordDict:
    """The record; never more bytes of it than the header announced."""
    if header.unpacked_bytes > largest_bytes:
        raise refused(
            path,
            "size",
            f"holds {header.unpacked_bytes} bytes",
            f"at most {largest_bytes}",
            "a model of this size needs a live line",
        )
    unzip = zlib.decompressobj()
    try:
        content = unzip.decompress(packed, header.unpacked_bytes + 1)
        if len(content) != header.unpacked_bytes or not unzip.eof or unzip.unused_data:
            raise refused(
                path, "altered", "unpacks to another size", "that of its header"
            )
        return recorddict_from_proto(RecordProto.FromString(content))
    except (zlib.error, DecodeError, ValueError, TypeError, KeyError) as error:
        raise refused(
            path, "altered", "holds no record", "one that FedCT wrote"
        ) from error
