"""ROC-AUC from histograms that add up over sites.

AUC asks how often a positive case scores above a negative one, over all pairs, also
pairs of two hospitals: it is no mean of the sites' AUCs. So sites send how many of
their cases fell in which bin of the score, and the pairs are counted bin against bin,
ties in a bin as one half. That is the exact AUC of the binned scores; the unbinned one
differs by at most half the share of pairs that meet in one bin, which is returned too.

Bins are even on asinh(x / fine): linear below `fine`, logarithmic above, symmetric
about zero, so that an untrained network's scores and a sure one's are both told apart.

Not covered here: privacy. With few cases a histogram holds about one case a bin, so it
tells each score; a site that must hide that has to suppress small counts.
"""

import numpy as np
from jaxtyping import Float64

BINS = 1024
"""Bins of a histogram, half of them below zero."""


def score_bins(
    scores: Float64[np.ndarray, " N"], fine: float, limit: float
) -> Float64[np.ndarray, " 1024"]:
    """Histogram of scores.

    Args:
        scores: Any real numbers or infinities; beyond +-limit they fall in the outer
            bins.
        fine: Where the bins go over from linear to logarithmic.
        limit: Largest absolute score that is told apart.
    """
    inside = np.clip(scores, -limit, limit)  # no int64 holds the place of infinity
    place = np.arcsinh(inside / fine) / np.arcsinh(limit / fine)
    bins = np.floor((place + 1.0) / 2.0 * BINS).astype(np.int64)
    counts = np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)
    return counts.astype(np.float64)


def auc_of(
    positive: Float64[np.ndarray, " B"], negative: Float64[np.ndarray, " B"]
) -> tuple[float, float] | None:
    """AUC of two histograms, and the most it can differ from the unbinned AUC.

    None where either class is empty.
    """
    pairs = float(positive.sum() * negative.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    ties = float((positive * negative).sum())
    wins = float((positive * below).sum())
    return (wins + 0.5 * ties) / pairs, 0.5 * ties / pairs
