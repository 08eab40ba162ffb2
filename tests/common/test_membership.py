import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score, roc_curve

from common.membership import at_most, guessed, membership_of

SCORES = hnp.arrays(
    np.float64, st.integers(1, 250), elements=st.integers(-50, 50).map(float)
)


@given(SCORES, SCORES)
def test_both_numbers_are_those_of_scikit_learn(members, others):
    truth = np.r_[np.ones(len(members)), np.zeros(len(others))]
    scores = np.r_[members, others]
    got = membership_of(members, others)
    assert got.auc == pytest.approx(roc_auc_score(truth, scores))
    wrong, right, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert got.found == pytest.approx(right[wrong <= 0.01].max())
    assert (got.members, got.others) == (len(members), len(others))


def test_a_perfect_attack_a_guess_and_a_wrong_one():
    low, high = np.arange(200.0), np.arange(200.0, 400.0)
    assert (membership_of(high, low).auc, membership_of(high, low).found) == (1, 1)
    assert membership_of(low, low).auc == 0.5
    assert membership_of(low, low).found == pytest.approx(0.01, abs=0.001)
    assert (membership_of(low, high).auc, membership_of(low, high).found) == (0, 0)


@pytest.mark.parametrize(("members", "others"), [(4, 2), (30, 12), (200, 60)])
def test_guesses_end_within_the_range_of_guessing_19_times_of_20(members, others):
    random = np.random.default_rng(7)
    low, high = guessed(members, others)
    aucs = [
        membership_of(random.random(members), random.random(others)).auc
        for _ in range(4000)
    ]
    within = np.mean([low <= auc <= high for auc in aucs])
    # With 4 and 2 an AUC has nine values only, and the range is all of them.
    assert 0.94 <= within <= (1.0 if others == 2 else 0.96)


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
@pytest.mark.parametrize(("members", "others"), [(30, 12), (200, 60)])
def test_the_true_auc_is_within_what_few_cases_leave_room_for(shift, members, others):
    random = np.random.default_rng(7)
    true = statistics.NormalDist().cdf(shift / 2**0.5)  # of normal scores
    aucs = [
        membership_of(random.normal(shift, 1, members), random.normal(0, 1, others)).auc
        for _ in range(2000)
    ]
    within = np.mean([true <= at_most(auc, members, others) for auc in aucs])
    assert within >= 0.965
    assert at_most(0.99, members, others) == 1.0
