"""Patient space to draw in: coordinates of a grid, and soft-edged painting.

Everything is drawn by signed distance in mm (negative inside). A distance turns into
the share of a voxel that tissue fills by a ramp one voxel wide, which is what partial
volume looks like, at no cost of supersampling. Coordinates stay as small as the grid
allows: on an axial grid z depends on D alone and has the shape (D, 1, 1), so most of a
formula is worked out on one axis and NumPy's broadcasting pays for the whole volume
only at the end. The same formulas therefore render one patient on any grid, sagittal or
oblique.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64

from common.volume import Grid

FLOAT = np.float32
"""Precision of all drawing; HU need no more."""

Field = Float32[np.ndarray, "..."]
"""Values over a space, shaped to broadcast against it."""
Point = Sequence[float] | Float64[np.ndarray, " 3"]
"""A place in the patient (x, y, z), mm, LPS."""


@dataclass(frozen=True, eq=False)
class Space:
    """The voxel centres of a grid (or of a box in it) in patient coordinates."""

    shape: tuple[int, ...]
    """What the coordinates broadcast to."""
    x: Field
    """mm to the patient's left."""
    y: Field
    """mm to posterior."""
    z: Field
    """mm to superior."""
    edge_mm: float
    """Width of the ramp at a surface: the finest voxel edge."""
    affine: Float64[np.ndarray, "4 4"]
    """Maps an index into the space (d, h, w, 1) to mm."""

    def box(
        self, low: Point, high: Point
    ) -> "tuple[tuple[slice, slice, slice], Space] | None":
        """The part of the space that covers a box of patient space.

        Args:
            low: Corner with the smallest x, y, z, mm.
            high: Corner with the largest.

        Returns:
            Slices into an array of the space and the space they cut out, or None where
            the box misses the grid.
        """
        lo, hi = np.asarray(low, np.float64), np.asarray(high, np.float64)
        centre, half = (lo + hi) / 2, (hi - lo) / 2
        inverse = self.to_index
        middle = inverse[:, :3] @ centre + inverse[:, 3]
        reach = np.abs(inverse[:, :3]) @ half
        first = np.maximum(np.ceil(middle - reach).astype(int), 0)
        last = np.minimum(np.floor(middle + reach).astype(int) + 1, self.shape)
        if (first >= last).any():
            return None
        start, stop = first.tolist(), last.tolist()
        window = (
            slice(start[0], stop[0]),
            slice(start[1], stop[1]),
            slice(start[2], stop[2]),
        )
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ first
        shape = tuple((last - first).tolist())
        x, y, z = (_cut(c, window) for c in (self.x, self.y, self.z))
        return window, Space(shape, x, y, z, self.edge_mm, affine)

    @cached_property
    def to_index(self) -> Float64[np.ndarray, "3 4"]:
        """Maps (x, y, z, 1) in mm to an index into the space."""
        return np.linalg.inv(self.affine)[:3]


def space_of(grid: Grid) -> Space:
    """The coordinates of all voxel centres, each no larger than it has to be."""
    axes = []
    for n, place in zip(grid.shape, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True):
        axes.append(np.arange(n, dtype=np.float64).reshape(place))
    coordinates = []
    for row in grid.affine[:3]:
        value = np.full((1, 1, 1), row[3])
        for factor, axis in zip(row[:3], axes, strict=True):
            if abs(factor) > 1e-9:
                value = value + factor * axis
        coordinates.append(value.astype(FLOAT))
    x, y, z = coordinates
    return Space(grid.shape, x, y, z, min(grid.spacing_mm), grid.affine)


def space_at(points: Float64[np.ndarray, "N 3"]) -> Space:
    """Scattered points as a space, so that distances can be asked there."""
    x, y, z = np.asarray(points, dtype=FLOAT).reshape(-1, 3).T
    return Space((len(x),), x, y, z, 1.0, np.eye(4))


def fill(distance: Field, edge_mm: float) -> Field:
    """Share of a voxel inside the surface: 1 deep inside, 1/2 on it, 0 outside."""
    share = distance * FLOAT(-1.0 / edge_mm)
    share += FLOAT(0.5)
    return np.clip(share, 0.0, 1.0, out=share)


def paint(hu: Field, share: Field, value: Field | float) -> None:
    """Replace a share of each voxel's tissue by another, in place."""
    step = value - hu
    step *= share
    hu += step


def oval(
    space: Space,
    centre: tuple[Field | float, Field | float],
    half: tuple[Field | float, Field | float],
    power: float,
) -> Field:
    """Radial distance to an upright superelliptic column, in the x-y plane.

    Args:
        space: Where.
        centre: x and y of the axis; may vary along z.
        half: Half axes along x and y; may vary along z.
        power: 2 is an ellipse, more is boxier.
    """
    dx, dy = space.x - centre[0], space.y - centre[1]
    f = np.abs(dx / half[0]) ** FLOAT(power) + np.abs(dy / half[1]) ** FLOAT(power)
    return radial(f, dx * dx + dy * dy, power)


def radial(f: Field, square: Field, power: float) -> Field:
    """Distance along the ray from the centre to where f (to the power) becomes 1."""
    f = np.maximum(f, FLOAT(1e-6)) ** FLOAT(1.0 / power)
    return np.sqrt(square) * (1.0 - 1.0 / f)


def ball(space: Space, centre: Point, half: Point) -> Field:
    """Distance to an ellipsoid with axes along x, y, z (first order at the surface)."""
    cx, cy, cz = (float(c) for c in centre)
    a, b, c = (float(h) for h in half)
    dx, dy, dz = space.x - cx, space.y - cy, space.z - cz
    f = np.sqrt((dx / a) ** 2 + (dy / b) ** 2 + (dz / c) ** 2)
    g = np.sqrt((dx / a**2) ** 2 + (dy / b**2) ** 2 + (dz / c**2) ** 2)
    return f * (f - 1.0) / np.maximum(g, FLOAT(1e-4))


def capsule(space: Space, a: Point, b: Point, radius: tuple[float, float]) -> Field:
    """Distance to a round-ended tube from a to b whose radius goes from r_a to r_b."""
    u, v, w = (float(q) - float(p) for p, q in zip(a, b, strict=True))
    square = max(u * u + v * v + w * w, 1e-9)
    dx, dy, dz = (
        c - FLOAT(p) for c, p in zip((space.x, space.y, space.z), a, strict=True)
    )
    t = np.clip((dx * u + dy * v + dz * w) * (1.0 / square), 0.0, 1.0)
    dx, dy, dz = dx - t * u, dy - t * v, dz - t * w
    out = np.sqrt(dx * dx + dy * dy + dz * dz) - (
        radius[0] + t * (radius[1] - radius[0])
    )
    return out.astype(FLOAT, copy=False)


def smooth_step(value: Field) -> Field:
    """0 below 0, 1 above 1, smooth between."""
    t = np.clip(value, 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _cut(value: Field, cut: tuple[slice, ...]) -> Field:
    """Cut the axes along which a broadcast array really varies."""
    return value[
        tuple(
            c if n > 1 else slice(None) for c, n in zip(cut, value.shape, strict=True)
        )
    ]
