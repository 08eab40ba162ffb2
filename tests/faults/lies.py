"""What a lying site says: it works, lies, and signs the lie with its own good key.
And, last, what a hub that is not its own master says to one site.

At "answer" (before the seal): one argument is the honest answer. At "message" (after
it): what no honest program would write, so that it can't be sealed as it stands.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.contract import CONTRACT
from common.exchange import Roster, Update
from common.parameters import digest_of

MANY = 10**12


def nan(update: Update, order: Any, past: Any) -> Update:
    """One parameter of many is not a number."""
    delta = update.delta.copy()
    delta[delta.size // 2] = np.nan
    return replace(update, delta=delta)


def infinite(update: Update, order: Any, past: Any) -> Update:
    """The last parameter is infinite."""
    delta = update.delta.copy()
    delta[-1] = -np.inf
    return replace(update, delta=delta)


def short(update: Update, order: Any, past: Any) -> Update:
    """A parameter is missing."""
    return replace(update, delta=update.delta[:-1].copy())


def single(update: Update, order: Any, past: Any) -> Update:
    """One number, which NumPy would add to every parameter."""
    return replace(update, delta=update.delta[:1].copy())


def huge(update: Update, order: Any, past: Any) -> Update:
    """A thousand times the honest update."""
    return replace(update, delta=update.delta * np.float32(1000))


def many_cases(update: Update, order: Any, past: Any) -> Update:
    """More cases than it has, and than there are."""
    return replace(update, cases=MANY)


def negative_cases(update: Update, order: Any, past: Any) -> Update:
    """Fewer than none."""
    return replace(update, cases=-1)


def nan_cases(update: Update, order: Any, past: Any) -> Update:
    """No number of cases at all."""
    return replace(update, cases=float("nan"))  # type: ignore[arg-type]


def many_at_roll_call(roster: Roster, order: Any, past: Any) -> Roster:
    """The same lie from the beginning, so that it is consistent."""
    return replace(roster, train=MANY)


def negative_at_roll_call(roster: Roster, order: Any, past: Any) -> Roster:
    """Fewer than none from the beginning."""
    return replace(roster, train=-1)


def float64(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """The update in double precision."""
    return _vectors(messages, lambda a: {"delta": _array(_read(a).astype("<f8"))})


def half(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """The update in half precision, called single."""
    return _vectors(
        messages,
        lambda a: {
            "delta": Array(a.dtype, a.shape, a.stype, _read(a).astype("<f2").tobytes())
        },
    )


def square(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """The right bytes in another shape."""
    return _vectors(
        messages, lambda a: {"delta": Array(a.dtype, (*a.shape, 1), a.stype, a.data)}
    )


def other_key(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """The update under another name."""
    return _vectors(messages, lambda a: {"gradient": a})


def more_keys(messages: list[Message], order: Any, past: Any) -> list[Message]:
    """The update, and something else."""
    return _vectors(messages, lambda a: {"delta": a, "gradient": a})


def _vectors(messages: list[Message], change: Any) -> list[Message]:
    (answer,) = messages
    honest = answer.content["vectors"]["delta"]
    answer.content["vectors"] = ArrayRecord(change(honest))
    return [answer]


def _read(array: Array) -> np.ndarray:
    return np.frombuffer(array.data, "<f4")


def _array(vector: np.ndarray) -> Array:
    return Array(vector.dtype.str, vector.shape, "fedct.raw", vector.tobytes())


def old_contract(roster: Roster, order: Any, past: Any) -> Roster:
    """Of a version that does not look at the hub's."""
    return replace(roster, contract=CONTRACT - 1)


def other_model(records: dict[str, RecordDict], order: Any, past: Any) -> Any:
    """At "order", in the hub: north gets another model than was announced."""
    north = records["north"]
    honest = north["vectors"]["model"]
    changed = _read(honest) + np.float32(0.25)
    vectors = {**north["vectors"], "model": _array(changed)}
    records["north"] = RecordDict({**north, "vectors": ArrayRecord(vectors)})
    return records


def other_model_and_digest(
    records: dict[str, RecordDict], order: Any, past: Any
) -> Any:
    """The same, and announced as that: north can't tell from the order alone."""
    north = other_model(records, order, past)["north"]
    digest = digest_of(_read(north["vectors"]["model"]))
    north["facts"] = ConfigRecord({**north["facts"], "model_digest": digest})
    return records
