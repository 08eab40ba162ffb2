"""Two ways of doing the same, timed in turn, so that other load hits both alike."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Pairs:
    """Seconds of wall time, one of each side per repeat."""

    ours: list[float]
    theirs: list[float]

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.ours), statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        """Ours / theirs, each taken within its pair."""
        both = zip(self.ours, self.theirs, strict=True)
        return [mine / other for mine, other in both]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def middle_half(self) -> tuple[float, float]:
        """Quartiles of the ratios: how far the median can be trusted."""
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return low, high


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternate(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int
) -> Pairs:
    """Time both `repeats` times after one round of warming; who is first changes."""
    ours(), theirs()
    mine: list[float] = []
    other: list[float] = []
    for number in range(repeats):
        if number % 2:
            other.append(seconds(theirs))
            mine.append(seconds(ours))
        else:
            mine.append(seconds(ours))
            other.append(seconds(theirs))
    return Pairs(mine, other)


def machine() -> str:
    """The machine in words; a load above the number of cores spoils times."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"
