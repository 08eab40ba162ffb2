"""AUC: against scikit-learn, within the stated error, and additive."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from common.metrics.ranking import BINS, auc_of, score_bins


def _auc(scores: np.ndarray, labels: np.ndarray, **bins) -> tuple[float, float]:
    own, rest = (score_bins(scores[labels == c], **bins) for c in (1, 0))
    found = auc_of(own, rest)
    assert found is not None
    return found


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-4, 0.01, 1.0, 10.0]))
def test_agrees_with_scikit_learn_within_the_error_it_states(seed, scale):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(60) % 3 == 0).astype(int)
    scores = scale * (rng.normal(size=60) + labels)
    auc, error = _auc(scores, labels, fine=0.01, limit=20.0)
    assert abs(auc - roc_auc_score(labels, scores)) <= error + 1e-12


def test_scores_of_a_trained_network_lose_almost_nothing():
    rng = np.random.default_rng(1)
    labels = (np.arange(500) % 2).astype(int)
    scores = 3 * rng.normal(size=500) + 2 * labels
    auc, error = _auc(scores, labels, fine=0.01, limit=20.0)
    assert error < 0.003
    assert auc == pytest.approx(roc_auc_score(labels, scores), abs=0.001)


def test_ties_count_one_half_as_in_scikit_learn():
    scores, labels = np.array([1.0, 1.0, 1.0, 2.0]), np.array([0, 1, 0, 1])
    auc, _ = _auc(scores, labels, fine=0.01, limit=20.0)
    assert auc == roc_auc_score(labels, scores) == 0.75


@pytest.mark.parametrize("far", [1e306, np.inf])
def test_scores_beyond_the_limit_fall_in_the_outer_bins(far):
    counts = score_bins(np.array([far, 2e6, 0.0, -far]), fine=1e-3, limit=1e6)
    assert np.flatnonzero(counts).tolist() == [0, BINS // 2, BINS - 1]
    assert counts[BINS - 1] == 2


def test_histograms_of_two_sites_give_the_auc_of_all_pairs():
    # Inside each site the ranking is perfect, between the sites it is not.
    here = np.array([1.0, 2.0]), np.array([0, 1])
    there = np.array([3.0, 4.0]), np.array([0, 1])
    scores, labels = np.concatenate([here[0], there[0]]), np.array([0, 1, 0, 1])
    parts = [
        [score_bins(s[t == c], 0.01, 20.0) for c in (1, 0)] for s, t in (here, there)
    ]
    added = auc_of(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
    assert added is not None
    assert added[0] == roc_auc_score(labels, scores) == 0.75


def test_order_is_kept_over_the_whole_range_and_outliers_stay_in():
    values = np.array([-1e9, -5.0, -0.001, 0.0, 0.001, 5.0, 1e9])
    bins = [int(np.argmax(score_bins(values[i : i + 1], 0.01, 20))) for i in range(7)]
    assert bins == sorted(bins)
    assert (bins[0], bins[-1]) == (0, BINS - 1)
    assert len(set(bins)) >= 6


def test_no_auc_without_both_classes():
    some = score_bins(np.array([1.0]), 0.01, 20.0)
    assert auc_of(some, np.zeros(BINS)) is None
    assert auc_of(np.zeros(BINS), some) is None
