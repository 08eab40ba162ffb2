"""The messages of secure aggregation, across the wire and under the signature."""

from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from common.canonical import digest_of_answer
from common.errors import ContributionError
from common.exchange import (
    KeysOrder,
    MaskedUpdate,
    Opening,
    OpenOrder,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
)
from common.signing import asked_of, seal, verify
from common.wire import from_record, order_in, payload_bytes, to_record

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,10}", fullmatch=True)
BLOCKS = st.dictionaries(NAMES, st.binary(max_size=200), max_size=6)
MODEL = np.arange(5, dtype=np.float32)
MASKED = np.array([0, 1, 2**32 - 1], np.uint32)


def same(a, b) -> bool:
    """Whether two messages say the same."""
    for field in fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or not np.array_equal(x, y):
                return False
        elif x != y:
            return False
    return type(a) is type(b)


@given(BLOCKS, BLOCKS, st.lists(NAMES, max_size=5))
def test_orders_come_out_as_they_went_in(blocks, more, names):
    for order in (
        KeysOrder("run", "p", 1, dict.fromkeys(blocks, "ab" * 32), 9, 5, 7),
        SharesOrder("run", "p", 1, blocks),
        TrainOrder("run", "p", 1, 0, MODEL, "m", sealed=blocks),
        OpenOrder("run", "p", 1, tuple(names), blocks, more),
    ):
        record = to_record(order)
        assert same(order, order_in(record))
        assert same(order, from_record(record, type(order)))


@given(BLOCKS, BLOCKS, st.binary(max_size=64), st.sampled_from(["<u4", "<u2"]))
def test_answers_come_out_as_they_went_in_and_are_signed_whole(a, b, word, dtype):
    key = Ed25519PrivateKey.generate()
    order = SharesOrder("run", "p", 1, {})
    masked = MASKED.astype(dtype)
    for answer in (
        RoundKeys("east", 1, word),
        SealedShares("east", 1, a),
        MaskedUpdate("east", 1, "p", masked, 0.5, 2, 1.0, 3, 4, word),
        Opening("east", 1, word, a, b),
    ):
        there = from_record(to_record(answer), type(answer))
        assert same(answer, there)
        assert digest_of_answer(answer) == digest_of_answer(there)
        asked = asked_of(order, "east")
        verify(there, asked, seal(answer, asked, key), key.public_key())


def test_a_width_is_part_of_what_is_signed():
    update = MaskedUpdate("east", 1, "p", MASKED, 0.5, 2, 1.0, 3, 4, b"")
    narrow = replace(update, masked=MASKED.view(np.uint16))
    assert digest_of_answer(update) != digest_of_answer(narrow)


def test_a_share_moved_to_another_name_is_another_answer():
    one = Opening("east", 1, shares={"a": b"x", "b": b"y"})
    other = Opening("east", 1, shares={"a": b"y", "b": b"x"})
    third = Opening("east", 1, sealed={"a": b"x", "b": b"y"})
    assert len({digest_of_answer(x) for x in (one, other, third)}) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("sealed east", "text"), ("sealed east", 3), ("survivors", "east"), ("other", 1)],
)
def test_a_field_of_another_type_is_refused_by_name(name, value):
    order = OpenOrder("run", "p", 1, ("east",))
    message = SealedShares("east", 1, {"east": b"x"})
    one = message if name.startswith("sealed") else order
    record = to_record(one)
    facts = dict(record["facts"])
    record["facts"] = ConfigRecord({**facts, name: value})
    with pytest.raises(ContributionError, match=name.split()[0]):
        from_record(record, type(one))


def test_masked_numbers_are_no_floats():
    update = MaskedUpdate("east", 1, "p", MASKED, 0.5, 2, 1.0, 3, 4, b"")
    record = to_record(update)
    array = record["vectors"]["masked"]
    array.dtype = "<f4"
    with pytest.raises(ContributionError, match="expected one flat array"):
        from_record(record, MaskedUpdate)


def test_keys_and_shares_count_as_payload():
    assert payload_bytes(to_record(SealedShares("east", 1, {"a": bytes(160)}))) == 160
