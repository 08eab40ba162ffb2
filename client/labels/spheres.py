"""Points with a diameter, as LUNA16 lists its nodules, to one mask of spheres.

The voxel rule: a voxel is inside when its centre is within the radius; there are no
partial voxels. A nodule so small that it holds no centre marks the nearest voxel, so
that none is lost. Distances are in mm, so thick slices make flat stacks of discs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.intake.verdict import Code, Finding
from client.labels.refusal import notes_on
from common.case import Segment
from common.volume import Grid

WHAT = "the annotation list"


@dataclass(frozen=True)
class Sphere:
    """One annotated finding."""

    centre_mm: tuple[float, float, float]
    """x, y, z in LPS."""
    diameter_mm: float
    """Above 0."""


def spheres(
    found: Sequence[Sphere], grid: Grid, *, name: str = "nodule"
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    """One segment that holds all spheres; empty where none was found.

    Args:
        found: Every finding of the image, in any order.
        grid: The image's grid.
        name: Of the segment.

    Returns:
        One segment and notes; or no segment and one refusing finding, when a diameter
        is not positive or a centre lies beyond the image.
    """
    mask = np.zeros(grid.shape, dtype=bool)
    to_voxel = np.linalg.inv(grid.affine)
    for sphere in found:
        if not (np.isfinite(sphere.diameter_mm) and sphere.diameter_mm > 0):
            return _refused(
                Code.LABEL_VALUE, "a diameter that is not above 0", "a size in mm"
            )
        centre = (to_voxel @ np.array([*sphere.centre_mm, 1.0]))[:3]
        nearest = np.rint(centre)
        if not ((nearest >= 0) & (nearest < grid.shape)).all():
            return _refused(
                Code.LABEL_GRID_MISMATCH, "a centre beyond the image", "it inside"
            )
        _mark(mask, grid, np.array(sphere.centre_mm), sphere.diameter_mm / 2.0)
        mask[tuple(nearest.astype(int))] = True
    segments = (Segment(name, mask),)
    return segments, notes_on(WHAT, segments)


def _mark(
    mask: np.ndarray, grid: Grid, centre_mm: np.ndarray, radius_mm: float
) -> None:
    """Sets the voxels of one sphere, looking only at the box around it."""
    to_voxel = np.linalg.inv(grid.affine)
    centre = (to_voxel @ np.array([*centre_mm, 1.0]))[:3]
    # The furthest a sphere reaches along voxel axis i is radius times the row's length.
    reach = radius_mm * np.linalg.norm(to_voxel[:3, :3], axis=1)
    low = np.maximum(np.ceil(centre - reach), 0).astype(int)
    high = np.minimum(np.floor(centre + reach) + 1, mask.shape).astype(int)
    if (high <= low).any():
        return
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    indices = np.stack(
        np.meshgrid(
            *(np.arange(*p) for p in zip(low, high, strict=True)), indexing="ij"
        )
    )
    away = np.tensordot(grid.affine[:3, :3], indices - centre[:, None, None, None], 1)
    mask[box] |= (away**2).sum(axis=0) <= radius_mm**2


def _refused(
    code: Code, got: str, want: str
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    sentence = f"{WHAT} has {got}, expected {want}; is it the list of this image?"
    return (), (Finding(code, sentence, refuses=True),)
