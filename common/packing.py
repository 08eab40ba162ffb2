"""A small message in four pieces instead of eight.

Flower sends every record, array and chunk of a message as an object of its own, and
each is a request at four ends of the way, and takes some of the one core that the
SuperLink has. Content travels as two: its arrays, which many orders share and which
are therefore sent once for all of them, and the rest. Large arrays keep Flower's form,
which `common.pieces` reads in place.

Whoever sends is not believed; see `common.pieces`.
"""

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from common.pieces import MALFORMED, MalformedError
from common.wire import payload_bytes

_MOST_BYTES = 1_000_000
"""Of arrays that are packed; Flower hashes a record anew at every look, which costs
more than requests for larger ones."""
_ARRAYS, _REST, _CONTENT = "packed arrays", "packed rest", "content"


def packed(message: Message) -> Message:
    """The message with the same content in as few records as is good."""
    if message.has_error():
        return message
    arrays, rest, content = RecordDict(), RecordDict(), RecordDict()
    for name, record in message.content.items():
        (arrays if isinstance(record, ArrayRecord) else rest)[name] = record
    if rest:
        content[_REST] = _packed(rest)
    if arrays and payload_bytes(arrays) <= _MOST_BYTES:
        content[_ARRAYS] = _packed(arrays)
    else:
        for name, record in arrays.items():
            content[name] = record
    return Message(content=content, metadata=message.metadata)


def _packed(part: RecordDict) -> ConfigRecord:
    text = recorddict_to_proto(part).SerializeToString(deterministic=True)
    return ConfigRecord({_CONTENT: text})


def unpack(message: Message) -> None:
    """Undo `packed`, in place; a message that was not packed stays as it is.

    Raises:
        MalformedError: It is packed, and can't be unpacked.
    """
    if message.has_error() or not {_REST, _ARRAYS} & set(message.content):
        return
    whole = RecordDict()
    for name, record in message.content.items():
        inside = unpacked(record) if name in (_REST, _ARRAYS) else {name: record}
        for inner_name, inner in inside.items():
            whole[inner_name] = inner
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
