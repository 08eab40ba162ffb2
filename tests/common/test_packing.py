import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from common.exchange import TrainOrder, Update
from common.packing import Packer, unpack
from common.parts import PART_BYTES
from common.pieces import MalformedError
from common.wire import from_record, to_record, to_records


@pytest.fixture(autouse=True, scope="module")
def _identity():
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("_task_id", "_run_id", "_node_id"):
            monkeypatch.setattr(TaskIdentity, name, 1)
        yield


def message(content: RecordDict) -> Message:
    return Message(content, 2, "train")


def nowhere(*_: object) -> bytes:
    raise AssertionError("a small array was handed over")


def packed(plain: Message) -> Message:
    return Packer(nowhere).pack(plain)


def unpacked(sent: Message) -> RecordDict:
    unpack(sent, nowhere, 1 << 30)
    return sent.content


def update(size: int) -> Update:
    delta = np.arange(size, dtype=np.float32)
    return Update("north", 3, "d", delta, 7, 0.5, 2, 0.1, 9, 10)


def order(model: np.ndarray, nonce: str) -> TrainOrder:
    return TrainOrder("r", "d", 1, 0, model, "x", nonce=nonce)


@given(st.integers(0, 300))
def test_a_small_message_comes_back_as_it_was(size):
    got = from_record(unpacked(packed(message(to_record(update(size))))), Update)
    assert got.delta.tobytes() == update(size).delta.tobytes()
    assert vars(got).keys() == vars(update(size)).keys()
    assert (got.site, got.cases, got.loss) == ("north", 7, 0.5)


def test_an_answer_has_half_as_many_pieces_and_orders_share_theirs():
    plain = message(to_record(update(100)))
    assert len(get_all_nested_objects(plain)) == 6
    assert len(get_all_nested_objects(packed(plain))) == 4
    model = np.ones(1000, np.float32)
    records = to_records({name: order(model, name) for name in ("north", "west")})
    pieces = [get_all_nested_objects(packed(message(r))) for r in records.values()]
    shared = set(pieces[0]) & set(pieces[1])
    assert len(shared) == 1
    assert len(pieces[0][shared.pop()].deflate()) > model.nbytes


def test_a_large_vector_is_handed_over_once_for_all_who_share_it():
    model, store, puts = np.arange(2_000_000, dtype=np.float32), {}, []

    def put(digest: str, content: memoryview) -> None:
        puts.append(digest)
        store[digest] = bytes(content)

    records = to_records({name: order(model, name) for name in ("north", "west")})
    packer = Packer(put)
    sent = [packer.pack(message(record)) for record in records.values()]
    assert len(puts) == -(-model.nbytes // PART_BYTES)
    for one in sent:
        assert sum(len(o.deflate()) for o in get_all_nested_objects(one).values()) < 4e3
        unpack(one, store.__getitem__, model.nbytes)
        assert from_record(one.content, TrainOrder).model.tobytes() == model.tobytes()


def test_more_arrays_than_allowed_are_refused_together():
    vectors = {name: Array("u1", (300_000,), "raw", bytes(300_000)) for name in "ab"}
    store: dict[str, bytes] = {}
    packer = Packer(lambda digest, part: store.update({digest: bytes(part)}))
    sent = packer.pack(message(RecordDict({"vectors": ArrayRecord(vectors)})))
    again = Message(RecordDict(dict(sent.content)), 2, "train")
    with pytest.raises(MalformedError, match="larger"):
        unpack(sent, store.__getitem__, 500_000)
    unpack(again, store.__getitem__, 600_000)
    assert len(again.content["vectors"]) == 2


def test_arrays_alone_come_back_too():
    record = to_record(update(10))
    sent = packed(message(RecordDict({"vectors": record["vectors"]})))
    assert unpacked(sent)["vectors"]["delta"].data == update(10).delta.tobytes()


def test_what_was_packed_is_not_touched():
    plain = message(to_record(update(10)))
    before = list(plain.content)
    packed(plain)
    assert list(plain.content) == before


@pytest.mark.parametrize(
    "content",
    [
        {"packed rest": ConfigRecord({"content": b"\xff\xff\xff"})},
        {"packed rest": ConfigRecord({"content": 7})},
        {"packed rest": ConfigRecord({"other": b""})},
        {"packed rest": ArrayRecord({"content": Array("u1", (1,), "raw", b"a")})},
        {"parted arrays": ConfigRecord({"vectors": "{}"})},
        {"parted arrays": ConfigRecord({"vectors": 7})},
        {"vectors": ArrayRecord({"delta": Array("u1", (1,), "raw", b"a")})},
        {"facts": ConfigRecord({"a": 1})},
    ],
)
def test_what_nobody_packed_is_malformed_and_no_crash(content):
    with pytest.raises(MalformedError):
        unpacked(message(RecordDict(content)))
