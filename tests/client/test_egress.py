"""Only declared numbers in range leave; each field that lies is held back by name."""

from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.egress import (
    LARGEST_CHANGE,
    SCHEMA,
    NamedSums,
    Real,
    Same,
    Told,
    Vector,
    Whole,
    check_answer,
    nearest_ten,
    norm_of,
    rounded,
)
from client.egress_blocks import Block, MaskedVector, NamedBlocks
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
    Roster,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.parameters import digest_of
from common.secagg.fixed_point import TAIL
from common.secagg.keys import ANNOUNCEMENT_BYTES
from common.secagg.shamir import SHARE_BYTES
from common.secagg.sharing import SEALED_BYTES

KEY = "ab" * 32
SECRET = "PHANTOM-NORTH-0001"
P = 200_000
MODEL = np.zeros(P, np.float32)
HELLO = Hello("run", "p" * 64, "", "l")
TRAIN = TrainOrder("run", "p" * 64, 3, 2, MODEL, digest_of(MODEL))
JUDGE = JudgeOrder("run", "p" * 64, 3, 3, "test", MODEL, digest_of(MODEL))
ROSTER = Roster("north", 70, 10, 20, 100, 104, KEY)
UPDATE = Update("north", 3, "p" * 64, MODEL + 0.01, 70, 0.4, 9, 1.5, 100, 104)
SUMS = {"cases": np.array([20.0]), "dice": np.ones(2), "dice.count": np.ones(2)}
JUDGEMENT = Judgement("north", 3, "test", SUMS)
NAMES = {"north": KEY, "south": "cd" * 32}
BOTH = dict.fromkeys(NAMES, bytes(ANNOUNCEMENT_BYTES))
KEYS = KeysOrder("run", "p" * 64, 3, NAMES, 1000, P, 2)
ROUND_KEYS = RoundKeys("north", 3, bytes(ANNOUNCEMENT_BYTES))
SHARES = SharesOrder("run", "p" * 64, 3, BOTH)
SEALED = {"south": bytes(SEALED_BYTES)}
SEALED_SHARES = SealedShares("north", 3, SEALED)
MASKED_TRAIN = replace(TRAIN, sealed=SEALED)
MASKED = np.zeros(P + TAIL, np.uint32)
MASKED_UPDATE = MaskedUpdate(
    "north", 3, "p" * 64, MASKED, 0.4, 9, 1.5, 100, 104, bytes(ANNOUNCEMENT_BYTES)
)
OPEN = OpenOrder("run", "p" * 64, 3, ("north", "south"), next_keys=BOTH)
PARTS = dict.fromkeys(NAMES, bytes(SHARE_BYTES))
OPENING = Opening("north", 3, shares=PARTS, sealed=SEALED)
HONEST = {
    HELLO: ROSTER,
    TRAIN: UPDATE,
    JUDGE: JUDGEMENT,
    KEYS: ROUND_KEYS,
    SHARES: SEALED_SHARES,
    MASKED_TRAIN: MASKED_UPDATE,
    OPEN: OPENING,
}


def told(order) -> Told:
    grouped = NAMES if isinstance(order, OpenOrder) else ()
    return Told("north", KEY, order, frozenset(grouped))


def held(order, answer) -> str:
    """The refusal's sentence."""
    with pytest.raises(PolicyError) as caught:
        check_answer(answer, told(order))
    assert caught.value.code == "schema"
    assert SECRET not in str(caught.value)
    return str(caught.value)


def test_every_field_of_every_answer_is_declared_with_its_type_and_range():
    assert set(SCHEMA) == set(get_args(Answer))
    for kind, rules in SCHEMA.items():
        assert [field.name for field in fields(kind)] == list(rules), kind


@pytest.mark.parametrize("order", HONEST, ids=lambda o: type(o).__name__)
def test_an_honest_answer_passes(order):
    check_answer(HONEST[order], told(order))
    check_answer(rounded(HONEST[order], with_steps=True), told(order))


def test_a_field_that_nobody_declared_is_held_back(monkeypatch):
    rules = {name: rule for name, rule in SCHEMA[Update].items() if name != "loss"}
    monkeypatch.setitem(SCHEMA, Update, rules)
    assert "Update.loss is not declared" in held(TRAIN, UPDATE)


@pytest.mark.parametrize("order", HONEST, ids=lambda o: type(o).__name__)
def test_no_field_takes_a_text_from_the_data(order):
    answer = HONEST[order]
    for field in fields(answer):
        said = held(order, replace(answer, **{field.name: SECRET}))
        assert f"{type(answer).__name__}.{field.name} is" in said


BAD = {
    Whole: [-1, 10**12, 1.0, True, None, np.int64(3), float("nan")],
    Real: [float("nan"), float("inf"), -float("inf"), 1e300, 3, None, np.float32(1)],
    Same: ["", None, 0, b"north", "north\n", float("nan")],
    Vector: [None, 1.0, [0.0] * P, MODEL.astype("f8"), MODEL[:-1], MODEL[None]],
    Block: [None, b"", bytes(7), bytes(10**4), bytearray(ANNOUNCEMENT_BYTES), 1],
    NamedBlocks: [
        None,
        {SECRET.lower(): bytes(SHARE_BYTES), SECRET: bytes(SEALED_BYTES)},
        {"south": SECRET.encode()},
        {"south": SECRET},
        dict.fromkeys(map(str, range(10**4)), bytes(SHARE_BYTES)),
    ],
    MaskedVector: [None, MASKED[:-1], MASKED.astype("u8"), MASKED[None], SECRET],
    NamedSums: [
        {SECRET: np.ones(1)},
        {**SUMS, "dice": [1.0, 1.0]},
        {**SUMS, "dice": np.ones(2, np.float32)},
        {**SUMS, "dice": np.array([1.0, np.nan])},
        {**SUMS, "dice": np.array([1.0, 1e18])},
        {**SUMS, "dice": np.ones((2, 2))},
        {**SUMS, "dice": np.ones(1 << 20)},
        {**SUMS, "dice": np.array([SECRET])},
        None,
    ],
}


@pytest.mark.parametrize("order", HONEST, ids=lambda o: type(o).__name__)
def test_values_of_another_type_or_out_of_range_are_held_back(order):
    answer, tried = HONEST[order], 0
    for name, rule in SCHEMA[type(answer)].items():
        for bad in BAD[type(rule)]:
            is_unset = bad is None or (type(bad) is bytes and not bad)
            if is_unset and getattr(rule, "is_optional", False):
                continue
            assert f".{name} is" in held(order, replace(answer, **{name: bad}))
            tried += 1
    assert tried >= 15 or name in ("keys", "sealed")


@given(
    place=st.integers(0, P - 1),
    bad=st.sampled_from([np.nan, np.inf, -np.inf, 1.01e6, -3e38]),
)
def test_one_number_of_many_is_enough_to_hold_an_update_back(place, bad):
    delta = MODEL.copy()
    delta[place] = bad
    assert "Update.delta" in held(TRAIN, replace(UPDATE, delta=delta))


@given(hnp.arrays(np.float32, 257, elements=st.floats(-1e3, 1e3, width=32)))
def test_what_is_in_range_passes_and_its_norm_is_the_euclidean_one(delta):
    order = replace(TRAIN, model=MODEL[:257])
    check_answer(replace(UPDATE, delta=delta), told(order))
    exact = np.linalg.norm(delta.astype("f8"))
    assert norm_of(delta) == pytest.approx(exact, rel=1e-5)


def test_the_largest_change_may_leave_and_no_larger_one():
    delta = np.full(P, LARGEST_CHANGE, np.float32)
    check_answer(replace(UPDATE, delta=delta), told(TRAIN))
    delta[7] = np.nextafter(np.float32(LARGEST_CHANGE), np.float32(np.inf))
    held(TRAIN, replace(UPDATE, delta=delta))


def test_shares_go_to_sites_that_the_order_names_and_to_no_other():
    for order, answer in ((SHARES, SEALED_SHARES), (OPEN, OPENING)):
        to_stranger = {"west": bytes(SEALED_BYTES)}
        assert ".sealed is under a name that is not one of the round's" in held(
            order, replace(answer, sealed=to_stranger)
        )


def test_shares_that_open_a_sum_are_of_the_sites_of_the_round_and_of_all_of_them():
    """The order names the survivors only; the lost ones are known to the site."""
    alone = replace(OPEN, survivors=("north",))
    check_answer(OPENING, told(alone))
    stranger = {**PARTS, "west": bytes(SHARE_BYTES)}
    assert ".shares is under a name" in held(OPEN, replace(OPENING, shares=stranger))
    fewer = {"south": bytes(SHARE_BYTES)}
    assert ".shares is not for each" in held(OPEN, replace(OPENING, shares=fewer))
    word = Opening("north", 3, agreement=bytes(64))
    check_answer(word, told(alone))
    with pytest.raises(PolicyError, match="shares is under a name"):
        check_answer(OPENING, Told("north", KEY, OPEN))  # no round is set up here


def test_an_answer_to_another_question_is_held_back():
    assert "of another kind" in held(TRAIN, MASKED_UPDATE)
    assert "of another kind" in held(MASKED_TRAIN, UPDATE)
    assert "of another kind" in held(HELLO, UPDATE)
    assert "of another kind" in held(TRAIN, ROSTER)
    assert "Update.round" in held(replace(TRAIN, round=2), UPDATE)
    assert "Judgement.part" in held(replace(JUDGE, part="validation"), JUDGEMENT)
    assert "Roster.key" in held(HELLO, replace(ROSTER, key="cd" * 32))


@given(st.integers(0, 10**6))
def test_a_count_is_told_to_ten_and_never_as_fewer(count):
    said = nearest_ten(count)
    assert said % 10 == 0
    assert (said == 0) == (count == 0)
    assert abs(said - count) <= (5 if count >= 10 else 9)
    assert nearest_ten(said) == said


def test_counts_of_one_to_fourteen_can_not_be_told_apart():
    assert {nearest_ten(count) for count in range(1, 15)} == {10}


def test_rounding_touches_counts_alone_and_the_weight_as_the_roll_call_has_it():
    few = replace(ROSTER, train=7, validation=0, test=16, accepted=23, found=26)
    said = rounded(few, with_steps=True)
    assert (said.train, said.validation, said.test) == (10, 0, 20)
    assert (said.accepted, said.found) == (20, 30)
    update = replace(UPDATE, cases=7, steps=3)
    assert rounded(update, with_steps=False).cases == said.train
    assert rounded(update, with_steps=False).steps == 3  # it stands in the plan
    assert rounded(update, with_steps=True).steps == 10  # it tells the cases
    assert rounded(update, with_steps=True).delta is update.delta
    assert rounded(JUDGEMENT, with_steps=True) is JUDGEMENT
