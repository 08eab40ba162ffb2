"""One phantom patient: drawn from a generator, rendered on any grid.

All chance is spent before the first voxel: `imagine` draws a `Patient` in patient space
and `render` samples it on a grid. The same patient on an axial, sagittal, flipped or
oblique grid is therefore the same tissue, which is what the geometry tests lean on.

Not covered here: noise, blur and the scanner's number format
(`deploy.phantom.scanner`).
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from common.volume import Grid, Volume
from deploy.phantom.bones import paint_girdle, paint_ribs, paint_spine
from deploy.phantom.nodules import NoduleMix, NodulePlan, paint_nodule, plan_nodules
from deploy.phantom.organs import (
    AIR_HU,
    Tissue,
    paint_abdomen,
    paint_airways,
    paint_cavity,
    paint_great_vessels,
    paint_heart,
    paint_lungs,
    paint_table,
    paint_wall,
)
from deploy.phantom.space import FLOAT, Space, space_at, space_of
from deploy.phantom.torso import Habitus, cage, lungs
from deploy.phantom.vessels import Tree, grow, joined, paint_tree, scatter


@dataclass(frozen=True)
class Anatomy:
    """What kind of patients are drawn."""

    scale: float = 1.0
    """Real mm per mm of an adult; 0.5 makes a small creature for fast tests."""
    contrast: float = 0.3
    """Share of patients with contrast medium in the blood."""
    branches: int = 170
    """Tips of each of the four vessel trees; fewer is faster."""
    nodules: NoduleMix = field(default_factory=NoduleMix)
    """Which nodules; diameters are real mm whatever the scale."""


@dataclass(frozen=True)
class Patient:
    """Everything about one patient, independent of any grid."""

    habitus: Habitus
    """Shape of the body, adult frame."""
    tissue: Tissue
    """HU that differ between patients."""
    trees: tuple[Tree, ...]
    """Vessels of the lungs, adult frame."""
    nodules: tuple[NodulePlan, ...]
    """Nodules, adult frame."""
    scale: float
    """Real mm per mm of the adult frame."""


@dataclass(frozen=True, eq=False)
class Nodule:
    """One nodule on the grid it was rendered on."""

    name: str
    """"Nodule 1" and so on, in the order drawn."""
    mask: Bool[np.ndarray, "D H W"]
    """True where the voxel's centre lies inside."""
    centre_mm: tuple[float, float, float]
    """x, y, z in mm, LPS."""
    diameter_mm: float
    """Of the ball with the same volume."""
    malignant: bool
    """The truth for classification."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A patient on a grid, free of noise."""

    volume: Volume
    """HU, float32."""
    nodules: tuple[Nodule, ...]
    """All nodules of the patient, also those outside the grid (empty mask)."""


def imagine(rng: np.random.Generator, anatomy: Anatomy) -> Patient:
    """Draw a patient.

    Args:
        rng: Spent on the patient alone, so equal generators give equal patients on
            all grids.
        anatomy: What kind of patient.
    """
    habitus, tissue = _habitus(rng), _tissue(rng, anatomy.contrast)
    trees = tuple(
        _lung_tree(rng, habitus, root, anatomy.branches, tip)
        for root, tip in (
            ((-44.0, 8.0, 9.0), 0.75),
            ((46.0, 16.0, 12.0), 0.75),
            ((-34.0, 10.0, -18.0), 0.62),
            ((42.0, 14.0, -16.0), 0.62),
        )
    )
    nodules = plan_nodules(rng, habitus, trees, anatomy.nodules, anatomy.scale)
    return Patient(habitus, tissue, trees, nodules, anatomy.scale)


def render(patient: Patient, grid: Grid) -> Phantom:
    """HU and masks of a patient on a grid; its origin is the middle of the chest."""
    shrink = np.diag([1.0 / patient.scale] * 3 + [1.0])
    space = space_of(Grid(grid.shape, shrink @ grid.affine))
    hu = np.full(grid.shape, AIR_HU, dtype=FLOAT)
    _paint_body(hu, patient, space)
    nodules = []
    for number, plan in enumerate(patient.nodules, start=1):
        mask = np.zeros(grid.shape, dtype=bool)
        paint_nodule(hu, mask, plan, patient.habitus, space)
        x, y, z = (patient.scale * c for c in plan.centre)
        size = patient.scale * plan.diameter_mm
        nodules.append(
            Nodule(f"Nodule {number}", mask, (x, y, z), size, plan.malignant)
        )
    return Phantom(Volume(hu, grid), tuple(nodules))


def _paint_body(hu: np.ndarray, patient: Patient, space: Space) -> None:
    habitus, tissue = patient.habitus, patient.tissue
    paint_table(hu, habitus, space)
    width, depth = habitus.half_width + 4.0, habitus.half_depth + 25.0
    cut = space.box((-width, -depth - habitus.breast, -1e4), (width, depth, 1e4))
    if cut is None:
        return
    window, space = cut  # what follows lies within the skin
    hu = hu[window]
    inner = cage(habitus, space)
    lung = lungs(habitus, space, inner)
    paint_wall(hu, habitus, space)
    paint_cavity(hu, habitus, space, inner)
    paint_girdle(hu, habitus, space)
    paint_ribs(hu, habitus, space, inner)
    paint_lungs(hu, habitus, space, tissue, lung)
    paint_abdomen(hu, habitus, space, tissue, inner)
    paint_heart(hu, habitus, space, tissue)
    paint_spine(hu, habitus, space)
    paint_great_vessels(hu, habitus, space, tissue)
    paint_tree(hu, space, joined(patient.trees), tissue.blood_hu)
    paint_airways(hu, space)


def _habitus(rng: np.random.Generator) -> Habitus:
    fat = float(rng.gamma(4.0, 3.5))
    fat = min(max(fat, 5.0), 28.0)
    bulk = float(rng.normal(0.0, 5.0))
    female = bool(rng.random() < 0.5)
    return Habitus(
        half_width=148.0 + fat + bulk,
        half_depth=100.0 + 0.8 * fat + 0.5 * bulk,
        fat_mm=fat,
        muscle_mm=float(rng.uniform(15.0, 24.0)),
        apex_z=float(rng.uniform(114.0, 128.0)),
        dome_z=float(rng.uniform(-76.0, -52.0)),
        heart=float(rng.uniform(0.88, 1.1)),
        heart_turn=float(rng.uniform(-5.0, 8.0)),
        rib_pitch=float(rng.uniform(21.5, 24.5)),
        rib_phase=float(rng.uniform(-11.0, 11.0)),
        rib_drop=float(rng.uniform(50.0, 74.0)),
        kyphosis=float(rng.uniform(4.0, 15.0)),
        breast=float(rng.uniform(26.0, 44.0)) if female else 0.0,
        phase=tuple(float(p) for p in rng.uniform(0.0, 2 * np.pi, 6)),
    )


def _tissue(rng: np.random.Generator, contrast: float) -> Tissue:
    lung = float(rng.normal(-862.0, 18.0))
    if rng.random() < contrast:
        return Tissue(lung, float(rng.uniform(150.0, 300.0)))
    return Tissue(lung, float(rng.normal(44.0, 4.0)))


def _lung_tree(
    rng: np.random.Generator,
    habitus: Habitus,
    root: tuple[float, float, float],
    tips: int,
    tip_mm: float,
) -> Tree:
    """A tree in the lung on the root's side."""
    a, b = habitus.cage_half

    def fits(points: np.ndarray) -> np.ndarray:
        inside: np.ndarray = lungs(habitus, space_at(points)) < -3.0
        return inside & (points[:, 0] * root[0] > 0)

    low, high = (-a, -b, -130.0), (a, b + 10.0, habitus.apex_z)
    return grow(rng, root, scatter(rng, tips, low, high, fits), tip_mm)
