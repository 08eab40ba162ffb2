"""Volume and grid: where a CT voxel lies in the patient.

One convention everywhere. Arrays have axes D H W. An affine maps the homogeneous voxel
index (d, h, w, 1) to patient coordinates (x, y, z, 1) in mm in DICOM's LPS space (+x to
the patient's left, +y to posterior, +z to superior; PS3.3 C.7.6.2.1.1). An axial series
in standard order therefore has D along +z, H along +y, W along +x, and nothing is ever
transposed "for the reader".

Model space is the *closest* such orientation: axes are permuted and flipped, never
rotated, so an oblique series stays oblique and each voxel of a series at native spacing
has exactly one voxel in model space. That makes the way back (mask to series grid) an
identity, which is what `tests/common/test_volume.py` proves.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, Num
from scipy import ndimage

from common.errors import GeometryError

EDGE = 1e-6
"""Slack at outer faces and between axes, in voxels: what float64 affines lose."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular lattice in patient space: a shape and where it lies."""

    shape: tuple[int, int, int]
    """Voxels along D, H, W."""
    affine: Float64[np.ndarray, "4 4"]
    """Maps (d, h, w, 1) to (x, y, z, 1) in mm, LPS."""

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)  # own copy, frozen below
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                "grid got an affine that is not a finite 4x4 matrix, "
                "expected one that maps (d, h, w, 1) to mm"
            )
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise GeometryError(
                "grid got a singular affine, expected three independent axes; "
                "check orientation and spacing of the source"
            )
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(
                f"grid got shape {self.shape}, expected three positive axes D, H, W"
            )
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along D, H, W, in mm."""
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(d), float(h), float(w)

    @property
    def voxel_mm3(self) -> float:
        """Volume of one voxel, in mm³."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    def same_as(self, other: "Grid", tolerance_mm: float = 0.01) -> bool:
        """Whether both have one shape and all corners agree within the tolerance."""
        if self.shape != other.shape:
            return False
        corners = corner_indices(self.shape)
        apart = (self.affine - other.affine) @ corners
        return bool(np.abs(apart).max() <= tolerance_mm)


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxel values on a grid: HU for CT, 0/1 or a label number for a mask."""

    array: Num[np.ndarray, "D H W"]
    """Values, axes D H W; treated as read-only."""
    grid: Grid
    """Where the voxels lie; its shape is the array's."""

    def __post_init__(self) -> None:
        if self.array.shape != self.grid.shape:
            raise GeometryError(
                f"volume got an array of shape {self.array.shape} "
                f"on a grid of {self.grid.shape}, expected the same"
            )

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbours along D, H, W, in mm."""
        return self.grid.spacing_mm


@dataclass(frozen=True)
class AxisOrder:
    """A signed permutation of the three voxel axes."""

    source_axis: tuple[int, int, int]
    """For each new axis, the old axis it is taken from."""
    flip: tuple[bool, bool, bool]
    """For each new axis, whether it runs against the old one."""


def corner_indices(shape: tuple[int, int, int]) -> Float64[np.ndarray, "4 8"]:
    """Homogeneous indices of the eight corner voxels of a grid."""
    ends = [(0.0, n - 1.0) for n in shape]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=0).reshape(3, 8)
    return np.vstack([corners, np.ones((1, 8))])


def canonical_order(grid: Grid) -> AxisOrder:
    """The axis order that brings D, H, W closest to +z, +y, +x.

    Picks, of all six permutations, the one with the largest sum of absolute cosines, so
    that an oblique series is assigned as a whole and no axis is used twice.
    """
    axes = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    wanted = (2, 1, 0)  # D, H, W point along z, y, x
    permutations = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))

    def fit(order: tuple[int, int, int]) -> float:
        return sum(
            abs(float(axes[row, col])) for row, col in zip(wanted, order, strict=True)
        )

    best = max(permutations, key=fit)
    flips = [bool(axes[row, col] < 0) for row, col in zip(wanted, best, strict=True)]
    return AxisOrder(best, (flips[0], flips[1], flips[2]))


def reorder_grid(grid: Grid, order: AxisOrder) -> Grid:
    """The same voxels, indexed in another axis order."""
    shape = tuple(grid.shape[a] for a in order.source_axis)
    to_old = np.zeros((4, 4))
    to_old[3, 3] = 1.0
    for new, (old, flipped) in enumerate(
        zip(order.source_axis, order.flip, strict=True)
    ):
        to_old[old, new] = -1.0 if flipped else 1.0
        to_old[old, 3] = grid.shape[old] - 1.0 if flipped else 0.0
    return Grid((shape[0], shape[1], shape[2]), grid.affine @ to_old)


def reorder(volume: Volume, order: AxisOrder) -> Volume:
    """The same voxels in another axis order; no value changes, nothing is rotated."""
    array = np.transpose(volume.array, order.source_axis)
    array = array[
        tuple(slice(None, None, -1) if f else slice(None) for f in order.flip)
    ]
    return Volume(array, reorder_grid(volume.grid, order))


def canonical(volume: Volume) -> Volume:
    """The volume with D, H, W running closest to +z, +y, +x (see module docstring)."""
    return reorder(volume, canonical_order(volume.grid))


def with_spacing(grid: Grid, spacing_mm: tuple[float, float, float]) -> Grid:
    """A grid over the same box of tissue, with another spacing along the same axes.

    The outer faces of the first voxels coincide (voxels are boxes, not points). The
    number of voxels is rounded: at most half a new voxel is lost or added at the end.
    """
    if min(spacing_mm) <= 0 or not np.isfinite(spacing_mm).all():
        raise GeometryError(f"resampling got spacing {spacing_mm} mm, expected above 0")
    ratio = np.asarray(spacing_mm) / np.asarray(grid.spacing_mm)
    shape = np.maximum(1, np.rint(np.asarray(grid.shape) / ratio)).astype(int)
    scale = np.eye(4)
    scale[:3, :3] = np.diag(ratio)
    scale[:3, 3] = (ratio - 1.0) / 2.0
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), grid.affine @ scale)


def resample(volume: Volume, grid: Grid, *, nearest: bool, outside: float) -> Volume:
    """Values of the volume at the voxel centres of another grid.

    Args:
        volume: Any grid in the same patient space.
        grid: Where values are wanted.
        nearest: Nearest voxel (masks, labels) in place of trilinear (HU). Where voxels
            grow by more than a quarter, HU is smoothed along that axis first, so that
            thin slices are averaged and not skipped.
        outside: Value of voxels beyond half a voxel outside the source (air: -1024).

    Returns:
        dtype of the source when nearest, float32 otherwise.
    """
    if volume.grid.same_as(grid, tolerance_mm=1e-4):
        array = volume.array if nearest else volume.array.astype(np.float32, copy=False)
        return Volume(array, grid)
    to_source = np.linalg.inv(volume.grid.affine) @ grid.affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    if nearest:
        array = _nearest(volume.array, matrix, offset, grid.shape, outside)
    else:
        source = volume.array.astype(np.float32, copy=False)
        array = _linear(source, matrix, offset, grid.shape, outside)
    return Volume(array, grid)


def _linear(
    source: Float32[np.ndarray, "D H W"],
    matrix: Float64[np.ndarray, "3 3"],
    offset: Float64[np.ndarray, " 3"],
    shape: tuple[int, int, int],
    outside: float,
) -> Float32[np.ndarray, "D H W"]:
    """Trilinear; between the centre and the face of an edge voxel its value holds."""
    straight = np.allclose(matrix, np.diag(np.diag(matrix)), rtol=0.0, atol=1e-6)
    if straight:
        source = _average_before_shrinking(source, np.diag(matrix))
    array = ndimage.affine_transform(
        source,
        np.diag(matrix) if straight else matrix,
        offset=offset,
        output_shape=shape,
        order=1,
        mode="nearest",
    )
    ends = matrix @ corner_indices(shape)[:3] + offset[:, None]
    last = np.asarray(source.shape)[:, None] - 0.5
    if (ends < -0.5 - EDGE).any() or (ends > last + EDGE).any():
        array[~_inside(source.shape, matrix, offset, shape)] = outside
    return array


def _average_before_shrinking(
    source: Float32[np.ndarray, "D H W"], ratio: Float64[np.ndarray, " 3"]
) -> Float32[np.ndarray, "D H W"]:
    for axis, r in enumerate(np.abs(ratio)):
        if r > 1.25:  # below that, linear interpolation averages enough by itself
            # Full width at half maximum of about one new voxel (2.355 sigma).
            source = ndimage.gaussian_filter1d(
                source, sigma=0.4 * float(r), axis=axis, mode="nearest", truncate=3.0
            )
    return source


def _source_index(
    axis: int,
    matrix: Float64[np.ndarray, "3 3"],
    offset: Float64[np.ndarray, " 3"],
    shape: tuple[int, int, int],
) -> Float64[np.ndarray, "..."]:
    """Index along one source axis of every new voxel, as small as broadcasting allows.

    Where the source axis runs along one new axis only, the result has one long axis.
    """
    index = np.full((1, 1, 1), offset[axis])
    for new, n in enumerate(shape):
        if abs(matrix[axis, new]) * n > EDGE:
            steps = matrix[axis, new] * np.arange(n, dtype=np.float64)
            index = index + steps.reshape([-1 if new == a else 1 for a in range(3)])
    return index


def _inside(
    source_shape: tuple[int, ...],
    matrix: Float64[np.ndarray, "3 3"],
    offset: Float64[np.ndarray, " 3"],
    shape: tuple[int, int, int],
) -> Bool[np.ndarray, "D H W"]:
    inside = np.ones(shape, dtype=bool)
    for axis in range(3):
        index = _source_index(axis, matrix, offset, shape)
        inside &= (index > -0.5 - EDGE) & (index < source_shape[axis] - 0.5 + EDGE)
    return inside


def _nearest(
    source: Num[np.ndarray, "D H W"],
    matrix: Float64[np.ndarray, "3 3"],
    offset: Float64[np.ndarray, " 3"],
    shape: tuple[int, int, int],
    outside: float,
) -> Num[np.ndarray, "D H W"]:
    """Nearest neighbour by rounding half up, the same at both ends of an axis."""
    picked = []
    for axis in range(3):
        index = np.floor(_source_index(axis, matrix, offset, shape) + 0.5 + 1e-9)
        picked.append(np.clip(index, 0, source.shape[axis] - 1).astype(np.intp))
    out = source[picked[0], picked[1], picked[2]]  # indices broadcast to the new shape
    out[~_inside(source.shape, matrix, offset, shape)] = outside
    return out
