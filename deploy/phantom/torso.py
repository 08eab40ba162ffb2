"""The trunk as surfaces: skin, muscle, rib cage, diaphragm, lungs.

Each function gives the signed distance (mm, negative inside) of one surface of a
`Habitus` anywhere in patient space. The same lung surface carves the air, stops the
vessels and cuts the masks of nodules that touch the pleura, so mask and image can't
disagree.

The frame is an adult's: origin in the midline between the lungs' mid-heights, LPS.
"""

from dataclasses import dataclass

import numpy as np

from deploy.phantom.space import (
    FLOAT,
    Field,
    Space,
    ball,
    oval,
    radial,
    smooth_step,
)


@dataclass(frozen=True)
class Habitus:
    """How one patient is built; lengths in mm in the adult frame."""

    half_width: float = 163.0
    """Skin, half of the lateral diameter at mid-chest."""
    half_depth: float = 110.0
    """Skin, half of the front-to-back diameter at mid-chest."""
    fat_mm: float = 13.0
    """Subcutaneous fat, mean thickness."""
    muscle_mm: float = 20.0
    """Muscle between the ribs and the fat."""
    apex_z: float = 124.0
    """Top of the lungs."""
    dome_z: float = -62.0
    """Top of the right diaphragm; the left one lies lower."""
    heart: float = 1.0
    """Size of the heart relative to the mean."""
    heart_turn: float = 0.0
    """Shift of the heart to the left, mm."""
    rib_pitch: float = 23.0
    """Height of one rib and one vertebra with its disc."""
    rib_phase: float = 0.0
    """Shift of ribs and vertebrae along z."""
    rib_drop: float = 62.0
    """How far a rib descends on its way round to the front."""
    kyphosis: float = 9.0
    """How far the spine bows backwards."""
    breast: float = 0.0
    """Radius of the breasts; 0 draws none."""
    phase: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    """Phases of the waves that keep surfaces from being perfect."""

    @property
    def cage_half(self) -> tuple[float, float]:
        """Half axes of the inner rib cage at its widest, along x and y."""
        wall = self.fat_mm + self.muscle_mm
        return self.half_width - wall - 2.0, self.half_depth - 0.8 * wall - 4.0


def waves(habitus: Habitus, space: Space, length_mm: float) -> Field:
    """Smooth ripple between about -1 and 1: two products of waves along x, y, z."""
    k = FLOAT(2.0 * np.pi / length_mm)
    a, b, c, d, e, f = habitus.phase
    first = np.sin(k * space.x + a) * np.sin(0.9 * k * space.y + b)
    second = np.sin(0.61 * k * space.x + d) * np.cos(0.7 * k * space.y + e)
    along = np.sin(0.8 * k * space.z + c)
    across = np.cos(0.53 * k * space.z + f)
    return 0.9 * first * along + 0.8 * second * across


def skin(habitus: Habitus, space: Space) -> Field:
    """The body's outline, arms raised out of the picture, narrower at the shoulders."""
    top = smooth_step((space.z - 60.0) / 100.0)
    waist = smooth_step((-40.0 - space.z) / 120.0)
    half = (
        habitus.half_width * (1.0 - 0.13 * top - 0.04 * waist),
        habitus.half_depth * (1.0 - 0.16 * top - 0.02 * waist),
    )
    out = oval(space, (0.0, 14.0 * top), half, 2.35)
    groove = 3.5 * np.exp(-((space.x / 13.0) ** 2)) * (space.y > 0)
    out = out + groove  # the furrow over the spine
    return _with_breasts(habitus, space, out) if habitus.breast > 0 else out


def _with_breasts(habitus: Habitus, space: Space, out: Field) -> Field:
    for side in (-1.0, 1.0):
        r = habitus.breast
        centre = (side * 0.45 * habitus.half_width, -0.84 * habitus.half_depth, 5.0)
        bump = ball(space, centre, (1.25 * r, 0.62 * r, 1.1 * r))
        out = _smooth_union(out, bump, 12.0)
    return out


def cage(habitus: Habitus, space: Space) -> Field:
    """The inner rib cage: a boxy oval closed by a dome at the apex."""
    a, b = habitus.cage_half
    low = -35.0
    rise = np.maximum(space.z - low, 0.0)
    t = rise / (habitus.apex_z - low)
    waist = 1.0 - 0.05 * smooth_step((-40.0 - space.z) / 100.0)
    dy = space.y - (2.0 + 22.0 * t * t)  # the apex lies far back
    power = 2.3
    f = (np.abs(space.x) / (a * waist)) ** FLOAT(power)
    f = f + (np.abs(dy) / (b * waist)) ** FLOAT(power)
    f = f + t ** FLOAT(2.6)
    return radial(f, space.x**2 + dy * dy + 0.5 * rise * rise, power)


def diaphragm(habitus: Habitus, space: Space) -> Field:
    """Two domes, deep behind; negative above them."""
    height = -0.0042 * (space.x**2 + 0.6 * (space.y + 30.0) ** 2)
    right = np.exp(-((space.x + 68.0) ** 2 + (space.y + 12.0) ** 2) / (2 * 48.0**2))
    left = np.exp(-((space.x - 70.0) ** 2 + (space.y + 5.0) ** 2) / (2 * 45.0**2))
    top = habitus.dome_z - 40.0 + 48.0 * right + 36.0 * left + 0.55 * height
    return (top - space.z) * FLOAT(0.85)


def spine_y(habitus: Habitus, space: Space) -> Field:
    """Y of the middle of the vertebral bodies."""
    b = habitus.cage_half[1]
    t = (space.z - 10.0) / 120.0
    return b - 29.0 + habitus.kyphosis * (0.4 - t * t)


def heart_axes(habitus: Habitus) -> tuple[np.ndarray, np.ndarray]:
    """Centre (x, y, z) and half axes of the heart with its fat, in mm."""
    centre = np.array([20.0 + habitus.heart_turn, -24.0, -40.0])
    return centre, habitus.heart * np.array([63.0, 49.0, 50.0])


def lean(habitus: Habitus, space: Space) -> Space:
    """Space turned about y round the heart, whose axis points down to the left."""
    centre, _ = heart_axes(habitus)
    cos, sin = FLOAT(np.cos(0.5)), FLOAT(np.sin(0.5))
    dx, dz = space.x - FLOAT(centre[0]), space.z - FLOAT(centre[2])
    x, z = cos * dx - sin * dz, sin * dx + cos * dz
    y = space.y - FLOAT(centre[1]) + 0.22 * x  # the tip lies in front
    return Space(space.shape, x, y, z, space.edge_mm, space.affine)


def mediastinum(habitus: Habitus, space: Space) -> Field:
    """What lies between the lungs: heart, great vessels, spine, with their fat."""
    b = habitus.cage_half[1]
    tall = smooth_step((space.z + 20.0) / 90.0)
    half = (27.0 + 5.0 * tall, 0.86 * b)
    core = oval(space, (-1.0, 8.0 + 4.0 * tall), half, 1.7)
    back = oval(space, (0.0, spine_y(habitus, space) + 4.0), (25.0, 20.0), 2.4)
    out = _smooth_union(core, back, 8.0)
    _, axes = heart_axes(habitus)
    heart = ball(lean(habitus, space), (0.0, 0.0, 0.0), axes)
    return _smooth_union(out, heart, 10.0)


def lungs(habitus: Habitus, space: Space, within: Field | None = None) -> Field:
    """Both lungs with rounded corners.

    Args:
        habitus: The patient.
        space: Where.
        within: Distance to the inner cage, where it is known already.
    """
    inner = cage(habitus, space) if within is None else within
    inner = np.maximum(inner, diaphragm(habitus, space))
    out = _smooth_cut(inner, mediastinum(habitus, space), 7.0)
    return out.astype(FLOAT, copy=False)


def _smooth_union(a: Field, b: Field, radius: float) -> Field:
    """Union with the inner corner rounded off (polynomial smooth minimum)."""
    h = np.maximum(radius - np.abs(a - b), 0.0)
    return np.minimum(a, b) - h * h * FLOAT(0.25 / radius)


def _smooth_cut(a: Field, b: Field, radius: float) -> Field:
    """What of a is not in b, with rounded corners."""
    return -_smooth_union(-a, b, radius)
