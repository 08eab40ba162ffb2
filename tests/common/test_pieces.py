import itertools

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from common.pieces import MOST_BYTES, MalformedError, Pieces, send


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(*contents: bytes) -> Message:
    records = {f"{n}": ConfigRecord({"c": one}) for n, one in enumerate(contents)}
    made = Message(RecordDict(records), 2, "train")
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def taken_apart(whole: Message) -> dict[str, bytes]:
    return {key: one.deflate() for key, one in get_all_nested_objects(whole).items()}


def random_bytes(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize(
    "contents", [(b"",), (b"abc", b"abc"), (random_bytes(500_000), b"abc")]
)
def test_a_message_comes_together_as_it_was_however_late_its_pieces_are(contents):
    whole = message(*contents)
    store = taken_apart(whole)
    pieces, there, tries = Pieces(get_object_tree(whole)), set(), itertools.count()
    for key in (*store, None):
        reply = pieces.collect(lambda one: store[one] if one in there else None)
        if reply is not None:
            break
        assert key is not None, "never whole"
        there.add(key)
        next(tries)
    assert [one["c"] for one in reply.content.values()] == list(contents)
    assert next(tries) == len(store)
    assert reply.object_id == whole.object_id


def test_what_is_sent_is_what_the_receiver_lacks_and_nothing_twice():
    whole = message(b"abc", b"def")
    store, sent = taken_apart(whole), []
    with no_object_id_recompute():
        wanted = set(store) - {next(iter(store))}
        send([whole, whole], lambda key, content: sent.append((key, content)), wanted)
    assert dict(sent) == {key: store[key] for key in wanted}
    assert len(sent) == len(wanted)


def test_an_error_while_sending_is_told():
    def full(key: str, content: bytes) -> None:
        raise OSError("no room")

    whole = message(b"abc")
    with pytest.raises(OSError, match="no room"):
        send([whole], full, set(taken_apart(whole)))


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (b"RecordDict", b'"0"', b'"'),
        (b"RecordDict", b'{"', b"[" * 100_000),  # deeper than Python goes
        (b"Message", b"Message", b"Mistake"),
        (b"ConfigRecord", b"abc", b"\xff\xff\xff\xff\xff"),  # protobuf's own error
        (b"ConfigRecord", b"ConfigRecord", b"ConfigRecorb"),
    ],
)
def test_pieces_that_make_no_message_are_called_so(kind, old, new):
    """The SuperLink would not take most of them; it is not asked to protect the hub."""
    whole = message(b"abc")
    store = taken_apart(whole)
    harmed = {
        key: one.replace(old, new) if one.startswith(kind) else one
        for key, one in store.items()
    }
    assert harmed != store, "nothing was harmed"
    with pytest.raises(MalformedError):
        Pieces(get_object_tree(whole)).collect(harmed.__getitem__)


def test_a_message_larger_than_any_is_refused_before_it_is_whole():
    whole = message(*(bytes([n]) * (MOST_BYTES // 3) for n in range(4)))
    store, asked = taken_apart(whole), []

    def pull(key: str) -> bytes:
        asked.append(key)
        return store[key]

    with pytest.raises(MalformedError, match="larger than any message"):
        Pieces(get_object_tree(whole)).collect(pull)
    assert len(asked) < len(store)
