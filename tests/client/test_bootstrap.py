"""Intervals are those of drawing patients, case by case, and no narrower."""

import numpy as np
import pytest

from client.bootstrap import estimate
from common.task import add_sums
from common.tasks.catalog import task_of
from tests.plans import plan


def mean(sums):
    if not sums["n"][0]:
        return {}
    return {"mean": float(sums["x"][0] / sums["n"][0])}


def patient(*values: float):
    return {"x": np.array([sum(values)]), "n": np.array([float(len(values))])}


def test_it_equals_drawing_patients_one_by_one():
    rng = np.random.default_rng(1)
    patients = [patient(*rng.normal(size=rng.integers(1, 4))) for _ in range(12)]
    found = estimate(patients, mean, seed=7, resamples=100)["mean"]
    drawn = []
    draws = np.random.default_rng(7)
    for size in (64, 36):
        for times in draws.multinomial(12, np.full(12, 1 / 12), size=size):
            total = {}
            for one, count in zip(patients, times, strict=True):
                for _ in range(count):
                    total = add_sums(total, one)
            drawn.append(mean(total)["mean"])
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]))


def test_the_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    found = estimate([patient(v) for v in values], mean, seed=1)["mean"]
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert found.value - found.low == pytest.approx(half, rel=0.1)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for seed in range(200):
        values = rng.normal(0.0, 1.0, 40)
        found = estimate([patient(v) for v in values], mean, seed=seed, resamples=300)
        hits += found["mean"].low <= 0.0 <= found["mean"].high
    assert 0.89 <= hits / 200 <= 0.98


def test_more_images_of_the_same_patients_do_not_narrow_it():
    values = np.random.default_rng(0).normal(size=30)
    once = estimate([patient(v) for v in values], mean, seed=1)["mean"]
    often = estimate([patient(*[v] * 50) for v in values], mean, seed=1)["mean"]
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_the_seed_decides_it():
    patients = [patient(v) for v in np.random.default_rng(0).normal(size=20)]
    first = estimate(patients, mean, seed=1)
    assert estimate(patients, mean, seed=1) == first
    assert estimate(patients, mean, seed=2) != first


def test_one_patient_has_a_value_and_no_interval():
    found = estimate([patient(1.0, 2.0)], mean, seed=1)["mean"]
    assert (found.value, found.low, found.high) == (1.5, None, None)


def test_a_metric_that_few_resamples_have_gets_no_interval():
    patients = [patient(1.0)] + [patient()] * 19
    found = estimate(patients, mean, seed=1)["mean"]
    assert (found.value, found.low, found.high) == (1.0, None, None)


def test_sums_that_only_some_patients_have_count_as_nothing_for_the_others():
    task = task_of(plan(evaluation__surface=True))
    some = {
        "cases": np.ones(1),
        "dice": np.array([0.8]),
        "dice.count": np.ones(1),
    }
    more = {**some, "hd95_mm": np.array([3.0]), "hd95_mm.count": np.ones(1)}
    more |= {"assd_mm": np.array([1.0]), "assd_mm.count": np.ones(1)}
    for name in ("iou", "precision", "recall"):
        for sums in (some, more):
            sums |= {name: np.array([0.5]), f"{name}.count": np.ones(1)}
    found = estimate([some] * 3 + [more] * 9, task.summarise, seed=1, resamples=50)
    assert found["dice"].value == pytest.approx(0.8)
    assert found["hd95_mm"].low == found["hd95_mm"].high == pytest.approx(3.0)
