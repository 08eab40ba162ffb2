import math

from server.record import RoundRecord
from server.summary import best_round, mean_metrics, stop_reason
from tests.plans import plan


def record(number: int, score: float | None, outcome="closed") -> RoundRecord:
    return RoundRecord(
        number=number,
        outcome=outcome,
        sites=[],
        validation_mean={} if score is None else {"dice": score},
        model_digest="",
        seconds=0.0,
    )


def test_the_best_round_is_the_first_of_equals():
    records = [record(1, 0.1), record(2, 0.9), record(3, 0.9)]
    assert best_round(records, "dice") == 2


def test_a_score_that_is_not_finite_never_wins():
    assert best_round([record(1, 0.1), record(2, math.nan)], "dice") == 1


def test_without_any_score_the_last_closed_round_is_best():
    records = [record(1, None), record(2, None), record(3, None, "void")]
    assert best_round(records, "dice") == 2
    assert best_round([record(1, None, "void")], "dice") == 0


def test_a_run_ends_after_too_many_void_rounds_in_a_row():
    p = plan(federation__rounds=9, federation__max_void_rounds=2)
    voids = [record(1, 0.5), record(2, None, "void"), record(3, None, "void")]
    assert stop_reason(voids, p, "dice") == "void rounds"
    assert stop_reason(voids[:2], p, "dice") is None


def test_void_rounds_from_before_a_resume_do_not_stop_it_again():
    p = plan(federation__rounds=9, federation__max_void_rounds=2)
    voids = [record(n, None, "void") for n in (1, 2)]
    assert stop_reason(voids, p, "dice") == "void rounds"
    assert stop_reason(voids, p, "dice", resumed_at=2) is None
    again = [*voids, record(3, None, "void"), record(4, None, "void")]
    assert stop_reason(again[:3], p, "dice", resumed_at=2) is None
    assert stop_reason(again, p, "dice", resumed_at=2) == "void rounds"


def test_patience_counts_from_the_best_round():
    p = plan(federation__rounds=9, federation__early_stop_rounds=2)
    records = [record(1, 0.5), record(2, 0.4), record(3, 0.4)]
    assert stop_reason(records[:2], p, "dice") is None
    assert stop_reason(records, p, "dice") == "early stop"


def test_means_count_each_site_once_and_skip_what_is_undefined():
    by_site = {"a": {"dice": 0.2, "auc": math.nan}, "b": {"dice": 0.6, "auc": 0.9}}
    means = mean_metrics(by_site)
    assert math.isclose(means["dice"], 0.4)
    assert means["auc"] == 0.9
