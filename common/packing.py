"""A message in four small pieces, and its large arrays beside it.

Flower sends every record, array and chunk of a message as an object of its own, and
each is a request at four ends of the way, and takes some of the one core that the
SuperLink has. Content travels as two: its arrays, which many orders share and which
are therefore sent once for all of them, and the rest. Large arrays do not travel in the
message at all: it names their parts (`common.parts`).

Whoever sends is not believed; see `common.pieces`.
"""

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from common.parts import Get, Parted, Put, fetch, hand_over, read_parted, write_parted
from common.pieces import MALFORMED, MalformedError
from common.wire import payload_bytes

_MOST_BYTES = 250_000
"""Of arrays that travel in a message."""
_ARRAYS, _PARTED, _REST = "packed arrays", "parted arrays", "packed rest"
_CONTENT = "content"


class Packer:
    """Packs messages; what they share is handed over once."""

    def __init__(self, put: Put) -> None:
        """Begin.

        Args:
            put: Takes the parts of large arrays.
        """
        self._put = put
        self._handed: dict[int, tuple[Array, Parted]] = {}

    def pack(self, message: Message) -> Message:
        """The message with the same content, ready to be sent.

        Its large arrays are where the receiver finds them when this returns.
        """
        if message.has_error():
            return message
        arrays, rest, content = RecordDict(), RecordDict(), RecordDict()
        for name, record in message.content.items():
            (arrays if isinstance(record, ArrayRecord) else rest)[name] = record
        if rest:
            content[_REST] = _packed(rest)
        if arrays and payload_bytes(arrays) <= _MOST_BYTES:
            content[_ARRAYS] = _packed(arrays)
        elif arrays:
            texts = {name: self._parted(record) for name, record in arrays.items()}
            content[_PARTED] = ConfigRecord(texts)
        return Message(content=content, metadata=message.metadata)

    def _parted(self, record: object) -> str:
        assert isinstance(record, ArrayRecord)
        return write_parted({name: self._hand(one) for name, one in record.items()})

    def _hand(self, array: Array) -> Parted:
        if id(array) not in self._handed:
            self._handed[id(array)] = array, hand_over(array, self._put)
        return self._handed[id(array)][1]


def _packed(part: RecordDict) -> ConfigRecord:
    text = recorddict_to_proto(part).SerializeToString(deterministic=True)
    return ConfigRecord({_CONTENT: text})


def unpack(message: Message, get: Get, most_bytes: int) -> None:
    """Undo `Packer.pack`, in place.

    Args:
        message: As it came; one with an error stays as it is.
        get: Fetches the parts of large arrays; may raise.
        most_bytes: Of all arrays.

    Raises:
        MalformedError: It is not as a packer made it, or too large.
    """
    if message.has_error():
        return
    whole = RecordDict()
    for name, record in message.content.items():
        inside = _inside(name, record, get, most_bytes)
        for inner_name, inner in inside.items():
            whole[inner_name] = inner
    message.content = whole


def _inside(name: str, record: object, get: Get, most_bytes: int) -> RecordDict:
    """What one record of a packed message stands for."""
    try:
        assert isinstance(record, ConfigRecord)
        if name in (_ARRAYS, _REST):
            content = RecordDictProto.FromString(record[_CONTENT])
            return recorddict_from_proto(content)
        assert name == _PARTED
        parted = {group: read_parted(text) for group, text in record.items()}
    except (*MALFORMED, AssertionError) as error:
        raise MalformedError(f"{type(error).__name__}: {error}") from error
    found = RecordDict()
    for group, arrays in parted.items():
        found[group] = ArrayRecord()
        for inner, one in arrays.items():
            found[group][inner] = fetch(one, get, most_bytes)
            most_bytes -= one.size
    return found
