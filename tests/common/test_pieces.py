import itertools
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.task_identity import TaskIdentity

from common.pieces import MalformedError, Pieces, send

MB = 1_000_000
ROOM = 100 * MB


@pytest.fixture(autouse=True)
def _identity(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def message(*contents: bytes) -> Message:
    record = ArrayRecord()
    for number, content in enumerate(contents):
        record[f"{number}"] = Array("u1", (len(content),), "raw", content)
    content = RecordDict({"facts": ConfigRecord({"a": 1}), "vectors": record})
    made = Message(content, 2, "train")
    made.metadata.__dict__["_message_id"] = made.object_id
    return made


def taken_apart(whole: Message) -> dict[str, bytes]:
    return {key: one.deflate() for key, one in get_all_nested_objects(whole).items()}


def random_bytes(size: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize(
    "contents",
    [
        (b"",),
        (b"abc",),
        (random_bytes(12 * MB), b"abc"),
        (bytes(16 * MB),),  # zeros: equal pieces
        (random_bytes(6 * MB), random_bytes(6 * MB)),
    ],
)
def test_a_message_comes_together_as_it_was_however_late_its_pieces_are(contents):
    whole = message(*contents)
    store = taken_apart(whole)
    pieces, there, tries = (
        Pieces(get_object_tree(whole), ROOM),
        set(),
        itertools.count(),
    )
    for key in (*store, None):
        reply = pieces.collect(lambda one: store[one] if one in there else None)
        if reply is not None:
            break
        assert key is not None, "never whole"
        there.add(key)
        next(tries)
    assert [a.data for a in reply.content["vectors"].values()] == list(contents)
    assert reply.content["facts"]["a"] == 1
    assert reply.object_id == whole.object_id


def test_what_is_sent_is_what_the_receiver_lacks_and_nothing_twice():
    whole = message(random_bytes(12 * MB))
    store, sent = taken_apart(whole), {}
    with no_object_id_recompute():
        wanted = set(store) - {next(iter(store))}
        send([whole, whole], lambda key, content: sent.update({key: content}), wanted)
    assert sent == {key: store[key] for key in wanted}


def test_an_error_while_sending_is_told():
    def full(key: str, content: bytes) -> None:
        raise OSError("no room")

    whole = message(random_bytes(20 * MB))
    with pytest.raises(OSError, match="no room"):
        send([whole], full, set(taken_apart(whole)))


def harmed(store: dict[str, bytes], kind: bytes, old: bytes, new: bytes):
    """The store with one object's bytes changed; the SuperLink would not take it."""
    return {
        key: one.replace(old, new) if one.startswith(kind) else one
        for key, one in store.items()
    }


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (b"Array ", b"[0", b"[9"),
        (b"Array ", b"arraychunk_ids", b"arraychunk_idz"),
        (b"Array ", b"dtype", b"dtipe"),
        (b"ArrayChunk", b"ArrayChunk", b"ArrayChank"),
        (b"RecordDict", b"vectors", b'"'),
        (b"Message", b"Message", b"Mistake"),
        (b"ConfigRecord", b"\x01a", b"\xff\xff"),  # protobuf's own error
        (b"RecordDict", b'{"', b"[" * 100_000),  # deeper than Python goes
    ],
)
def test_pieces_that_make_no_message_are_called_so(kind, old, new):
    whole = message(random_bytes(6 * MB))
    store = harmed(taken_apart(whole), kind, old, new)
    assert store != taken_apart(whole), "nothing was harmed"
    with pytest.raises(MalformedError):
        Pieces(get_object_tree(whole), ROOM).collect(store.__getitem__)


def test_one_small_piece_named_many_times_fills_no_memory():
    whole = message(bytes(16 * MB))  # four pieces, three of them one
    tree, store = get_object_tree(whole), taken_apart(whole)
    assert sum(map(len, store.values())) < 11 * MB
    assert Pieces(tree, 17 * MB).collect(store.__getitem__) is not None
    with pytest.raises(MalformedError, match="larger than any answer"):
        Pieces(tree, 15 * MB).collect(store.__getitem__)


def test_a_model_is_in_memory_once_while_it_is_received_and_sent(tmp_path):
    size = 60 * MB
    whole = message(random_bytes(size))
    for key, content in taken_apart(whole).items():
        (tmp_path / key).write_bytes(content)
    tree, wanted = get_object_tree(whole), {path.name for path in tmp_path.iterdir()}
    tracemalloc.start()
    try:
        with no_object_id_recompute():
            send([whole], lambda key, content: None, wanted)
        assert tracemalloc.get_traced_memory()[1] < 0.6 * size
        del whole
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        reply = Pieces(tree, ROOM).collect(lambda key: (tmp_path / key).read_bytes())
        assert len(reply.content["vectors"]["0"].data) == size
        assert tracemalloc.get_traced_memory()[1] - before < 1.4 * size
    finally:
        tracemalloc.stop()
