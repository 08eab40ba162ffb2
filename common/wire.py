"""Orders and answers as Flower messages: the only module that knows the keys.

A vector travels as one array of little-endian bytes without a header, so that the
receiver reads it in place. Everything else is a flat record of numbers, short strings
and short sums, and so is the seal of an answer, which stands beside it: each array of
its own would be two more requests at every hop. What does not parse is a
`ContributionError` that names the field.

Flower's `RecordDict.array_records` ties a record into a reference cycle when it is
read, so that its vectors would stay in memory until the garbage collector happens to
pass. Records are therefore taken out by key, and freed with their last reference.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from jaxtyping import Float32, Float64

from common.contract import check_contract
from common.errors import ContributionError
from common.exchange import Answer, Hello, Order, Roster
from common.signing import Asked, Mark, Seal

_VECTORS = "vectors"
_FACTS = "facts"
_SUM = "sum "
"""Before the name of a sum."""
_SEAL = "seal"
_LOG = "log_"
"""Before the fields of a mark in a seal."""
_STYPE = "fedct.raw"
_SPEAKERS: Mapping[type, str] = {Hello: "hub", Roster: "site"}
"""Messages that open the talk, so they must be understood by an older or newer side as
far as their contract, whatever else is in them."""
_VECTOR_FIELDS = ("model", "delta", "control", "control_delta")

T = TypeVar("T", bound=Order | Answer)


def to_record(message: Order | Answer, seal: Seal | None = None) -> RecordDict:
    """The message as Flower carries it; vectors are copied once, into bytes.

    Args:
        message: An order, or an answer.
        seal: The site's seal under the answer.
    """
    record = to_records({"": message})[""]
    if seal is not None:
        put_seal(record, seal)
    return record


def put_seal(record: RecordDict, seal: Seal) -> None:
    """Put the site's seal beside an answer in its record."""
    facts = {"signature": seal.signature, "key": seal.key, **vars(seal.asked)}
    if seal.mark is not None:
        facts |= {_LOG + name: value for name, value in vars(seal.mark).items()}
    record[_SEAL] = ConfigRecord(_set(facts))


def to_records(messages: Mapping[str, Order | Answer]) -> dict[str, RecordDict]:
    """Messages for several receivers; a vector that they share is copied only once."""
    copied: dict[int, Array] = {}
    return {name: _encode(message, copied) for name, message in messages.items()}


def _encode(message: Order | Answer, copied: dict[int, Array]) -> RecordDict:
    facts: dict[str, Any] = {"kind": type(message).__name__}
    vectors: dict[str, Array] = {}
    for field in fields(message):
        value = getattr(message, field.name)
        if field.name in _VECTOR_FIELDS:
            if value is not None:
                if id(value) not in copied:
                    copied[id(value)] = _to_array(value, "<f4")
                vectors[field.name] = copied[id(value)]
        elif field.name == "sums":
            for name, vector in value.items():
                facts[_SUM + name] = np.ascontiguousarray(vector, "<f8").tobytes()
        else:
            facts[field.name] = value
    record = RecordDict({_FACTS: ConfigRecord(_set(facts))})
    if vectors:
        record[_VECTORS] = _group(vectors)
    return record


def _group(arrays: Mapping[str, Array]) -> ArrayRecord:
    """A record of these very arrays, not of copies as Flower's constructor makes them.

    So what several orders share is hashed once.
    """
    group = ArrayRecord()
    for name, array in arrays.items():
        group[name] = array
    return group


def from_record(record: RecordDict, kind: type[T]) -> T:
    """The message in a record.

    Args:
        record: As `to_record` made it, from a peer that is not trusted.
        kind: The message that is expected here.

    Returns:
        The message; its vectors are read-only views of the record's bytes.

    Raises:
        VersionError: The talk is opened by another contract.
        ContributionError: Another kind, a missing or extra field, a wrong type.
    """
    found = record.get(_FACTS)
    if not isinstance(found, ConfigRecord):
        raise ContributionError(
            f"a message came without its record of facts, expected {kind.__name__}; "
            "are both sides of one FedCT version?"
        )
    facts = dict(found)
    arrays = _arrays(record, _VECTORS)
    if facts.pop("kind", None) != kind.__name__:
        raise ContributionError(
            f"a message of another kind came, expected {kind.__name__}"
        )
    if kind in _SPEAKERS:
        check_contract(_SPEAKERS[kind], facts.get("contract"), facts.get("fedct"))
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in _VECTOR_FIELDS:
            array = arrays.pop(field.name, None)
            values[field.name] = None if array is None else _from_array(array, "<f4")
        elif field.name == "sums":
            values["sums"] = _sums(facts)
        else:
            values[field.name] = _fact(facts, field.name, field.type, kind)
    for name in ("model", "delta"):
        if name in values and values[name] is None:
            raise ContributionError(f"{kind.__name__} came without its {name}")
    if facts or arrays:
        raise ContributionError(
            f"{kind.__name__} came with unknown fields "
            f"{sorted([*facts, *arrays])}; are both sides of one FedCT version?"
        )
    return kind(**values)


def seal_in(record: RecordDict) -> Seal:
    """The seal in an answer's record; whether it fits is for `signing.verify` to say.

    Raises:
        ContributionError: There is none, or a field is missing, extra or of a wrong
            type; `code` is "seal".
    """
    found = record.get(_SEAL)
    if not isinstance(found, ConfigRecord):
        raise ContributionError(
            "an answer came without a seal, expected one signed by the site's key; "
            "are both sides of one FedCT version?",
            code="seal",
        )
    facts = dict(found)
    try:
        signature = _fact(facts, "signature", bytes, Seal)
        key = _fact(facts, "key", str, Seal)
        asked = {f.name: _fact(facts, f.name, f.type, Asked) for f in fields(Asked)}
        mark = _mark(facts)
    except ContributionError as error:
        raise ContributionError(str(error), code="seal") from error
    if facts:
        raise ContributionError(
            f"a seal came with unknown fields {sorted(facts)}", code="seal"
        )
    return Seal(signature, key, Asked(**asked), mark)


def _mark(facts: dict[str, Any]) -> Mark | None:
    """Take how far the site's audit log is out of a seal's facts."""
    if _LOG + "number" not in facts:
        return None
    told = {f.name: _fact(facts, _LOG + f.name, f.type, Seal) for f in fields(Mark)}
    return Mark(**told)


def payload_bytes(record: RecordDict) -> int:
    """Bytes of all arrays and sums of a record, without headers of the transport."""
    arrays = sum(
        len(array.data)
        for arrays in record.values()
        if isinstance(arrays, ArrayRecord)
        for array in arrays.values()
    )
    facts = record.get(_FACTS)
    known = facts.items() if isinstance(facts, ConfigRecord) else ()
    return arrays + sum(
        len(value)
        for name, value in known
        if name.startswith(_SUM) and isinstance(value, bytes)
    )


def _arrays(record: RecordDict, key: str) -> dict[str, Array]:
    found = record.get(key)
    return dict(found) if isinstance(found, ArrayRecord) else {}


def _sums(facts: dict[str, Any]) -> dict[str, Float64[np.ndarray, " N"]]:
    """Take the sums out of the facts."""
    found = {}
    for key in [name for name in facts if name.startswith(_SUM)]:
        value = facts.pop(key)
        if not isinstance(value, bytes) or len(value) % 8:
            raise ContributionError(
                f"Judgement.sums came with {key.removeprefix(_SUM)!r} as "
                f"{type(value).__name__}, expected the bytes of float64 numbers"
            )
        found[key.removeprefix(_SUM)] = np.frombuffer(value, dtype="<f8")
    return found


def _set(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is set of some facts: Flower's records know no None."""
    return {name: value for name, value in facts.items() if value is not None}


def _fact(
    facts: dict[str, Any], name: str, annotation: object, kind: type[object]
) -> Any:
    simple = {int: int, float: float, bytes: bytes}
    expected = simple.get(annotation, str)  # type: ignore[call-overload]
    value = facts.pop(name, None)
    if value is None and annotation == str | None:
        return None
    if type(value) is not expected:
        raise ContributionError(
            f"{kind.__name__}.{name} came as {type(value).__name__}, "
            f"expected {expected.__name__}"
        )
    return value


def _to_array(vector: np.ndarray, dtype: str) -> Array:
    data = np.ascontiguousarray(vector, dtype=dtype)
    return Array(dtype, tuple(data.shape), _STYPE, data.tobytes())


def _from_array(array: Array, dtype: str) -> Float32[np.ndarray, " P"]:
    shape = tuple(array.shape)
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if (array.dtype, array.stype, len(shape), len(array.data)) != (
        dtype,
        _STYPE,
        1,
        size,
    ):
        raise ContributionError(
            f"an array came as {array.dtype}{list(shape)} in {len(array.data)} bytes, "
            f"expected one flat array of {dtype}"
        )
    return np.frombuffer(array.data, dtype=dtype)
