import math

import opacus.accountants
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from common.accounting import (
    LEAST_NOISE,
    MOST_NOISE,
    Cost,
    NoisySteps,
    _renyi,
    cost_of,
    noise_for,
)
from common.errors import PlanError

DELTA = 1e-5


def test_the_larger_accountant_is_what_is_published():
    assert Cost(pld=1.0, prv=1.1, delta=DELTA).epsilon == 1.1
    assert Cost(pld=1.2, prv=1.1, delta=DELTA).epsilon == 1.2


@pytest.mark.parametrize(
    ("patients", "batch", "steps", "sigma", "epsilon"),
    [
        (500, 8, 3100, 1.0, 5.5),  # 50 rounds of one epoch
        (500, 8, 3100, 2.0, 1.9),
        (200, 4, 2500, 1.0, 6.4),
        (200, 4, 2500, 2.0, 2.2),
    ],
)
def test_known_figures_by_both_accountants(patients, batch, steps, sigma, epsilon):
    cost = cost_of([NoisySteps(batch / patients, sigma, steps)], DELTA)
    assert round(cost.epsilon, 1) == epsilon
    assert cost.pld == pytest.approx(epsilon, abs=0.06)
    assert abs(cost.pld - cost.prv) <= 0.01 + 0.01 * cost.pld


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """Exact, by Balle and Wang (2018, arXiv 1805.06530, theorem 8)."""

    def gap(epsilon: float) -> float:
        a, b = 0.5 / sigma, epsilon * sigma
        return norm.cdf(a - b) - math.exp(epsilon) * norm.cdf(-a - b) - delta

    return brentq(gap, 0.0, 50.0)


@pytest.mark.parametrize(("sigma", "steps"), [(5.0, 20), (2.0, 1), (10.0, 300)])
def test_without_sampling_it_is_the_gaussian_mechanism(sigma, steps):
    """T Gaussian mechanisms are one with noise smaller by the root of T."""
    exact = gaussian_epsilon(sigma / math.sqrt(steps), DELTA)
    cost = cost_of([NoisySteps(1.0, sigma, steps)], DELTA)
    assert exact <= cost.pld <= exact + 0.01
    assert exact - 1e-4 <= cost.prv <= exact + 0.03


def test_steps_add_up_in_any_order_and_any_grouping():
    a, b = NoisySteps(0.02, 1.2, 100), NoisySteps(0.03, 1.5, 40)
    halves = [NoisySteps(0.02, 1.2, 50), b, NoisySteps(0.02, 1.2, 50)]
    together = cost_of([a, b], DELTA)
    assert cost_of(halves, DELTA) == together
    alone = [cost_of([some], DELTA) for some in (a, b)]
    assert max(c.epsilon for c in alone) < together.epsilon
    assert together.epsilon < sum(c.epsilon for c in alone)
    assert cost_of([], DELTA) == Cost(0.0, 0.0, DELTA)


def test_more_patients_more_noise_and_fewer_steps_cost_less():
    usual = cost_of([NoisySteps(0.02, 1.0, 100)], DELTA).epsilon
    assert cost_of([NoisySteps(0.01, 1.0, 100)], DELTA).epsilon < usual
    assert cost_of([NoisySteps(0.02, 1.1, 100)], DELTA).epsilon < usual
    assert cost_of([NoisySteps(0.02, 1.0, 90)], DELTA).epsilon < usual
    assert cost_of([NoisySteps(0.02, 1.0, 100)], 1e-4).epsilon < usual


@pytest.mark.parametrize(("epsilon", "rate"), [(2.0, 0.05), (8.0, 0.2)])
def test_noise_is_just_enough_for_its_epsilon(epsilon, rate):
    sigma = noise_for(epsilon, DELTA, rate, 200)
    assert cost_of([NoisySteps(rate, sigma, 200)], DELTA).epsilon <= epsilon
    less = NoisySteps(rate, sigma - 0.02, 200)
    assert cost_of([less], DELTA).epsilon > epsilon


def test_an_epsilon_that_no_noise_can_keep_is_refused():
    with pytest.raises(PlanError, match="can't be kept in 1000000 steps"):
        noise_for(0.1, 1e-9, 1.0, 10**6)


@pytest.mark.parametrize("rate", [1e-6, 0.02, 1.0])
@pytest.mark.parametrize("noise", [LEAST_NOISE, MOST_NOISE])
def test_any_noise_in_range_has_a_price_within_seconds(rate, noise):
    """However many steps: no plan makes a ledger that can't be added up."""
    some, other = NoisySteps(rate, noise, 10**9), NoisySteps(0.1, 1.0, 7)
    cost = cost_of([some, other], DELTA)
    assert cost.pld == cost.prv
    assert 0.0 < cost.epsilon < math.inf


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.02, 1.0, 100), (1.0, 5.0, 20)])
def test_what_is_not_exact_is_never_too_low(rate, noise, steps):
    some = NoisySteps(rate, noise, steps)
    exact = cost_of([some], DELTA)
    assert exact.epsilon < _renyi((some,), DELTA) < 2.0 * exact.epsilon
    assert exact.pld != exact.prv


@pytest.mark.parametrize(("failure", "delta"), [(True, 1.1e-4), (False, 1.2e-4)])
def test_an_accountant_that_fails_gives_way_to_an_upper_bound(
    monkeypatch, failure, delta
):
    def fail(self, *args, **changes):
        if failure:
            raise RuntimeError("mean differs")
        return math.inf

    some = NoisySteps(0.05, 1.0, 3)
    exact = cost_of([some], 1e-4)
    monkeypatch.setattr(opacus.accountants.PRVAccountant, "get_epsilon", fail)
    cost = cost_of([some], delta)  # not remembered
    assert math.inf > cost.pld == cost.prv > exact.epsilon


def test_a_chance_too_small_for_accountants_has_a_finite_price():
    assert math.isfinite(cost_of([NoisySteps(0.02, 1.0, 10)], 1e-300).epsilon)


@pytest.mark.parametrize("noise", [1e-300, 0.29, 1001.0, 1e300, math.inf, math.nan])
def test_noise_out_of_range_has_no_price(noise):
    with pytest.raises(PlanError, match=r"expected 0\.3 to 1000"):
        cost_of([NoisySteps(0.02, noise, 1)], DELTA)


@pytest.mark.parametrize("epsilon", [1e3, 1e300])
def test_noise_for_any_epsilon_is_in_range(epsilon):
    assert LEAST_NOISE <= noise_for(epsilon, DELTA, 0.02, 10) <= LEAST_NOISE + 0.01
