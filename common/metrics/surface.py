"""Distances between two surfaces in millimetres.

A surface voxel is one of the mask with a face neighbour outside it (or outside the
volume). Distances are Euclidean between voxel centres, in mm, so they hold for any
spacing; they come from a search tree over surface voxels, because a distance transform
of a whole organ's box costs a thousand times the memory of its surface.

Both measures are undefined where either mask is empty. The mean distance is over all
voxels of both surfaces; HD95 is the larger of the two directed 95th percentiles
(Maier-Hein 2024, "Metrics reloaded", and MONAI define them so).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class SurfaceDistance:
    """How far apart two surfaces are."""

    mean_mm: float
    """Average symmetric surface distance (ASSD)."""
    hd95_mm: float
    """95th percentile of the Hausdorff distance, the worse of both directions."""


def surface_distance(
    truth: Bool[np.ndarray, "D H W"],
    predicted: Bool[np.ndarray, "D H W"],
    spacing_mm: tuple[float, float, float],
) -> SurfaceDistance | None:
    """Distances between the surfaces of two masks; None where one is empty."""
    a, b = surface_points(truth, spacing_mm), surface_points(predicted, spacing_mm)
    if not len(a) or not len(b):
        return None
    to_b, _ = cKDTree(b).query(a)
    to_a, _ = cKDTree(a).query(b)
    worse = max(np.percentile(to_a, 95), np.percentile(to_b, 95))
    total = float(to_a.sum() + to_b.sum())
    return SurfaceDistance(total / (len(a) + len(b)), float(worse))


def surface_points(
    mask: Bool[np.ndarray, "D H W"], spacing_mm: tuple[float, float, float]
) -> Float64[np.ndarray, "N 3"]:
    """Centres of the surface voxels, in mm from the first voxel, axes D H W."""
    if not mask.any():
        return np.zeros((0, 3))
    corner, inner = _box(mask)
    # One voxel of nothing around, so that the volume's border counts as outside.
    inside = ndimage.binary_erosion(np.pad(inner, 1))[1:-1, 1:-1, 1:-1]
    where = np.argwhere(inner & ~inside) + corner
    return where.astype(np.float64) * np.asarray(spacing_mm)


def _box(mask: Bool[np.ndarray, "D H W"]) -> tuple[np.ndarray, np.ndarray]:
    """First index of the bounding box, and the mask inside it."""
    places = ndimage.find_objects(mask.view(np.uint8))[0]
    corner = np.array([place.start for place in places])
    return corner, mask[places]
