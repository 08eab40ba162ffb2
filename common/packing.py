"""A small message in four pieces instead of eight.

Flower sends every record, array and chunk of a message as an object of its own, and
each is a request at four ends of the way, about 10 ms of the one core that the
SuperLink has. Content that is small enough to be one piece anyway travels as two: its
arrays, which many orders share and which are therefore sent once for all of them, and
the rest. A large message keeps Flower's form, which `common.pieces` reads in place.

Whoever sends is not believed; see `common.pieces`.
"""

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from common.pieces import MALFORMED, MalformedError
from common.wire import payload_bytes

_MOST_BYTES = 7_000_000
"""Of a message that is packed; nginx lets bodies of 8 MB through."""
_ARRAYS, _REST, _CONTENT = "packed arrays", "packed rest", "content"


def packed(message: Message) -> Message:
    """The message with the same content in few records, if it is small."""
    if message.has_error() or payload_bytes(message.content) > _MOST_BYTES:
        return message
    found: tuple[RecordDict, RecordDict] = RecordDict(), RecordDict()
    for name, record in message.content.items():
        found[isinstance(record, ArrayRecord)][name] = record
    content = RecordDict()
    for name, part in zip((_REST, _ARRAYS), found, strict=True):
        if part:
            text = recorddict_to_proto(part).SerializeToString(deterministic=True)
            content[name] = ConfigRecord({_CONTENT: text})
    return Message(content=content, metadata=message.metadata)


def unpack(message: Message) -> None:
    """Undo `packed`, in place; a message that was not packed stays as it is.

    Raises:
        MalformedError: It is packed, and can't be unpacked.
    """
    if message.has_error():
        return
    found = {n: message.content[n] for n in (_REST, _ARRAYS) if n in message.content}
    if not found:
        return
    if len(found) != len(message.content):
        raise MalformedError("it is packed by halves")
    whole = RecordDict()
    for record in found.values():
        for name, inner in unpacked(record).items():
            whole[name] = inner
    message.content = whole


def unpacked(record: object) -> RecordDict:
    """What one record of a packed message holds.

    Raises:
        MalformedError: It is no such record.
    """
    try:
        assert isinstance(record, ConfigRecord)
        content = RecordDictProto.FromString(record[_CONTENT])
        return recorddict_from_proto(content)
    except (*MALFORMED, AssertionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error
