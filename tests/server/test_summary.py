import math

import numpy as np

from server.record import RoundRecord
from server.summary import best_round, mean_metrics, stop_reason
from tests.plans import plan


def judged(number: int, outcome="closed", **scores: float) -> RoundRecord:
    """A round that these sites judged."""
    validation = {site: {"dice": score} for site, score in scores.items()}
    return RoundRecord(
        number=number,
        outcome=outcome,
        sites=[],
        validation=validation,
        validation_mean=mean_metrics(validation),
        model_digest="",
        seconds=0.0,
    )


def record(number: int, score: float | None, outcome="closed") -> RoundRecord:
    return judged(number, outcome, **({} if score is None else {"north": score}))


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


def test_patience_counts_measurements_and_not_the_rounds_between_them():
    p = plan(federation__rounds=20, federation__early_stop_rounds=2)
    scores = {3: 0.5, 6: 0.4, 9: 0.4}
    records = [record(n, scores.get(n)) for n in range(1, 10)]
    assert stop_reason(records[:5], p, "dice") is None
    assert stop_reason(records[:8], p, "dice") is None
    assert stop_reason(records, p, "dice") == "early stop"


def test_a_round_is_not_best_because_the_hardest_hospital_failed_to_judge_it():
    records = [
        judged(1, easy=0.9, middle=0.6, hard=0.3),
        judged(2, easy=0.85, middle=0.58),
        judged(3, easy=0.91, middle=0.61, hard=0.32),
    ]
    assert best_round(records[:2], "dice") == 1
    assert best_round(records, "dice") == 3


def test_a_round_that_few_hospitals_judged_says_too_little():
    records = [judged(1, a=0.5, b=0.5, c=0.5, d=0.5), judged(2, a=0.9, b=0.9)]
    assert best_round(records, "dice") == 1


def test_a_hospital_that_left_for_good_does_not_end_the_search():
    records = [
        judged(1, a=0.5, b=0.5, c=0.9),
        *[judged(n, a=0.5 + n / 100, b=0.5) for n in range(2, 30)],
    ]
    assert best_round(records, "dice") == 29


def test_the_lead_only_ever_passes_to_the_newest_round():
    random = np.random.default_rng(1)
    for _ in range(200):
        records = [
            judged(n, **{s: random.random() for s in "abcd" if random.random() > 0.3})
            for n in range(1, 12)
        ]
        for n in range(1, 12):
            before, after = (best_round(records[:k], "dice") for k in (n - 1, n))
            assert after in (before, n)


def test_means_count_each_site_once_and_skip_what_is_undefined():
    by_site = {"a": {"dice": 0.2, "auc": math.nan}, "b": {"dice": 0.6, "auc": 0.9}}
    means = mean_metrics(by_site)
    assert math.isclose(means["dice"], 0.4)
    assert means["auc"] == 0.9
