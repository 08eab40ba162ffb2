"""Counting lesions one by one.

A lesion is a connected part of a mask (26 neighbours; 8 in a single slice). A true
lesion is found when some predicted part overlaps it with an IoU of at least a tenth: a
generous bar, as is usual where the question is "was it seen" and not "how well was it
drawn", but not so generous that a prediction of everything finds everything. A
predicted part that reaches the bar with no true lesion is a false positive.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

MIN_IOU = 0.1
"""Least overlap of a true and a predicted part that belong together."""


@dataclass(frozen=True)
class LesionCount:
    """Lesions of one observation."""

    found: int
    """True lesions that were seen."""
    total: int
    """True lesions."""
    false_positives: int
    """Predicted parts that belong to no true lesion."""


def count_lesions(
    truth: Bool[np.ndarray, "D H W"], predicted: Bool[np.ndarray, "D H W"]
) -> LesionCount:
    """Match the parts of two masks."""
    around = np.ones((3, 3, 3), dtype=bool)
    true_parts, total = ndimage.label(truth, structure=around)
    called_parts, called = ndimage.label(predicted, structure=around)
    pairs = np.bincount(
        true_parts.ravel().astype(np.int64) * (called + 1) + called_parts.ravel(),
        minlength=(total + 1) * (called + 1),
    ).reshape(total + 1, called + 1)
    both = pairs[1:, 1:]
    sizes = pairs.sum(axis=1)[1:, None] + pairs.sum(axis=0)[None, 1:]
    matched = both >= MIN_IOU * (sizes - both)
    matched &= both > 0
    found = int(matched.any(axis=1).sum())
    return LesionCount(found, total, called - int(matched.any(axis=0).sum()))
