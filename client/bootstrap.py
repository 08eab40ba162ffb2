"""Confidence intervals of metrics by resampling patients.

Cases of one patient are alike, so patients are drawn, with replacement, and a patient
comes with all cases (Efron 1979; percentile method). Metrics are functions of additive
sums (`common.task`), so a resample is a weighted sum of per-patient vectors: all
resamples of one name are a single matrix product, and no case is judged twice.

Not covered here: doubt about anything but the choice of patients. That the labels are
wrong, or that another hospital's patients differ, no interval shows. With few patients
the percentile interval is too narrow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.task import Sums, add_sums

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_PATIENTS = 20
"""Below this an interval is given, with a warning."""
LEAST_DEFINED = 0.9
"""Share of resamples in which a metric must have a value to have an interval."""
_CHUNK = 64
"""Resamples whose sums are held at a time; a histogram of scores is long."""


@dataclass(frozen=True)
class Estimate:
    """A metric over all patients, and how far it may be off."""

    value: float
    """Over all cases."""
    low: float | None
    """Lower end of the interval; unset where there is none."""
    high: float | None
    """Upper end of the interval; unset where there is none."""


def estimate(
    patients: Sequence[Sums],
    summarise: Callable[[Sums], Mapping[str, float]],
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Every metric with its interval.

    Args:
        patients: Sums of each patient's cases, at least one patient.
        summarise: Metrics from sums, as the task has it.
        seed: Decides the resamples; the same sums and seed give the same interval.
        resamples: How many.

    Returns:
        All metrics of `summarise` over all patients. One patient gives no interval.
    """
    total: Sums = {}
    for sums in patients:
        total = add_sums(total, sums)
    values = summarise(total)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    if len(patients) > 1:
        for sums in _resampled(patients, total, seed, resamples):
            for name, value in summarise(sums).items():
                if name in drawn and np.isfinite(value):
                    drawn[name].append(value)
    return {
        name: _interval(value, drawn[name], resamples) for name, value in values.items()
    }


def _resampled(
    patients: Sequence[Sums], total: Sums, seed: int, resamples: int
) -> Iterator[Sums]:
    """Sums of each resample, in one order for one seed."""
    rng = np.random.default_rng(seed)
    count = len(patients)
    tables = {
        name: np.stack([sums.get(name, np.zeros_like(whole)) for sums in patients])
        for name, whole in total.items()
    }
    even = np.full(count, 1.0 / count)
    for first in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - first)
        times = rng.multinomial(count, even, size=size).astype(np.float64)
        chunk = {name: times @ table for name, table in tables.items()}
        for r in range(size):
            yield {name: table[r] for name, table in chunk.items()}


def _interval(value: float, drawn: list[float], resamples: int) -> Estimate:
    if len(drawn) < LEAST_DEFINED * resamples:
        return Estimate(float(value), None, None)
    tail = 100.0 * (1.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Estimate(float(value), float(low), float(high))
