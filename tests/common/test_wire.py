import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ContributionError
from common.exchange import Hello, Judgement, JudgeOrder, TrainOrder, Update
from common.wire import from_record, payload_bytes, to_record, to_records

VECTORS = hnp.arrays(np.float32, st.integers(1, 64))


def update(delta: np.ndarray, **changes: object) -> Update:
    facts = {
        "site": "north",
        "round": 3,
        "plan_digest": "d",
        "cases": 7,
        "loss": 0.5,
        "steps": 2,
        "train_s": 0.1,
        "accepted": 9,
        "found": 10,
    }
    return Update(delta=delta, **{**facts, **changes})


@given(VECTORS, st.booleans())
def test_an_update_survives_the_wire_to_the_bit(delta, with_control):
    sent = update(delta, control_delta=delta[::-1].copy() if with_control else None)
    got = from_record(to_record(sent), Update)
    assert got.delta.tobytes() == delta.tobytes()
    assert (got.control_delta is None) == (not with_control)
    assert (got.site, got.cases, got.loss) == ("north", 7, 0.5)


@given(st.dictionaries(st.text("abc/", min_size=1), hnp.arrays(np.float64, 3)))
def test_sums_survive_the_wire_to_the_bit(sums):
    got = from_record(to_record(Judgement("s", 1, "test", sums)), Judgement)
    assert got.sums.keys() == sums.keys()
    assert all(got.sums[n].tobytes() == v.tobytes() for n, v in sums.items())


def test_sums_are_part_of_the_facts_and_counted():
    record = to_record(Judgement("s", 1, "test", {"dice": np.ones(3), "n": np.ones(1)}))
    assert list(record) == ["facts"]
    assert payload_bytes(record) == 32
    for wrong in (b"1234567", 1.5):
        record["facts"]["sum dice"] = wrong
        with pytest.raises(
            ContributionError, match=r"Judgement\.sums came with 'dice'"
        ):
            from_record(record, Judgement)


def test_a_vector_is_read_in_place_and_counted():
    record = to_record(update(np.ones(1000, np.float32)))
    assert payload_bytes(record) == 4000
    delta = from_record(record, Update).delta
    assert delta.base is not None
    assert not delta.flags.writeable


def test_a_record_is_freed_with_its_last_reference():
    gc.collect()
    gc.disable()  # what only the collector can free would pile up, a model a site
    try:
        record = to_record(update(np.ones(4, np.float32)))
        assert payload_bytes(record) == 16
        gone = weakref.ref(record)
        got = from_record(record, Update)
        del record
        assert gone() is None
        assert got.delta.sum() == 4  # its bytes live on in the answer
    finally:
        gc.enable()


def test_orders_to_many_sites_hold_the_model_once():
    model = np.zeros(10, np.float32)
    orders = {f"s{n}": TrainOrder("r", "d", 1, n, model, "x", None) for n in range(5)}
    records = to_records(orders)
    data = {id(r.array_records["vectors"]["model"].data) for r in records.values()}
    assert len(data) == 1
    assert [from_record(r, TrainOrder).state_round for r in records.values()] == [
        *range(5)
    ]


def broken(change) -> None:
    record = to_record(update(np.ones(4, np.float32)))
    change(record)
    from_record(record, Update)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r["facts"].update({"cases": 1.5}), "Update.cases came as float"),
        (lambda r: r["facts"].update({"round": True}), "Update.round came as bool"),
        (lambda r: r["facts"].pop("site"), "Update.site came as NoneType"),
        (lambda r: r["facts"].update({"extra": 1}), "unknown fields"),
        (lambda r: r["facts"].update({"kind": "Roster"}), "another kind"),
        (lambda r: r["vectors"].pop("delta"), "without its delta"),
        (
            lambda r: r["vectors"].update(
                {"delta": Array("<f4", (4,), "fedct.raw", b"\0" * 15)}
            ),
            "in 15 bytes",
        ),
        (
            lambda r: r["vectors"].update(
                {"delta": Array("<f8", (4,), "fedct.raw", b"\0" * 32)}
            ),
            "came as <f8",
        ),
        (
            lambda r: r["vectors"].update(
                {"delta": Array("<f4", (2, 2), "fedct.raw", b"\0" * 16)}
            ),
            "flat array",
        ),
        (lambda r: r.pop("facts"), "without its record of facts"),
    ],
)
def test_a_malformed_answer_is_refused_by_field(change, named):
    with pytest.raises(ContributionError, match=named):
        broken(change)


def test_an_order_of_another_kind_is_not_taken_for_this_one():
    with pytest.raises(ContributionError, match="expected JudgeOrder"):
        from_record(to_record(Hello("r", "d", "t", "l")), JudgeOrder)


def test_facts_are_plain_flower_records():
    record = to_record(update(np.ones(1, np.float32)))
    assert isinstance(record["facts"], ConfigRecord)
