import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st

from common.exchange import TrainOrder, Update
from common.packing import packed, unpack
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


def update(size: int) -> Update:
    delta = np.arange(size, dtype=np.float32)
    return Update("north", 3, "d", delta, 7, 0.5, 2, 0.1, 9, 10)


def order(model: np.ndarray, nonce: str) -> TrainOrder:
    return TrainOrder("r", "d", 1, 0, model, "x", nonce=nonce)


@given(st.integers(0, 300))
def test_a_small_message_comes_back_as_it_was(size):
    sent = packed(message(to_record(update(size))))
    unpack(sent)
    got = from_record(sent.content, Update)
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


def test_a_large_vector_keeps_its_form():
    large = message(to_record(update(2_000_000)))
    sent = packed(large)
    assert sent.content["vectors"] is large.content["vectors"]
    unpack(sent)
    assert from_record(sent.content, Update).delta.size == 2_000_000


def test_arrays_alone_come_back_too():
    record = to_record(update(10))
    sent = packed(message(RecordDict({"vectors": record["vectors"]})))
    unpack(sent)
    assert sent.content["vectors"]["delta"].data == update(10).delta.tobytes()


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
    ],
)
def test_what_nobody_packed_is_malformed_and_no_crash(content):
    with pytest.raises(MalformedError):
        unpack(message(RecordDict(content)))
