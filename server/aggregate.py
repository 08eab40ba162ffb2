"""Streaming weighted mean of the sites' updates.

Each reply is checked, folded into one accumulator and dropped, so a round holds two
vectors (the accumulator and the reply at hand) however many hospitals take part. The
accumulator is float32: what it adds are *changes*, far smaller than the weights, so its
rounding lies far below that of the weights themselves. Float addition does not
commute to the last bit, therefore the round loop folds replies in the order of the
roster, never of arrival: the same set of replies gives the same model, bit for bit.

With `clip_norm` each update is first shortened to that norm (Sun 2019, arXiv
1911.07963), so that none pulls harder than the bound; one within it counts to the bit
as it would without.

Not covered here: noise, and a site that lies about its cases or within its bounds. A
mean has no defence against that; `server.robust` has the rules that bear with it.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from common.errors import ContributionError, QuorumError

MAX_CASES = 1_000_000
"""Most training cases that a site may claim."""
MAX_NORM = 1e6
"""Largest Euclidean norm of an update that can be honest."""
MAX_GROWTH = 100.0
"""And how many times the usual one: norms of honest sites lie within a few times of
each other, and grow by three at the most while the learning rate warms up."""
_CHUNK = 1 << 16
"""Parameters folded at a time: 256 KiB, so that a chunk stays in the cache."""


class Aggregate(Protocol):
    """One round's rule: `add` each reply in roster order, then read `mean` once."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Share of each accepted site."""
        ...

    def add(self, site: str, delta: Float32[np.ndarray, " P"], weight: float) -> float:
        """Check and take in one site's update; see `WeightedMean.add`."""
        ...

    def mean(self) -> Float32[np.ndarray, " P"]:
        """What the updates are made into; see `WeightedMean.mean`."""
        ...


class Gate:
    """What every update is checked for, whatever rule it then goes into."""

    def __init__(
        self, num_params: int, *, min_sites: int, usual_norm: float | None = None
    ) -> None:
        """Expect updates of one round.

        Args:
            num_params: P, the length of every update vector.
            min_sites: Fewest accepted sites whose updates may be used.
            usual_norm: What the norm of an update was in the round before, or what it
                compares with; unset or 0: not known.
        """
        self._num_params = num_params
        self._min_sites = min_sites
        self._max_norm = MAX_NORM
        if usual_norm:
            self._max_norm = min(MAX_NORM, MAX_GROWTH * usual_norm)
        self.weights: dict[str, float] = {}
        """Weight of each accepted site, in the order of the roster."""

    @property
    def shares(self) -> dict[str, float]:
        """The weights, summing to 1."""
        total = sum(self.weights.values())
        return {site: weight / total for site, weight in self.weights.items()}

    def check(
        self, site: str, delta: Float32[np.ndarray, " P"], weight: float
    ) -> float:
        """The update's Euclidean norm, if it may be used; changes nothing.

        Raises:
            ContributionError: The reply is malformed, repeated, infinite or too large.
        """
        if site in self.weights:
            raise ContributionError(f"site {site!r} replied twice in this round")
        if delta.shape != (self._num_params,) or delta.dtype != np.float32:
            raise ContributionError(
                f"site {site!r} sent {delta.dtype}{list(delta.shape)}, "
                f"expected float32[{self._num_params}]; is its model version current?"
            )
        if not 0 < weight <= MAX_CASES:
            raise ContributionError(
                f"site {site!r} claims a weight of {weight}, "
                f"expected above 0 and at most {MAX_CASES}"
            )
        norm = norm_of(delta)
        if not norm <= self._max_norm:
            raise ContributionError(
                f"site {site!r} sent an update of norm {norm:g}, expected a finite one "
                f"of at most {self._max_norm:g}; its training has diverged"
            )
        return norm

    def close(self) -> None:
        """Make sure that enough updates came.

        Raises:
            QuorumError: Fewer sites than the quorum were accepted.
        """
        if len(self.weights) < self._min_sites:
            raise QuorumError(
                f"round has {len(self.weights)} accepted sites, expected at least "
                f"{self._min_sites}; the model stays as it was"
            )


class WeightedMean:
    """One round's mean: `add` each reply in roster order, then read `mean` once."""

    def __init__(
        self,
        num_params: int,
        *,
        min_sites: int,
        usual_norm: float | None = None,
        clip_norm: float | None = None,
    ) -> None:
        """Start at zero.

        Args:
            num_params: P, the length of every update vector.
            min_sites: Fewest accepted sites whose mean may be used.
            usual_norm: See `Gate`.
            clip_norm: Longer updates are shortened to this norm; unset: none is.
        """
        self._gate = Gate(num_params, min_sites=min_sites, usual_norm=usual_norm)
        self._clip_norm = clip_norm
        self._sum = np.zeros(num_params, dtype=np.float32)
        self._scratch = np.empty(min(_CHUNK, num_params), dtype=np.float32)

    @property
    def weights(self) -> dict[str, float]:
        """Share of each accepted site, summing to 1."""
        return self._gate.shares

    def add(self, site: str, delta: Float32[np.ndarray, " P"], weight: float) -> float:
        """Fold in one site's update. A refused update leaves no trace.

        Args:
            site: Name of the site, at most one reply each.
            delta: Local minus global parameters.
            weight: Training cases, possibly capped, or 1 where all sites count alike.

        Returns:
            The Euclidean norm of the update, before it is shortened.

        Raises:
            ContributionError: The reply is malformed, repeated, infinite or too large.
        """
        norm = self._gate.check(site, delta, weight)
        factor = weight
        if self._clip_norm is not None:
            factor = weight * clip_factor(norm, self._clip_norm)
        for start in range(0, delta.size, _CHUNK):
            part = delta[start : start + _CHUNK]
            scaled = self._scratch[: part.size]
            np.multiply(part, np.float32(factor), out=scaled)
            self._sum[start : start + _CHUNK] += scaled
        self._gate.weights[site] = float(weight)
        return norm

    def mean(self) -> Float32[np.ndarray, " P"]:
        """The weighted mean; the accumulator itself, so read it once.

        Raises:
            QuorumError: Fewer sites than the quorum were accepted.
        """
        self._gate.close()
        self._sum /= np.float32(sum(self._gate.weights.values()))
        return self._sum


def norm_of(vector: Float32[np.ndarray, " P"]) -> float:
    """Euclidean norm; float32 inside a chunk, float64 over chunks.

    Not finite if any element is not.
    """
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, vector.size, _CHUNK):
            part = vector[start : start + _CHUNK]
            total += float(np.dot(part, part))
    return float(np.sqrt(total)) if total >= 0 else float("nan")


def clip_factor(norm: float, bound: float) -> float:
    """What shortens an update of this norm to the bound; 1 if it is not longer."""
    return 1.0 if norm <= bound else bound / norm
