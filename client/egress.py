"""The gate: everything that leaves a hospital passes here, and is numbers.

Each field of each answer is declared in `SCHEMA` with its type and range, and a field
that is not declared there does not leave. Text leaves only where both sides know it
already (the site's name, the order's own plan and part, the names of sums, all fixed in
the code): no text comes from data. What goes wrong leaves as a number out of a table
(`common.error_numbers`). Vectors are looked at in pieces that stay in the cache, for
range, NaN and length, at several GB/s.

Not covered here: what numbers can tell. An update in the clear tells much about the
data it was trained on; masks and noise are the answer to that. Nor can a gate see
through somebody who hides a message in the last bits of honest numbers.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Float32

from client.egress_blocks import (
    Block,
    BlockRule,
    MaskedVector,
    NamedBlocks,
    wrong_block,
)
from common.contract import CONTRACT, FEDCT
from common.errors import PolicyError
from common.exchange import (
    Answer,
    Hello,
    Judgement,
    JudgeOrder,
    KeysOrder,
    MaskedUpdate,
    Opening,
    OpenOrder,
    Order,
    Roster,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.metrics.overlap import COUNT, MEANS
from common.secagg.keys import ANNOUNCEMENT_BYTES
from common.secagg.shamir import SHARE_BYTES
from common.secagg.sharing import SEALED_BYTES

TENS: Final = 10
"""Counts are told to the nearest multiple of this, and never as fewer."""
SUM_NAMES: Final = frozenset(
    {
        *("cases", "loss", "tp", "fp", "fn", "confusion", "scores", "baseline"),
        *("lesions", "lesions_found", "lesions_false_positive"),
        *(name + end for name in (*MEANS, "assd_mm", "hd95_mm") for end in ("", COUNT)),
    }
)
"""Names of all sums of all tasks (`common.tasks`)."""
_PIECE: Final = 1 << 16
"""Numbers that are looked at together; 256 kB stay in a core's cache."""


@dataclass(frozen=True)
class Told:
    """What is known of an answer before it is made; nothing in it is from data."""

    site: str
    """Name of the site."""
    key: str
    """Its verifying key, as `signing.public_text`."""
    order: Order
    """What is answered."""
    grouped: frozenset[str] = frozenset()
    """Sites whose keys of the order's round were put together here; empty without
    masks."""


@dataclass(frozen=True)
class Whole:
    """A whole number."""

    most: int
    least: int = 0
    is_count: bool = False
    """Whether it counts cases or series, and is rounded where the policy says so."""


@dataclass(frozen=True)
class Real:
    """A finite number."""

    most: float
    least: float = 0.0
    is_optional: bool = False


@dataclass(frozen=True)
class Same:
    """What both sides know already."""

    known: Callable[[Told], object]


@dataclass(frozen=True)
class Vector:
    """As many float32 numbers as the order's model has, each finite and in range."""

    most: float
    is_optional: bool = False


@dataclass(frozen=True)
class NamedSums:
    """Names out of `SUM_NAMES`, each with a short vector of finite float64 numbers."""

    most: float
    most_numbers: int


Rule = Whole | Real | Same | Vector | NamedSums | BlockRule

_CASES = Whole(10**7, is_count=True)
_SITE = Same(lambda told: told.site)
_ROUND = Same(lambda told: getattr(told.order, "round", None))
LARGEST_CHANGE: Final = 1e6
"""Of one parameter in one round; a model that moves so far has long diverged."""

SCHEMA: Final[Mapping[type[Answer], Mapping[str, Rule]]] = {
    Roster: {
        "site": _SITE,
        "train": _CASES,
        "validation": _CASES,
        "test": _CASES,
        "accepted": _CASES,
        "found": _CASES,
        "key": Same(lambda told: told.key),
        "contract": Same(lambda told: CONTRACT),
        "fedct": Same(lambda told: FEDCT),
    },
    Update: {
        "site": _SITE,
        "round": _ROUND,
        "plan_digest": Same(lambda told: told.order.plan_digest),
        "delta": Vector(LARGEST_CHANGE),
        "cases": _CASES,
        "loss": Real(1e12, -1e12, is_optional=True),
        "steps": Whole(10**8),
        "train_s": Real(1e8),
        "accepted": _CASES,
        "found": _CASES,
        "control_delta": Vector(LARGEST_CHANGE, is_optional=True),
        "epsilon_pld": Real(1e6, is_optional=True),
        "epsilon_prv": Real(1e6, is_optional=True),
    },
    Judgement: {
        "site": _SITE,
        "round": _ROUND,
        "part": Same(lambda told: getattr(told.order, "part", None)),
        "sums": NamedSums(1e15, 1 << 16),
    },
    RoundKeys: {"site": _SITE, "round": _ROUND, "keys": Block(ANNOUNCEMENT_BYTES)},
    SealedShares: {
        "site": _SITE,
        "round": _ROUND,
        "sealed": NamedBlocks(SEALED_BYTES, "keys"),
    },
    MaskedUpdate: {
        "site": _SITE,
        "round": _ROUND,
        "plan_digest": Same(lambda told: told.order.plan_digest),
        "masked": MaskedVector(),
        "loss": Real(1e12, -1e12, is_optional=True),
        "steps": Whole(10**8),
        "train_s": Real(1e8),
        "accepted": _CASES,
        "found": _CASES,
        "next_keys": Block(ANNOUNCEMENT_BYTES),
        "epsilon_pld": Real(1e6, is_optional=True),
        "epsilon_prv": Real(1e6, is_optional=True),
    },
    Opening: {
        "site": _SITE,
        "round": _ROUND,
        "agreement": Block(64, is_optional=True),
        "shares": NamedBlocks(SHARE_BYTES),
        "sealed": NamedBlocks(SEALED_BYTES, "next_keys"),
    },
}
_ANSWER_TO: Final = {
    Hello: Roster,
    TrainOrder: Update,
    JudgeOrder: Judgement,
    KeysOrder: RoundKeys,
    SharesOrder: SealedShares,
    OpenOrder: Opening,
}


def check_answer(answer: Answer, told: Told) -> None:
    """Let an answer pass, or say which field may not leave.

    Args:
        answer: As it would leave, but for its seal.
        told: What it answers.

    Raises:
        PolicyError: A field is not declared, of another type, out of range, or says
            something that the order did not ask. `code` is "schema". The sentence
            names the field and never its value.
    """
    kind = type(answer)
    if kind is not _kind_for(told.order):
        raise _held(kind, "", "of another kind", "the answer to its order")
    rules = SCHEMA[kind]
    for field in fields(answer):
        rule = rules.get(field.name)
        if rule is None:
            raise _held(kind, field.name, "not declared", "one of the gate's schema")
        wrong = _wrong(rule, getattr(answer, field.name), told)
        if wrong is not None:
            raise _held(kind, field.name, wrong, f"{rule}")


def _kind_for(order: Order) -> type[Answer] | None:
    """What answers an order."""
    if isinstance(order, TrainOrder) and order.sealed:
        return MaskedUpdate
    return _ANSWER_TO.get(type(order))


def rounded(answer: Answer, *, with_steps: bool) -> Answer:
    """The answer with its counts to the nearest ten, and none between 0 and ten.

    Below ten a count says little more about a hospital than about a patient. The weight
    of a site in the mean is its count, so it is rounded alike; the hub sees the same
    number at the roll call and in each round.

    Args:
        answer: As the service made it.
        with_steps: Whether the number of steps follows from the number of cases.
    """
    rules = SCHEMA[type(answer)]
    counts: dict[str, Any] = {
        name: nearest_ten(getattr(answer, name))
        for name, rule in rules.items()
        if isinstance(rule, Whole)
        and (rule.is_count or (with_steps and name == "steps"))
    }
    return replace(answer, **counts) if counts else answer


def nearest_ten(count: int) -> int:
    """To the nearest multiple of ten, at least ten; 0 stays 0, as nothing is there."""
    if count == 0:
        return 0
    return max(TENS, (count + TENS // 2) // TENS * TENS)


def norm_of(vector: Float32[np.ndarray, " P"]) -> float:
    """Euclidean norm, summed in double precision over pieces."""
    squares = 0.0
    for begin in range(0, vector.size, _PIECE):
        piece = vector[begin : begin + _PIECE]
        squares += float(np.dot(piece, piece))
    return math.sqrt(squares)


def _wrong(rule: Rule, value: Any, told: Told) -> str | None:
    """What is wrong with a value, in words without it."""
    match rule:
        case Same(known=known):
            want = known(told)
            right = type(value) is type(want) and value == want
            return None if right else "another than is known"
        case Whole(most=most, least=least):
            return None if type(value) is int and least <= value <= most else _range()
        case Real():
            return _wrong_real(rule, value)
        case NamedSums():
            return _wrong_sums(rule, value)
        case Vector():
            return _wrong_vector(rule, value, told.order)
        case _:
            return wrong_block(rule, value, told.order, told.grouped)


def _wrong_real(rule: Real, value: Any) -> str | None:
    if value is None:
        return None if rule.is_optional else "left out"
    real = type(value) is float and math.isfinite(value)
    return None if real and rule.least <= value <= rule.most else _range()


def _wrong_vector(rule: Vector, value: Any, order: Order) -> str | None:
    model, most = getattr(order, "model", None), rule.most
    if value is None:
        return None if rule.is_optional else "left out"
    if not isinstance(value, np.ndarray) or value.dtype != np.float32:
        return "not float32"
    if model is None or value.shape != model.shape:
        return "of another length than the model"
    flat = np.ascontiguousarray(value)
    for begin in range(0, flat.size, _PIECE):
        piece = flat[begin : begin + _PIECE]
        # A NaN makes both comparisons false.
        if not (piece.min() >= -most and piece.max() <= most):
            return _range()
    return None


def _wrong_sums(rule: NamedSums, value: Any) -> str | None:
    if not isinstance(value, Mapping) or not SUM_NAMES.issuperset(value):
        return "under a name that no task has"
    for vector in value.values():
        if not isinstance(vector, np.ndarray) or vector.dtype != np.float64:
            return "not float64"
        if vector.ndim != 1 or vector.size > rule.most_numbers:
            return "of another length than sums have"
        if not (np.abs(vector) <= rule.most).all():
            return _range()
    return None


def _range() -> str:
    return "out of range, not finite, or of another type"


def _held(kind: type, field: str, wrong: str, want: str) -> PolicyError:
    name = f"{kind.__name__}.{field}" if field else kind.__name__
    return PolicyError(
        f"site held back an answer whose {name} is {wrong}, expected {want}; nothing "
        "was sent",
        code="schema",
    )
