import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from common.one_run import chance_of, epsilon_at_least, guesses_right


def by_the_paper(m, r, v, eps, delta):
    """`p_value_DP_audit` of Steinke 2023, appendix D, in its own loops."""
    q = 1 / (1 + math.exp(-eps))
    beta = binom.sf(v - 1, r, q)
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(beta + alpha * delta * 2 * m, 1)


@given(st.data())
def test_the_chance_is_that_of_the_paper(data):
    m = data.draw(st.integers(1, 120))
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    eps = data.draw(st.floats(0, 8))
    delta = data.draw(st.sampled_from([0.0, 1e-5, 1e-2]))
    assert chance_of(m, r, v, eps, delta) == pytest.approx(
        by_the_paper(m, r, v, eps, delta), rel=1e-9, abs=1e-300
    )


def test_with_every_guess_right_the_bound_is_known():
    """q^r = doubt, so epsilon = log(q / (1 - q)) with q = doubt^(1/r)."""
    for r in (10, 100, 300):
        q = 0.05 ** (1 / r)
        bound = epsilon_at_least(1000, r, r, 0.0)
        assert bound == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_guessing_refutes_nothing():
    for right in (0, 100, 150, 160):
        assert epsilon_at_least(1000, 300, right, 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_is_bounded_rightly_and_tightly(epsilon):
    """Each coin is told truly with chance e^eps / (1 + e^eps): exactly epsilon-DP."""
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(200):
        coins = rng.random(1000) < 0.5
        honest = rng.random(1000) < 1 / (1 + math.exp(-epsilon))
        right = guesses_right(np.where(honest, coins, ~coins) * 1.0, coins, 1000)
        bounds.append(epsilon_at_least(1000, 1000, right, 0.0))
    too_high = np.mean([bound > epsilon for bound in bounds])
    assert too_high < 0.1  # 0.05 and chance
    assert np.median(bounds) > 0.6 * epsilon


def test_more_right_guesses_and_less_delta_bound_more():
    bounds = [epsilon_at_least(1000, 300, v, 1e-5) for v in range(170, 301, 10)]
    assert bounds == sorted(bounds)
    assert bounds[-1] > bounds[0]
    assert epsilon_at_least(1000, 300, 290, 1e-3) < epsilon_at_least(1000, 300, 290, 0)


def test_the_highest_are_guessed_inside_and_the_lowest_outside():
    inside = np.array([True, False, True, False, True, False])
    scores = np.array([3.0, -3.0, 2.0, 0.0, 0.0, 1.0])
    assert guesses_right(scores, inside, 2) == 2
    assert guesses_right(-scores, inside, 2) == 0
