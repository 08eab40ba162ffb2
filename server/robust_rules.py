"""Rules that make one update of several and bear with some hostile ones: the maths.

Two kinds. A coordinate rule (median, trimmed mean) looks at one parameter at a time,
over all sites. The others are sums of the updates with coefficients that follow from
their distances and norms alone, so that a round's updates have to be read twice only,
however often the rule goes round in between.

Everything is float64 inside. Nothing depends on the order of the sites, but where two
are equally good: then the earlier in the roster counts.

Not covered here: hostile sites that keep within what honest ones send. No rule tells
them apart, and where hospitals differ much from each other there is much room to hide.
"""

import numpy as np
from jaxtyping import Float32, Float64

from server.aggregate import clip_factor

_SMOOTHING = 1e-6
"""Of the geometric median; Pillutla 2022 takes the same number, section 5."""
_MOVED = 1e-12
"""Weiszfeld's steps end when no coefficient moves by more."""
_STEPS = 1000
_FEW = 16
"""Rows that are sorted quicker by exchanges than by `np.sort`."""


def coordinate_median(
    block: Float32[np.ndarray, "N C"],
) -> Float32[np.ndarray, " C"]:
    """Median of each parameter (Yin 2018, arXiv 1803.01498, definition 1).

    Of an even number of sites, the mean of the two in the middle. With f < N/2 hostile
    sites it lies within the range of the honest ones.
    """
    return _middle(block, (len(block) - 1) // 2)


def trimmed_mean(
    block: Float32[np.ndarray, "N C"], trim: int
) -> Float32[np.ndarray, " C"]:
    """Mean of each parameter without its extremes (Yin 2018, definition 2).

    Args:
        block: The sites' updates of some parameters; more than 2 `trim` rows.
        trim: f; so many of the smallest and of the largest are left out.
    """
    return _middle(block, trim)


def _middle(
    block: Float32[np.ndarray, "N C"], outside: int
) -> Float32[np.ndarray, " C"]:
    ordered = _ordered(block)[outside : len(block) - outside]
    return ordered.mean(axis=0, dtype=np.float64).astype(np.float32)


def _ordered(block: Float32[np.ndarray, "N C"]) -> Float32[np.ndarray, "N C"]:
    """Each column in rising order.

    Few rows are sorted by exchanging neighbours (Knuth, The Art of Computer Programming
    3, section 5.3.4), whole rows at once: thirty times as fast for five sites.
    """
    if len(block) > _FEW:
        return np.sort(block, axis=0)
    rows, low = block.copy(), np.empty_like(block[0])
    for turn in range(len(rows)):
        for i in range(turn % 2, len(rows) - 1, 2):
            np.minimum(rows[i], rows[i + 1], out=low)
            np.maximum(rows[i], rows[i + 1], out=rows[i + 1])
            rows[i] = low
    return rows


def add_squared_distances(
    total: Float64[np.ndarray, "N N"], block: Float32[np.ndarray, "N C"]
) -> None:
    """Add what some parameters contribute to ||w_i - w_j||^2, in place.

    By differences, not by inner products: near-equal updates would cancel out. Not by
    BLAS, whose threads cost more than they bring on so few numbers, and round otherwise
    for another number of them.
    """
    wide = block.astype(np.float64)
    for i in range(len(wide)):
        for j in range(i + 1, len(wide)):
            apart = wide[i] - wide[j]
            total[i, j] += np.einsum("c,c->", apart, apart)
            total[j, i] = total[i, j]


def krum_shares(
    squared: Float64[np.ndarray, "N N"], faulty: int, keep: int
) -> Float64[np.ndarray, " N"]:
    """Krum (Blanchard 2017, arXiv 1703.02757, section 4) and multi-Krum.

    The score of a site is the sum of the squared distances to its N - f - 2 nearest
    others; the `keep` sites of the least score are averaged.

    Args:
        squared: Squared distances of the updates.
        faulty: f, with N >= 2 f + 3.
        keep: 1 for Krum.
    """
    sites = len(squared)
    others = squared[~np.eye(sites, dtype=bool)].reshape(sites, sites - 1)
    nearest = np.sort(others, axis=1)[:, : sites - faulty - 2]
    best = np.argsort(nearest.sum(axis=1), kind="stable")[:keep]
    shares = np.zeros(sites)
    shares[best] = 1.0 / keep
    return shares


def geometric_median_shares(
    squared: Float64[np.ndarray, "N N"], weights: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """The point of least weighted distance to all updates, as a mixture of them.

    Smoothed Weiszfeld steps (Pillutla 2022, arXiv 1912.13445, algorithm 2), from the
    mean until nothing moves. Each iterate v = sum a_i w_i is a mixture, so its distance
    to w_j follows from those between the updates: ||v - w_j||^2 =
    sum_i a_i d_ij^2 - 1/2 sum_ik a_i a_k d_ik^2. The smoothing is relative, a millionth
    of the median distance, so that updates a thousand times as small are treated alike.

    Args:
        squared: Squared distances of the updates.
        weights: Their weights, all above 0; hostile sites must have less than half.

    Returns:
        Coefficients, summing to 1.
    """
    alpha = weights / weights.sum()
    pairs = squared[np.triu_indices(len(squared), k=1)]
    least = _SMOOTHING * float(np.sqrt(np.median(pairs))) if pairs.size else 0.0
    shares = alpha
    for _ in range(_STEPS):
        apart = squared @ shares
        apart = np.sqrt(np.maximum(apart - 0.5 * (shares @ apart), 0.0))
        if not apart.any():  # all updates are one
            return shares
        moved = alpha / np.maximum(apart, max(least, np.finfo(np.float64).tiny))
        moved /= moved.sum()
        if np.abs(moved - shares).max() <= _MOVED:
            return moved
        shares = moved
    return shares


def clipped_shares(
    norms: Float64[np.ndarray, " N"],
    weights: Float64[np.ndarray, " N"],
    bound: float,
) -> Float64[np.ndarray, " N"]:
    """Coefficients of the weighted mean of updates that were shortened to a norm."""
    factors = np.array([clip_factor(float(norm), bound) for norm in norms])
    return weights / weights.sum() * factors
