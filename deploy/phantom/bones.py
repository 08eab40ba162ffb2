"""Bones of the chest: ribs, spine, sternum, clavicles, shoulder blades.

Every bone has a dense cortex and a softer middle, both as HU, because a network that
has only seen solid bone takes real marrow for something else. Ribs follow the rib cage
round from the spine and end in cartilage, as the slope of the pieces seen on one slice
shows.
"""

import numpy as np

from deploy.phantom.space import FLOAT, Field, Space, ball, capsule, fill, oval, paint
from deploy.phantom.torso import Habitus, spine_y

CORTEX_HU, MARROW_HU, DISC_HU, CARTILAGE_HU, CORD_HU = 820.0, 210.0, 85.0, 105.0, 25.0
"""Typical HU at 120 kV."""


def paint_ribs(hu: Field, habitus: Habitus, space: Space, cage: Field) -> None:
    """Twelve pairs on the outside of the cage.

    Args:
        hu: Painted in place, shape of the space.
        habitus: The patient.
        space: Where.
        cage: Distance to the inner rib cage on the space, mm.
    """
    near = np.nonzero(np.abs(cage - 5.0) < 8.0)
    x, y, z = (
        np.broadcast_to(c, space.shape)[near] for c in (space.x, space.y, space.z)
    )
    round_ = np.arctan2(np.abs(x), y - 8.0)  # 0 at the spine, pi at the sternum
    drop = habitus.rib_drop * (0.5 - 0.5 * np.cos(np.minimum(1.12 * round_, np.pi)))
    drop = drop - 14.0 * np.exp(-(((round_ - np.pi) / 0.5) ** 2))  # cartilage climbs
    pitch = habitus.rib_pitch
    level = (118.0 + habitus.rib_phase - drop - z) / pitch
    number = np.clip(np.rint(level), 0, 11)
    dz = (level - number) * pitch * 0.88
    radius = np.sqrt(((cage[near] - 5.0) / 3.6) ** 2 + (dz / 6.4) ** 2)
    distance = (radius - 1.0) * 4.2
    # The lower the rib, the shorter; all stop before the sternum's midline.
    ends = np.where(number >= 10, 1.5, np.where(number >= 7, 2.55, 2.98))
    distance = np.maximum(distance, (round_ - ends) * 60.0)
    distance = np.maximum(distance, (0.22 - round_) * 60.0)
    shell = np.clip(1.0 - (radius - 0.55) ** 2 * 3.0, 0.0, 1.0)
    bone = MARROW_HU + (CORTEX_HU - MARROW_HU) * shell
    gristle = np.clip((round_ - 2.42) / 0.12, 0.0, 1.0)
    value = bone + (CARTILAGE_HU - bone) * gristle
    part = hu[near]
    paint(part, fill(distance.astype(FLOAT), space.edge_mm), value)
    hu[near] = part


def paint_spine(hu: Field, habitus: Habitus, space: Space) -> None:
    """Vertebrae with discs, the canal with the cord, and their processes."""
    b = habitus.cage_half[1]
    cut = space.box((-60.0, b - 75.0, -1e4), (60.0, b + 40.0, 1e4))
    if cut is None:
        return
    window, s = cut
    part, y0 = hu[window], spine_y(habitus, s)
    level = (s.z - habitus.rib_phase) / habitus.rib_pitch
    phase = np.abs(level - np.rint(level)) * habitus.rib_pitch  # 0 mid-body
    disc = phase - (habitus.rib_pitch / 2 - 2.6)  # positive inside the disc
    body = oval(s, (0.0, y0), (17.5, 14.0), 2.3)
    waist = body + 1.6 * np.cos(phase * FLOAT(np.pi / habitus.rib_pitch))
    core = MARROW_HU + 12.0 * np.sin(1.9 * s.x) * np.sin(1.7 * s.y)
    paint(part, fill(waist, s.edge_mm), DISC_HU)
    bone = np.maximum(waist, disc)
    paint(part, fill(bone, s.edge_mm), 0.75 * CORTEX_HU)
    paint(part, fill(bone + 1.8, s.edge_mm), core)
    _paint_arch(part, s, y0 + 25.0, phase)


def _paint_arch(part: Field, s: Space, canal_y: Field, phase: Field) -> None:
    """Neural arch: a ring round the canal, transverse and spinous processes."""
    canal = oval(s, (0.0, canal_y - 2.0), (9.0, 8.0), 2.0)
    lamina = np.maximum(oval(s, (0.0, canal_y), (15.5, 14.5), 2.0), phase - 8.5)
    reach = np.abs(s.x)
    side_y = canal_y - 3.0 + 0.22 * reach
    side = np.sqrt(((s.y - side_y) / 4.5) ** 2 + (phase / 6.0) ** 2) - 1.0
    side = np.maximum(side * 4.5, reach - 33.0)
    # Spinous processes point down, over the next vertebra.
    tail = np.maximum(np.abs(s.x) - 3.0, np.abs(s.y - canal_y - 16.0) - 11.0)
    tail = np.maximum(tail, phase - 9.0)
    arch = np.minimum(np.minimum(lamina, side), tail)
    paint(part, fill(arch, s.edge_mm), 0.8 * CORTEX_HU)
    paint(part, fill(arch + 2.6, s.edge_mm), MARROW_HU + 120.0)
    paint(part, fill(canal, s.edge_mm), 5.0)
    paint(part, fill(canal + 3.5, s.edge_mm), CORD_HU + 15.0)


def paint_girdle(hu: Field, habitus: Habitus, space: Space) -> None:
    """Sternum, clavicles and shoulder blades."""
    a, b = habitus.cage_half
    front = 2.0 - b - 3.0
    for side in (-1.0, 1.0):
        inner = (side * 17.0, front + 26.0, 104.0)
        outer = (side * 0.88 * a, 18.0, 136.0)
        _paint_tube(hu, space, inner, outer, 6.5)
        _paint_blade(hu, space, habitus, side)
    cut = space.box((-26.0, front - 16.0, -75.0), (26.0, front + 50.0, 112.0))
    if cut is None:
        return
    window, s = cut
    tilt = front + 20.0 * np.clip((s.z - 0.0) / 110.0, 0.0, 1.0) ** 1.5
    wide = 14.0 + 8.0 * np.clip((s.z - 55.0) / 40.0, 0.0, 1.0)
    plate = np.maximum(
        oval(s, (0.0, tilt), (wide, 5.5), 3.0), np.abs(s.z - 18.0) - 88.0
    )
    paint(hu[window], fill(plate, s.edge_mm), 0.6 * CORTEX_HU)
    paint(hu[window], fill(plate + 2.0, s.edge_mm), MARROW_HU - 70.0)


def _paint_tube(
    hu: Field, space: Space, a: tuple[float, ...], b: tuple[float, ...], radius: float
) -> None:
    low = np.minimum(a, b) - radius - 4.0
    high = np.maximum(a, b) + radius + 4.0
    cut = space.box(low, high)
    if cut is None:
        return
    window, s = cut
    tube = capsule(s, a, b, (radius, radius))
    paint(hu[window], fill(tube, s.edge_mm), CORTEX_HU)
    paint(hu[window], fill(tube + 2.4, s.edge_mm), MARROW_HU + 60.0)


def _paint_blade(hu: Field, space: Space, habitus: Habitus, side: float) -> None:
    """A thin plate behind the upper ribs, with its spine and thick outer rim."""
    a, b = habitus.cage_half
    cut = space.box(
        (min(side * 0.3 * a, side * 1.12 * a), 0.15 * b, -5.0),
        (max(side * 0.3 * a, side * 1.12 * a), 1.3 * b, 140.0),
    )
    if cut is None:
        return
    window, s = cut
    out = side * s.x
    # The plate leans: outer edge in front, following the cage.
    t = (out - 0.42 * a) / (0.58 * a)
    plate_y = (0.98 - 0.62 * t * t) * b + 11.0 - 0.12 * np.maximum(s.z - 40.0, 0.0)
    thick = 1.7 + 3.0 * smooth_bump(t, 0.92, 0.14) + 1.5 * smooth_bump(t, 0.05, 0.1)
    plate = np.abs(s.y - plate_y) * 0.8 - thick
    low = 8.0 + 62.0 * np.clip(t, 0.0, 1.0)  # a triangle, tip down and inwards
    edge = np.maximum(np.abs(t - 0.5) * 0.58 * a - 0.29 * a, low - s.z)
    plate = np.maximum(plate, np.maximum(edge, s.z - 126.0))
    ridge = np.maximum(np.abs(s.z - 92.0 - 10.0 * t) - 3.0, np.abs(t - 0.5) * 90 - 45.0)
    ridge = np.maximum(ridge, np.abs(s.y - plate_y - 7.0) - 8.0)
    bone = np.minimum(plate, ridge)
    paint(hu[window], fill(bone, s.edge_mm), 0.8 * CORTEX_HU)
    head = ball(s, (side * 0.9 * a, 0.4 * b, 120.0), (14.0, 15.0, 14.0))
    paint(hu[window], fill(head, s.edge_mm), 0.75 * CORTEX_HU)
    paint(hu[window], fill(head + 2.5, s.edge_mm), MARROW_HU + 40.0)


def smooth_bump(t: Field, centre: float, width: float) -> Field:
    """1 at the centre, falling to nothing about two widths away."""
    return np.exp(-(((t - centre) / width) ** 2))
