"""Large arrays beside their messages: whole, the right ones, and in memory once."""

import hashlib
import json
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array
from hypothesis import given
from hypothesis import strategies as st

from common.parts import (
    PART_BYTES,
    Parted,
    fetch,
    hand_over,
    read_parted,
    write_parted,
)
from common.pieces import MalformedError

MOST = 1 << 30


def array(content: bytes) -> Array:
    return Array("u1", (len(content),), "raw", content)


def random_array(size: int, seed: int = 1) -> Array:
    return array(np.random.default_rng(seed).bytes(size))


class Store(dict[str, bytes]):
    def put(self, digest: str, content: memoryview) -> None:
        self[digest] = bytes(content)


@pytest.mark.parametrize(
    "size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7]
)
def test_an_array_comes_back_as_it_was(size):
    store, one = Store(), random_array(size)
    (parted,) = read_parted(write_parted({"a": hand_over(one, store.put)})).values()
    back = fetch(parted, store.__getitem__, MOST)
    assert (back.dtype, back.shape, back.stype) == (one.dtype, one.shape, one.stype)
    assert back.data == one.data
    assert {k: hashlib.sha256(v).hexdigest() == k for k, v in store.items()} == (
        dict.fromkeys(parted.parts, True)
    )


def test_equal_parts_are_one_file():
    store = Store()
    parted = hand_over(array(bytes(3 * PART_BYTES)), store.put)
    assert (len(store), len(parted.parts)) == (1, 3)
    assert fetch(parted, store.__getitem__, MOST).data == bytes(3 * PART_BYTES)


def test_what_is_larger_than_allowed_is_refused_before_anything_is_fetched():
    parted = hand_over(random_array(1000), Store().put)
    with pytest.raises(MalformedError, match="larger than any answer"):
        fetch(parted, lambda digest: pytest.fail("fetched"), 999)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 2 * PART_BYTES + 10},
        {"size": 1},
        {"size": PART_BYTES + 999},
        {"parts": []},
    ],
)
def test_parts_that_do_not_fit_are_malformed(change):
    store = Store()
    whole = hand_over(random_array(PART_BYTES + 1000), store.put)
    with pytest.raises(MalformedError):
        fetch(whole.model_copy(update=change), store.__getitem__, MOST)


def test_a_part_that_was_changed_is_not_taken():
    store = Store()
    parted = hand_over(random_array(PART_BYTES + 1000), store.put)
    last = bytearray(store[parted.parts[1]])
    last[500] ^= 1
    store[parted.parts[1]] = bytes(last)
    with pytest.raises(MalformedError, match="part 2 is not what it is called"):
        fetch(parted, store.__getitem__, MOST)


def test_an_error_on_the_way_is_the_callers():
    def broken(*_: object) -> bytes:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        hand_over(random_array(10), broken)
    parted = hand_over(random_array(3 * PART_BYTES), Store().put)
    with pytest.raises(ConnectionError):
        fetch(parted, broken, MOST)


FINE = Parted(dtype="u1", shape=[1], stype="raw", size=1, parts=["0" * 64])


@pytest.mark.parametrize(
    "change",
    [
        {"parts": ["../../ca/ca.key"]},
        {"parts": ["0" * 64 + "\n"]},
        {"parts": ["A" * 64]},
        {"parts": "0" * 64},
        {"size": -1},
        {"size": "1"},
        {"shape": [-1]},
        {"dtype": "x" * 33},
        {"more": 1},
    ],
)
def test_what_names_no_parts_is_malformed(change):
    said = json.loads(write_parted({"a": FINE}))
    said["arrays"]["a"] |= change
    with pytest.raises(MalformedError):
        read_parted(json.dumps(said))
    assert read_parted(write_parted({"a": FINE})) == {"a": FINE}


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_no_text_is_more_than_malformed(text):
    with pytest.raises(MalformedError):
        read_parted(text)


def test_an_array_is_in_memory_once_while_it_passes(tmp_path):
    size = 60_000_000
    one = random_array(size)
    tracemalloc.start()
    try:
        parted = hand_over(one, lambda d, part: None)
        assert tracemalloc.get_traced_memory()[1] < 0.1 * size
        hand_over(one, lambda digest, part: (tmp_path / digest).write_bytes(part))
        del one
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        back = fetch(parted, lambda digest: (tmp_path / digest).read_bytes(), MOST)
        assert len(back.data) == size
        assert tracemalloc.get_traced_memory()[1] - before < 1.4 * size
    finally:
        tracemalloc.stop()
