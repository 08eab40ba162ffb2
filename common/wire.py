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

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from jaxtyping import Float64

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
_VECTOR_FIELDS = ("model", "delta", "control", "control_delta", "masked")
_TYPES: Mapping[str, tuple[str, ...]] = {"masked": ("<u4", "<u2")}
"""Vector fields that are not little-endian float32."""
_NAMED: Mapping[object, type] = {Mapping[str, bytes]: bytes, Mapping[str, str]: str}
"""Fields that hold something per site, which stands as a fact of its own."""

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
                    dtype = value.dtype.str if field.name in _TYPES else "<f4"
                    copied[id(value)] = _to_array(value, dtype)
                vectors[field.name] = copied[id(value)]
        elif field.name == "sums":
            for name, vector in value.items():
                facts[_SUM + name] = np.ascontiguousarray(vector, "<f8").tobytes()
        elif field.type in _NAMED:
            facts |= {f"{field.name} {name}": one for name, one in value.items()}
        else:
            facts[field.name] = list(value) if isinstance(value, tuple) else value
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
            types = _TYPES.get(field.name, ("<f4",))
            values[field.name] = None if array is None else _from_array(array, types)
        elif field.name == "sums":
            values["sums"] = _sums(facts)
        elif field.type in _NAMED:
            values[field.name] = _named(facts, field.name, _NAMED[field.type], kind)
        elif field.type == tuple[str, ...]:
            values[field.name] = _names(facts, field.name, kind)
        else:
            values[field.name] = _fact(facts, field.name, field.type, kind)
    for name in ("model", "delta", "masked"):
        if name in values and values[name] is None:
            raise ContributionError(f"{kind.__name__} came without its {name}")
    if facts or arrays:
        raise ContributionError(
            f"{kind.__name__} came with unknown fields "
            f"{sorted([*facts, *arrays])}; are both sides of one FedCT version?"
        )
    return kind(**values)


def order_in(record: RecordDict) -> Order:
    """The order in a record, of whatever kind it says it is.

    Raises:
        VersionError: The talk is opened by another contract.
        ContributionError: It is none, or malformed.
    """
    found = record.get(_FACTS)
    name = found.get("kind") if isinstance(found, ConfigRecord) else None
    for kind in get_args(Order):
        if kind.__name__ == name:
            order: Order = from_record(record, kind)
            return order
    raise ContributionError(
        "a message came that is no order, expected one; are both sides of one FedCT "
        "version?"
    )


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
    """Bytes of all arrays, sums, keys and shares of a record, without any headers."""
    arrays = sum(
        len(array.data)
        for arrays in record.values()
        if isinstance(arrays, ArrayRecord)
        for array in arrays.values()
    )
    facts = record.get(_FACTS)
    known = facts.items() if isinstance(facts, ConfigRecord) else ()
    return arrays + sum(len(value) for _, value in known if isinstance(value, bytes))


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


def _named(
    facts: dict[str, Any], field: str, expected: type, kind: type[object]
) -> dict[str, Any]:
    """Take a field that holds something per site out of the facts."""
    found = {}
    for key in [name for name in facts if name.startswith(f"{field} ")]:
        site = key.removeprefix(f"{field} ")
        found[site] = _fact(facts, key, expected, kind)
    return found


def _names(facts: dict[str, Any], field: str, kind: type[object]) -> tuple[str, ...]:
    """Take a list of names out of the facts."""
    value = facts.pop(field, None)
    if not isinstance(value, list) or not all(type(one) is str for one in value):
        raise ContributionError(
            f"{kind.__name__}.{field} came as {type(value).__name__}, expected names"
        )
    return tuple(value)


def _set(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is set of some facts: Flower's records know no None."""
    return {name: value for name, value in facts.items() if value is not None}


def _fact(
    facts: dict[str, Any], name: str, annotation: object, kind: type[object]
) -> Any:
    simple = {int: int, float: float, float | None: float, bytes: bytes}
    expected = simple.get(annotation, str)  # type: ignore[call-overload]
    value = facts.pop(name, None)
    if value is None and annotation in (str | None, float | None):
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


def _from_array(array: Array, types: Sequence[str]) -> np.ndarray:
    dtype = array.dtype if array.dtype in types else types[0]
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
