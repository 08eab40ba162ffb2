import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ContributionError, QuorumError
from server.aggregate import WeightedMean

VALUES = st.floats(-100, 100, width=32)


@given(
    hnp.arrays(np.float32, (4, 9), elements=VALUES),
    st.lists(st.integers(1, 1000), min_size=4, max_size=4),
)
def test_the_stream_equals_the_batch_mean(deltas, weights):
    mean = WeightedMean(9, min_sites=2)
    for n, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
        mean.add(f"s{n}", delta, weight)
    expected = np.average(deltas.astype(np.float64), axis=0, weights=weights)
    assert np.allclose(mean.mean(), expected, rtol=1e-5, atol=1e-4)


def test_one_order_of_folding_gives_one_result_to_the_bit():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(8, 100_000)).astype(np.float32)

    def fold() -> bytes:
        mean = WeightedMean(100_000, min_sites=1)
        for n, delta in enumerate(deltas):
            mean.add(f"s{n}", delta, n + 1)
        return mean.mean().tobytes()

    assert fold() == fold()


def good() -> np.ndarray:
    return np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("site", "delta", "weight", "named"),
    [
        ("a", good(), 1, "replied twice"),
        ("b", np.ones(1, np.float32), 1, r"float32\[1\], expected float32\[4\]"),
        ("b", np.ones((2, 2), np.float32), 1, "expected float32"),
        ("b", np.ones(4, np.float64), 1, "sent float64"),
        ("b", np.array([1, np.nan, 1, 1], np.float32), 1, "norm nan"),
        ("b", np.array([1, np.inf, 1, 1], np.float32), 1, "norm inf"),
        ("b", np.full(4, 1e30, np.float32), 1, "diverged"),
        ("b", np.full(4, 1e7, np.float32), 1, "diverged"),
        ("b", good(), 0, "weight of 0"),
        ("b", good(), -1, "weight of -1"),
        ("b", good(), 1e12, "weight of 1"),
        ("b", good(), float("nan"), "weight of nan"),
    ],
)
def test_a_refused_update_is_named_and_leaves_no_trace(site, delta, weight, named):
    mean = WeightedMean(4, min_sites=1)
    mean.add("a", np.full(4, 2, np.float32), 3)
    with pytest.raises(ContributionError, match=named):
        mean.add(site, delta, weight)
    assert mean.weights == {"a": 1.0}
    assert np.array_equal(mean.mean(), np.full(4, 2, np.float32))


@pytest.mark.parametrize("usual", [1e-6, 0.3, 7.0])
def test_an_update_is_held_against_the_usual_norm(usual):
    unit = np.full(4, 0.5, np.float32)
    for times, taken in ((1000, False), (101, False), (99, True), (0.001, True)):
        mean = WeightedMean(4, min_sites=1, usual_norm=usual)
        delta = (unit * usual * times).astype(np.float32)
        if taken:
            assert mean.add("a", delta, 1) == pytest.approx(usual * times)
            continue
        with pytest.raises(ContributionError, match="diverged"):
            mean.add("a", delta, 1)


def test_the_largest_norm_holds_whatever_is_usual():
    for usual in (None, 0.0, 1e9):
        mean = WeightedMean(1, min_sites=1, usual_norm=usual)
        mean.add("a", np.array([9e5], np.float32), 1)
        with pytest.raises(ContributionError, match="diverged"):
            mean.add("b", np.array([1.1e6], np.float32), 1)


def test_there_is_no_mean_below_quorum():
    mean = WeightedMean(4, min_sites=2)
    mean.add("a", good(), 1)
    with pytest.raises(QuorumError, match="1 accepted sites, expected at least 2"):
        mean.mean()


def test_shares_sum_to_one_and_follow_the_weights():
    mean = WeightedMean(4, min_sites=1)
    mean.add("a", good(), 30)
    mean.add("b", good(), 10)
    assert mean.weights == {"a": 0.75, "b": 0.25}


def test_memory_does_not_grow_with_the_number_of_sites():
    size = 500_000

    def peak(sites: int) -> int:
        tracemalloc.start()
        mean = WeightedMean(size, min_sites=1)
        for n in range(sites):
            mean.add(f"s{n}", np.full(size, n, np.float32), 1)
        mean.mean()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(2), peak(20)
    assert many < few + size  # a quarter of one update; 18 more would be 72 times that
    assert many < 2.5 * 4 * size
