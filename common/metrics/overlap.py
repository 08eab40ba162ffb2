"""Voxel overlap of truth and prediction, from one count of voxel pairs.

All of Dice, IoU, precision and recall follow from how many voxels of class i were
called class j, so a case is read once however many classes there are. What is summed
is the value of each observation (a volume or a window) and how many observations have
one; a mean over sites is then right by construction.

The rule for nothing: precision has no value where nothing was predicted, recall none
where there is nothing to find, and such observations do not count. Dice and IoU have no
value where both are empty, unless the caller says that an empty answer to an empty
window is right (1).
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from common.task import Sums

COUNT = ".count"
"""Suffix of the number of observations behind a sum."""
MEANS = ("dice", "iou", "precision", "recall")
"""What is averaged over observations."""


def voxel_pairs(
    truth: UInt8[np.ndarray, "O D H W"],
    predicted: UInt8[np.ndarray, "O D H W"],
    classes: int,
) -> Int64[np.ndarray, "O N N"]:
    """Per observation, how many voxels of class i were called j; N is classes + 1."""
    n = classes + 1
    counts = np.zeros((len(truth), n * n), dtype=np.int64)
    for i in range(len(truth)):
        # Plane by plane, because bincount widens what it reads to eight bytes.
        for true, called in zip(truth[i], predicted[i], strict=True):
            pairs = true.astype(np.uint16) * n + called
            counts[i] += np.bincount(pairs.ravel(), minlength=n * n)
    return counts.reshape(-1, n, n)


def overlap_sums(
    pairs: Int64[np.ndarray, "O N N"], *, empty_is_right: bool
) -> dict[str, Float64[np.ndarray, " K"]]:
    """Sums over observations, per class without the background.

    Args:
        pairs: As `voxel_pairs` counts them.
        empty_is_right: Whether Dice and IoU are 1 where both are empty.

    Returns:
        For each of `MEANS` its sum and, with `COUNT`, the number of observations; and
        `tp`, `fp`, `fn` in voxels.
    """
    hits = np.diagonal(pairs, axis1=1, axis2=2)[:, 1:].astype(np.float64)
    called = pairs.sum(axis=1)[:, 1:]
    true = pairs.sum(axis=2)[:, 1:]
    fractions = {
        "dice": (2.0 * hits, called + true),
        "iou": (hits, called + true - hits),
        "precision": (hits, called),
        "recall": (hits, true),
    }
    sums = {"tp": hits.sum(0), "fp": (called - hits).sum(0), "fn": (true - hits).sum(0)}
    for name, (above, below) in fractions.items():
        defined = below > 0
        value = np.divide(above, below, out=np.zeros_like(hits), where=defined)
        if empty_is_right and name in ("dice", "iou"):
            value[~defined] = 1.0
            defined = np.ones_like(defined)
        sums[name] = value.sum(axis=0)
        sums[name + COUNT] = defined.sum(axis=0).astype(np.float64)
    return sums


def mean_of(sums: Sums, name: str) -> Float64[np.ndarray, " K"]:
    """Mean per class; NaN where no observation has a value."""
    count = sums[name + COUNT]
    return np.divide(
        sums[name], count, out=np.full(count.shape, np.nan), where=count > 0
    )
