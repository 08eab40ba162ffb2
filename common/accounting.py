"""What noisy steps cost: epsilon by two accountants, of which the larger is published.

Privacy loss distributions (Google's dp-accounting; Koskela 2020, Doroshenko 2022) and
the numerical PRV accountant (Gopi 2021, as Opacus has it) compute the same by different
code, with errors on the safe side. They agree within 0.01 plus one percent; a bug in
one shows as a gap between them. Where they would take minutes and gigabytes (an epsilon
in the hundreds, or millions of steps), or fail, both give way to Renyi divergence
(Mironov 2017): quick, and never too low. So whatever noise is in range has a price, and
no plan can make a hospital's ledger one that nobody can add up.

A step is the Poisson-subsampled Gaussian mechanism: each patient is drawn with
probability q, all clipped gradients are summed, and N(0, (sigma clip)^2) is added.
Neighbours differ by one patient, taken away or put in.

Not covered here: whether the steps were taken as they are accounted for
(`client.dp_train`), and any cost of choosing hyperparameters on the same patients.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from common.errors import PlanError

log = logging.getLogger("fedct.accounting")

_PLD_GRID = 1e-4
"""Width of dp-accounting's bins of privacy loss (its default)."""
_PRV_ERROR = 0.01
"""Error of epsilon that the PRV accountant may make; it is added on top."""
_ALMOST_ALL = 1.0 - 1e-9
"""Sampling rate that stands for 1 in the PRV accountant, which divides by 1 - q."""
_NOISE_GRID = 0.01
"""Noise multipliers that are searched for are multiples of this, rounded up."""
LEAST_NOISE = 0.3
"""Below it a step alone costs more than ten, and accountants take long."""
MOST_NOISE = 1000.0
"""Above it nothing is learnt."""
_MOST_WORK = 5000.0
"""Largest epsilon plus 3, times the root of the steps, that is computed exactly: what
the PRV accountant's time and memory grow with (0.7 GB here)."""
_RENYI_ORDERS = (*range(2, 65), 128, 256, 512)


@dataclass(frozen=True, order=True)
class NoisySteps:
    """Some steps of DP-SGD, all alike."""

    rate: float
    """q: chance of each patient to be drawn for a step."""
    noise_multiplier: float
    """sigma: standard deviation of the noise, in clip norms."""
    steps: int
    """T."""


@dataclass(frozen=True)
class Cost:
    """What some steps cost each patient at most."""

    pld: float
    """Epsilon by privacy loss distributions; where that takes too long, at most this,
    by Renyi divergence."""
    prv: float
    """Epsilon by the PRV accountant, or the same."""
    delta: float
    """Chance of losing more."""

    @property
    def epsilon(self) -> float:
        """The larger of both: what may be published."""
        return max(self.pld, self.prv)


def cost_of(taken: Iterable[NoisySteps], delta: float) -> Cost:
    """What these steps cost together, whatever runs they belong to.

    Args:
        taken: In any order; those alike are added up.
        delta: Above 0, below 1.

    Raises:
        PlanError: A noise is not within `LEAST_NOISE` and `MOST_NOISE`.
    """
    taken = tuple(taken)
    for some in taken:
        check_noise(some.noise_multiplier)
    counts: Counter[tuple[float, float]] = Counter()
    for some in taken:
        counts[some.rate, some.noise_multiplier] += some.steps
    alike = tuple(NoisySteps(q, s, t) for (q, s), t in sorted(counts.items()) if t)
    return _cost(alike, delta)


def check_noise(noise_multiplier: float) -> None:
    """Refuse a noise whose price can't be told.

    Raises:
        PlanError: It is not within `LEAST_NOISE` and `MOST_NOISE`.
    """
    if not LEAST_NOISE <= noise_multiplier <= MOST_NOISE:
        raise PlanError(
            f"a noise multiplier is {noise_multiplier:g}, expected {LEAST_NOISE:g} to "
            f"{MOST_NOISE:g}, as its price can't be told; nothing was done"
        )


@lru_cache(maxsize=64)
def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier with which so many steps cost at most epsilon.

    By both accountants, within `LEAST_NOISE` and `MOST_NOISE`, and rounded up to a
    hundredth. Renyi divergence says where to look.

    Raises:
        PlanError: No noise is enough: the PRV accountant can't see below its error.
    """

    def affords(multiplier: float) -> bool:
        some = (NoisySteps(rate, multiplier, steps),)
        bound = _renyi(some, delta)
        return (bound if _is_long(some, bound) else _prv(some, delta)) <= epsilon

    enough = _noise_by_renyi(epsilon, delta, rate, steps)
    while enough < MOST_NOISE and not affords(enough):
        enough *= 1.1
    if enough >= MOST_NOISE:
        raise PlanError(
            f"privacy.dp.epsilon {epsilon} at delta {delta} can't be kept in {steps} "
            f"steps at a sampling rate of {rate:.4f}; raise it, or plan fewer steps"
        )
    low = max(LEAST_NOISE, enough / 2.0)
    while enough - low > _NOISE_GRID / 2:
        middle = (low + enough) / 2.0
        low, enough = (low, middle) if affords(middle) else (middle, enough)
    hundredths = math.ceil(enough / _NOISE_GRID)
    while cost_of([NoisySteps(rate, hundredths / 100, steps)], delta).epsilon > epsilon:
        hundredths += 1
    return hundredths / 100


def _noise_by_renyi(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """A noise multiplier that is enough; at most a few percent too large."""
    multiplier = MOST_NOISE
    while multiplier > LEAST_NOISE:
        less = max(LEAST_NOISE, multiplier * (0.5 if multiplier > 32.0 else 0.97))
        if _renyi((NoisySteps(rate, less, steps),), delta) > epsilon:
            break
        multiplier = less
    return multiplier


def _renyi(taken: tuple[NoisySteps, ...], delta: float) -> float:
    """Epsilon, or somewhat more."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(_RENYI_ORDERS)
    for some in taken:
        noise = dp_event.GaussianDpEvent(some.noise_multiplier)
        one = dp_event.PoissonSampledDpEvent(some.rate, noise)
        accountant.compose(one, some.steps)
    return float(accountant.get_epsilon(delta))


def _is_long(taken: tuple[NoisySteps, ...], bound: float) -> bool:
    """Whether accountants would take too long for what costs at most `bound`."""
    steps = float(sum(some.steps for some in taken))
    return (bound + 3.0) * math.sqrt(steps) > _MOST_WORK


@lru_cache(maxsize=256)
def _cost(taken: tuple[NoisySteps, ...], delta: float) -> Cost:
    if not taken:
        return Cost(0.0, 0.0, delta)
    bound = _renyi(taken, delta)
    if _is_long(taken, bound):
        return Cost(bound, bound, delta)
    try:
        cost = Cost(_pld(taken, delta), _prv(taken, delta), delta)
    except (ArithmeticError, ValueError, RuntimeError) as error:
        log.warning("accountant failed", extra={"error": type(error).__name__})
        return Cost(bound, bound, delta)
    return cost if math.isfinite(cost.epsilon) else Cost(bound, bound, delta)


def _pld(taken: tuple[NoisySteps, ...], delta: float) -> float:
    from dp_accounting.pld import privacy_loss_distribution as losses

    total = losses.identity(value_discretization_interval=_PLD_GRID)
    for some in taken:
        one = _one_step(some.rate, some.noise_multiplier)
        total = total.compose(one.self_compose(some.steps))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _one_step(rate: float, noise_multiplier: float) -> Any:
    """Privacy loss of a single step; most of the work, and the same for every count."""
    from dp_accounting.pld import privacy_loss_distribution as losses

    return losses.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=_PLD_GRID,
        sampling_prob=rate,
    )


def _prv(taken: tuple[NoisySteps, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [
        (some.noise_multiplier, min(some.rate, _ALMOST_ALL), some.steps)
        for some in taken
    ]
    # Of the bound that it starts from, and of what no float can hold: e^t at its end.
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore", UserWarning)
        return float(accountant.get_epsilon(delta, eps_error=_PRV_ERROR))
