"""Soft tissue: body wall, heart, great vessels, airways, upper abdomen, table.

Values are HU at 120 kV. With contrast the blood is brighter by one number of the
patient, and liver, spleen and heart muscle take up their share of it.
"""

from dataclasses import dataclass

import numpy as np

from deploy.phantom.space import Field, Space, ball, fill, paint
from deploy.phantom.torso import (
    Habitus,
    diaphragm,
    heart_axes,
    lean,
    skin,
    spine_y,
    waves,
)
from deploy.phantom.vessels import paint_path

AIR_HU, FAT_HU, MUSCLE_HU, SKIN_HU = -1000.0, -98.0, 52.0, 20.0


@dataclass(frozen=True)
class Tissue:
    """HU that differ between patients."""

    lung_hu: float = -862.0
    """Lung between the vessels, at the middle of the chest."""
    blood_hu: float = 44.0
    """Blood; about 44 without contrast, 150-320 with."""

    @property
    def uptake_hu(self) -> float:
        """How much brighter perfused organs are than without contrast."""
        return 0.22 * (self.blood_hu - 44.0)


def paint_wall(hu: Field, habitus: Habitus, space: Space) -> None:
    """Skin, fat, and the muscles of the chest wall with fat between them."""
    body = skin(habitus, space)
    wave = waves(habitus, space, 95.0)
    paint(hu, fill(body, space.edge_mm), SKIN_HU)
    paint(hu, fill(body + 2.2, space.edge_mm), FAT_HU)
    # Fat is thicker in front and at the flanks than over the shoulder blades.
    front = 1.0 / (1.0 + np.exp(space.y / np.float32(12.0)))
    fat = habitus.fat_mm * (1.0 + 0.2 * wave) + 0.25 * habitus.breast * front
    muscle = fill(body + fat + 2.2, space.edge_mm)
    layers = np.sin(waves(habitus, space, 120.0) * 3.0 + body * np.float32(0.3))
    seams = np.clip((layers + 0.8 * wave - 0.85) * 3.0, 0.0, 1.0)
    paint(hu, muscle, MUSCLE_HU - 120.0 * seams)
    _paint_back(hu, habitus, space)


def _paint_back(hu: Field, habitus: Habitus, space: Space) -> None:
    """The long muscles on both sides of the spinous processes."""
    width, depth = 52.0, habitus.half_depth
    cut = space.box((-width, 0.3 * depth, -1e4), (width, depth + 20.0, 1e4))
    if cut is None:
        return
    window, s = cut
    y = spine_y(habitus, s) + 42.0
    column = np.sqrt(((np.abs(s.x) - 24.0) / 22.0) ** 2 + ((s.y - y) / 15.0) ** 2)
    inside = np.maximum((column - 1.0) * 15.0, skin(habitus, s) + 5.0)
    strands = 14.0 * np.sin(0.8 * s.x) * np.sin(0.7 * s.y)
    paint(hu[window], fill(inside, s.edge_mm), MUSCLE_HU - 8.0 + strands)


def paint_cavity(hu: Field, habitus: Habitus, space: Space, inner: Field) -> None:
    """Inside the cage: a lining of muscle and fat, then mediastinal and belly fat."""
    paint(hu, fill(inner - 8.5, space.edge_mm), MUSCLE_HU)
    paint(hu, fill(inner - 1.2, space.edge_mm), FAT_HU)


def paint_lungs(
    hu: Field, habitus: Habitus, space: Space, tissue: Tissue, lung: Field
) -> None:
    """Lung that grows denser towards the back, mottled by what is too fine to draw."""
    mottle = waves(habitus, space, 11.0) * waves(habitus, space, 37.0)
    value = tissue.lung_hu + 0.38 * space.y + 14.0 * mottle
    paint(hu, fill(lung - 0.8, space.edge_mm), 10.0)  # pleura
    paint(hu, fill(lung, space.edge_mm), value)


def paint_heart(hu: Field, habitus: Habitus, space: Space, tissue: Tissue) -> None:
    """Fat, muscle, and the four chambers."""
    centre, axes = heart_axes(habitus)
    reach = float(axes.max()) * 1.5
    cut = space.box(centre - reach, centre + reach)
    if cut is None:
        return
    window, s = cut
    s = lean(habitus, s)
    part, k = hu[window], habitus.heart
    keep = part > -300.0  # never over the lung
    fat = ball(s, (0.0, 0.0, 0.0), axes)
    paint(part, fill(fat, s.edge_mm) * keep, FAT_HU + 8.0)
    muscle = ball(s, (0.0, 1.0, 0.0), axes - (7.0, 6.0, 6.0) * np.array(k))
    paint(part, fill(muscle, s.edge_mm) * keep, 46.0 + 0.35 * tissue.uptake_hu)
    chambers = (
        ((26.0, 6.0, -6.0), (27.0, 19.0, 20.0)),  # left ventricle
        ((8.0, -22.0, -8.0), (36.0, 12.0, 24.0)),  # right ventricle
        ((-34.0, -2.0, 6.0), (17.0, 21.0, 24.0)),  # right atrium
        ((-8.0, 24.0, 20.0), (27.0, 14.0, 19.0)),  # left atrium
    )
    for place, half in chambers:
        pool = ball(s, k * np.array(place), k * np.array(half))
        paint(part, fill(pool, s.edge_mm) * keep, tissue.blood_hu)


def paint_great_vessels(
    hu: Field, habitus: Habitus, space: Space, tissue: Tissue
) -> None:
    """Aorta, pulmonary arteries, caval and head vessels, oesophagus, lymph nodes."""
    blood, b = tissue.blood_hu, habitus.cage_half[1]
    back = b - 54.0
    t = habitus.heart_turn * 0.5
    gullet = [(4.0, back + 4, 160.0), (3.0, back + 4, 30.0), (10.0, back - 5, -150.0)]
    paint_path(hu, space, gullet, (7.0, 7.0, 8.0), 38.0)
    paint_path(hu, space, gullet, (2.0, 2.0, 3.0), -60.0)
    arch = [
        (-4.0 + t, -20.0, -22.0),
        (-17.0, -24.0, 12.0),
        (-15.0, -20.0, 38.0),
        (-3.0, -6.0, 54.0),
        (12.0, 14.0, 56.0),
        (23.0, back + 4.0, 44.0),
        (27.0, back + 12.0, 20.0),
        (24.0, back + 14.0, -70.0),
        (9.0, back + 8.0, -190.0),
    ]
    wall = (17.5, 17.5, 16.5, 15.5, 14.5, 14.0, 13.5, 12.5, 11.0)
    paint_path(hu, space, arch, [r + 1.5 for r in wall], 40.0)
    paint_path(hu, space, arch, wall, blood)
    trunk = [(22.0 + t, -40.0, -5.0), (24.0, -30.0, 14.0), (20.0, -14.0, 24.0)]
    paint_path(hu, space, trunk, (15.0, 15.0, 13.5), blood)
    left = [(20.0, -14.0, 24.0), (36.0, 8.0, 24.0), (47.0, 18.0, 14.0)]
    paint_path(hu, space, left, (12.5, 10.5, 8.5), blood)
    right = [(20.0, -14.0, 24.0), (-8.0, -2.0, 20.0), (-46.0, 8.0, 10.0)]
    paint_path(hu, space, right, (12.0, 11.0, 8.5), blood)
    cava = [(-27.0, -14.0, 92.0), (-29.0, -14.0, 30.0), (-27.0, -12.0, -10.0)]
    paint_path(hu, space, cava, (8.0, 9.5, 11.0), blood * 1.05)
    low_cava = [(-24.0, 4.0, -62.0), (-22.0, 16.0, -190.0)]
    paint_path(hu, space, low_cava, (12.0, 12.0), 0.7 * blood + 12.0)
    for top, foot, radius in (
        ((-26.0, -10.0, 118.0), (-5.0, -8.0, 56.0), 6.5),
        ((14.0, -4.0, 150.0), (5.0, 3.0, 58.0), 4.5),
        ((30.0, 8.0, 130.0), (13.0, 15.0, 58.0), 5.0),
        ((34.0, -18.0, 112.0), (-26.0, -18.0, 84.0), 6.5),
    ):
        paint_path(hu, space, (top, foot), (radius, radius), blood)
    for x, y, z in ((14.0, 20.0, 30.0), (-16.0, 14.0, 34.0), (-20.0, -4.0, 48.0)):
        paint_path(hu, space, ((x, y, z), (x + 3, y + 2, z - 4)), (3.5, 3.0), 45.0)


AIRWAYS = (
    ((0.0, 8.0, 175.0), (0.0, 10.0, 110.0), 9.0),
    ((0.0, 10.0, 110.0), (1.0, 20.0, 40.0), 9.0),
    ((1.0, 20.0, 40.0), (-30.0, 22.0, 17.0), 7.0),
    ((1.0, 20.0, 40.0), (38.0, 13.0, 10.0), 6.0),
    ((-30.0, 22.0, 17.0), (-52.0, 16.0, 38.0), 4.0),
    ((-30.0, 22.0, 17.0), (-44.0, 26.0, -16.0), 4.0),
    ((-44.0, 26.0, -16.0), (-58.0, 44.0, -44.0), 2.6),
    ((-44.0, 26.0, -16.0), (-66.0, 2.0, -30.0), 2.2),
    ((-52.0, 16.0, 38.0), (-72.0, 6.0, 62.0), 2.2),
    ((38.0, 13.0, 10.0), (58.0, 8.0, 30.0), 3.8),
    ((38.0, 13.0, 10.0), (53.0, 27.0, -20.0), 3.6),
    ((53.0, 27.0, -20.0), (64.0, 50.0, -48.0), 2.4),
    ((58.0, 8.0, 30.0), (70.0, 0.0, 54.0), 2.2),
)
"""Windpipe and bronchi down to the segments: from, to (mm), inner radius (mm)."""


def paint_airways(hu: Field, space: Space) -> None:
    """Walls first, then air, so that forks are open."""
    for a, b, radius in AIRWAYS:
        paint_path(hu, space, (a, b), (1.2 * radius + 0.6, radius + 0.5), 5.0)
    for a, b, radius in AIRWAYS:
        paint_path(hu, space, (a, b), (radius, 0.8 * radius), -985.0)


def paint_abdomen(
    hu: Field, habitus: Habitus, space: Space, tissue: Tissue, inner: Field
) -> None:
    """Liver, spleen, stomach with its bubble, kept below the diaphragm."""
    cut = space.box((-1e4, -1e4, -1e4), (1e4, 1e4, habitus.dome_z + 30.0))
    if cut is None:
        return
    window, s = cut
    part, a = hu[window], habitus.cage_half[0]
    # The floor of the chest: what is above it or outside the cage is left alone.
    inside = np.maximum(inner[window] + 2.5, 2.5 - diaphragm(habitus, s))
    room = fill(inside, s.edge_mm)
    paint(part, fill(inside - 2.0, s.edge_mm), MUSCLE_HU)
    paint(part, room, FAT_HU)
    wave = waves(habitus, s, 70.0)
    liver = ball(s, (-0.5 * a, -10.0, -120.0), (0.86 * a, 82.0, 78.0)) + 3.0 * wave
    liver = np.maximum(liver, s.x - 34.0 + 0.3 * (s.y + 40.0))
    spleen = ball(s, (0.66 * a, 34.0, -112.0), (30.0, 42.0, 44.0)) + 2.0 * wave
    stomach = ball(s, (0.46 * a, -22.0, -112.0), (40.0, 44.0, 42.0)) + 2.0 * wave
    bubble = np.maximum(stomach + 3.5, s.y + 34.0)  # gas rises to the front
    for shape, value in (
        (stomach, 42.0),
        (stomach + 4.0, 15.0),
        (bubble, -960.0),
        (spleen, 48.0 + tissue.uptake_hu * 1.6),
        (liver, 57.0 + tissue.uptake_hu),
    ):
        paint(part, fill(shape, s.edge_mm) * room, value)
    kidney_y = spine_y(habitus, s) - 6.0
    pillar = np.sqrt(((np.abs(s.x) - 24.0) / 9.0) ** 2 + ((s.y - kidney_y) / 16.0) ** 2)
    paint(part, fill((pillar - 1.0) * 9.0, s.edge_mm) * room, MUSCLE_HU)


def paint_table(hu: Field, habitus: Habitus, space: Space) -> None:
    """The couch: a curved shell of carbon fibre round foam, under a thin mat."""
    top = habitus.half_depth + 6.0 - space.x**2 / np.float32(1500.0)
    depth = space.y - top
    width = np.abs(space.x) - 205.0
    mat = np.maximum(np.maximum(-depth - 5.0, depth), width + 15.0)
    shell = np.maximum(np.maximum(-depth, depth - 30.0 + space.x**2 / 2600.0), width)
    paint(hu, fill(mat, space.edge_mm), -880.0)
    paint(hu, fill(shell, space.edge_mm), -250.0)
    paint(hu, fill(shell + 2.5, space.edge_mm), -930.0)
