"""Lung nodules: where they sit, what they look like, and their exact masks.

A nodule is a surface, r(direction), cut by the lung. Its mask is the set of voxels
whose centre lies inside, so it is exact on every grid, and its image is the same
surface with soft edges. Malignant ones are on average larger, lobed, spiculated or
part-solid; benign ones smooth, some of them calcified. Both kinds overlap, as they do
in patients.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from deploy.phantom.space import FLOAT, Field, Space, capsule, fill, paint, space_at
from deploy.phantom.torso import Habitus, lungs
from deploy.phantom.vessels import Tree, joined, scatter

Directions = tuple[tuple[float, float, float, float], ...]
"""Unit vectors x, y, z, each with a height or length relative to the radius."""


@dataclass(frozen=True)
class NodulePlan:
    """One nodule, before it is rendered; mm in the adult frame."""

    centre: tuple[float, float, float]
    """x, y, z, mm."""
    diameter_mm: float
    """Of the ball with the same volume (lobes and spicules keep it)."""
    malignant: bool
    """The truth that a classifier has to find."""
    hu: float
    """The solid part."""
    halo_hu: float | None = None
    """Ground glass round the solid core, where the nodule is part-solid."""
    core: float = 1.0
    """Radius of the solid part relative to the whole."""
    lobes: Directions = ()
    """Bumps: direction x, y, z and height relative to the radius."""
    spicules: Directions = ()
    """Spikes: direction x, y, z and length relative to the radius."""


@dataclass(frozen=True)
class NoduleMix:
    """Which nodules a hospital sees."""

    count: tuple[int, int] = (1, 3)
    """Fewest and most in one patient."""
    diameter_mm: tuple[float, float] = (9.0, 26.0)
    """Smallest and largest."""
    malignant: float = 0.45
    """Share of malignant ones."""
    part_solid: float = 0.25
    """Share of part-solid ones among the malignant."""
    attached: float = 0.35
    """Share that touches a vessel or the pleura."""
    contrast_hu: float = 0.0
    """Shift of the solid part; negative is fainter."""


def plan_nodules(
    rng: np.random.Generator,
    habitus: Habitus,
    trees: tuple[Tree, ...],
    mix: NoduleMix,
    scale: float,
) -> tuple[NodulePlan, ...]:
    """Nodules for one patient, apart from each other.

    Args:
        rng: The patient's generator.
        habitus: Gives the lungs.
        trees: Vessels, to be touched or kept clear of.
        mix: The hospital's nodules, in real mm.
        scale: Real mm per mm of the adult frame.
    """
    count = int(rng.integers(mix.count[0], mix.count[1] + 1))
    plans: list[NodulePlan] = []
    for _ in range(count):
        malignant = bool(rng.random() < mix.malignant)
        low, high = mix.diameter_mm
        size = rng.beta(2.2, 1.8) if malignant else rng.beta(1.3, 3.2)
        diameter = (low + (high - low) * float(size)) / scale
        for _ in range(8):
            points = _place(
                rng, habitus, trees, radius=diameter / 2, attached=mix.attached
            )
            clear = [p for p in points if _is_clear(p, diameter, plans)]
            if clear:
                plans.append(_dress(rng, clear[0], diameter, malignant, mix))
                break
    return tuple(plans)


def _is_clear(
    point: Float64[np.ndarray, " 3"], diameter: float, others: list[NodulePlan]
) -> bool:
    return all(
        float(np.linalg.norm(point - other.centre))
        > 0.5 * (diameter + other.diameter_mm) + 6.0
        for other in others
    )


def _dress(
    rng: np.random.Generator,
    centre: Float64[np.ndarray, " 3"],
    diameter: float,
    malignant: bool,
    mix: NoduleMix,
) -> NodulePlan:
    def directions(count: int, low: float, high: float) -> Directions:
        unit = rng.normal(size=(count, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        height = rng.uniform(low, high, count)
        rows = np.column_stack([unit, height]).tolist()
        return tuple((x, y, z, h) for x, y, z, h in rows)

    part_solid = malignant and bool(rng.random() < mix.part_solid)
    calcified = not malignant and bool(rng.random() < 0.2)
    hu = 30.0 + mix.contrast_hu + float(rng.normal(0.0, 15.0))
    lobes = directions(7, 0.1, 0.38) if malignant else directions(3, 0.0, 0.12)
    spiky = malignant and bool(rng.random() < 0.7)
    return NodulePlan(
        centre=(float(centre[0]), float(centre[1]), float(centre[2])),
        diameter_mm=diameter,
        malignant=malignant,
        hu=hu + 260.0 if calcified else hu,
        halo_hu=float(rng.uniform(-620.0, -480.0)) if part_solid else None,
        core=float(rng.uniform(0.4, 0.65)) if part_solid else 1.0,
        lobes=lobes,
        spicules=directions(14, 1.5, 2.1) if spiky else (),
    )


def _place(
    rng: np.random.Generator,
    habitus: Habitus,
    trees: tuple[Tree, ...],
    *,
    radius: float,
    attached: float,
) -> Float64[np.ndarray, "N 3"]:
    """Centres free in the lung, at a vessel, or at the pleura (one kind a call)."""
    draw = float(rng.random())
    vessels = joined(trees)
    nodes, thick = vessels.end, vessels.radius[:, 1]
    if draw < attached / 2:
        return _in_lung(rng, habitus, -0.95 * radius, -0.55 * radius)
    points = _in_lung(rng, habitus, -1e3, -radius - 2.0)
    apart = np.linalg.norm(points[:, None] - nodes[None], axis=2)
    if draw >= attached:
        return points[(apart - thick).min(axis=1) > 0.6 * radius]
    nearest = apart.argmin(axis=1)
    away = points - nodes[nearest]
    away /= np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-9)
    points = nodes[nearest] + away * (radius + 0.3 * thick[nearest, None])
    return points[lungs(habitus, space_at(points)) < -radius - 1.0]


def _in_lung(
    rng: np.random.Generator, habitus: Habitus, low: float, high: float
) -> Float64[np.ndarray, "24 3"]:
    a, b = habitus.cage_half

    def fits(points: np.ndarray) -> np.ndarray:
        depth = lungs(habitus, space_at(points))
        found: np.ndarray = (depth > low) & (depth < high)
        return found

    corner = (a, b + 10.0, habitus.apex_z)
    return scatter(rng, 24, (-a, -b, habitus.dome_z - 25.0), corner, fits)


def distance(plan: NodulePlan, space: Space) -> Field:
    """Distance to the nodule's body with its spicules, not cut by the lung."""
    cx, cy, cz = plan.centre
    dx, dy, dz = space.x - FLOAT(cx), space.y - FLOAT(cy), space.z - FLOAT(cz)
    apart = np.sqrt(dx * dx + dy * dy + dz * dz)
    inverse = 1.0 / np.maximum(apart, FLOAT(1e-3))
    bump = _bumps(plan, dx * inverse, dy * inverse, dz * inverse)
    radius = 0.5 * plan.diameter_mm / _mean_radius(plan)
    out = apart - FLOAT(radius) * bump
    for x, y, z, length in plan.spicules:
        tip = [
            c + 0.5 * plan.diameter_mm * length * u
            for c, u in zip(plan.centre, (x, y, z), strict=True)
        ]
        out = np.minimum(out, capsule(space, plan.centre, tip, (1.6, 0.2)))
    return out


def _bumps(plan: NodulePlan, x: Field, y: Field, z: Field) -> Field:
    total = np.ones_like(x)
    for u, v, w, height in plan.lobes:
        total += FLOAT(height) * np.exp(FLOAT(5.0) * (u * x + v * y + w * z - 1.0))
    return total


def _mean_radius(plan: NodulePlan) -> float:
    """Cube root of the mean of r^3 over directions: keeps the volume of the ball."""
    n = np.arange(400) + 0.5
    z, turn = 1.0 - 2.0 * n / 400.0, np.pi * (1.0 + 5.0**0.5) * n
    flat = np.sqrt(1.0 - z * z)
    bump = _bumps(plan, flat * np.cos(turn), flat * np.sin(turn), z)
    return float(np.mean(bump.astype(np.float64) ** 3) ** (1.0 / 3.0))


def paint_nodule(
    hu: Field, mask: np.ndarray, plan: NodulePlan, habitus: Habitus, space: Space
) -> None:
    """Paint the nodule and mark its voxels, both in place."""
    reach = plan.diameter_mm * 1.2 + space.edge_mm
    centre = np.asarray(plan.centre)
    cut = space.box(centre - reach, centre + reach)
    if cut is None:
        return
    window, s = cut
    part = hu[window]
    body = distance(plan, s)
    lung = lungs(habitus, s)
    shape = np.maximum(body, lung)
    mask[window] = shape < 0.0
    if plan.halo_hu is not None:
        share = fill(shape, s.edge_mm)
        paint(part, share, np.maximum(part, FLOAT(plan.halo_hu)))
        shape = shape + FLOAT(0.5 * plan.diameter_mm * (1.0 - plan.core))
    paint(part, fill(shape, s.edge_mm), np.maximum(part, FLOAT(plan.hu)))
