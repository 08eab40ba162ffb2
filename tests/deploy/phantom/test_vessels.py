"""Vessel trees taper as Murray says and keep their blood when thinner than a voxel."""

import numpy as np
import pytest

from deploy.phantom.scanner import axial_grid
from deploy.phantom.space import space_of
from deploy.phantom.vessels import EXPONENT, Tree, grow, paint_tree

START, END = (-7.3, 2.2, -5.1), (9.4, -3.0, 6.6)
LENGTH = float(np.linalg.norm(np.subtract(END, START)))


def _tube(radius_mm: float) -> Tree:
    return Tree(np.array([START]), np.array([END]), np.array([[radius_mm, radius_mm]]))


@pytest.mark.parametrize("radius_mm", [0.4, 0.8, 1.5])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (3.0, 2.0, 2.0)])
def test_a_vessel_keeps_its_volume_and_place(radius_mm, spacing_mm):
    shape = tuple(round(40 / s) for s in spacing_mm)
    grid = axial_grid(shape, spacing_mm)
    share = np.zeros(shape, dtype=np.float32)
    paint_tree(share, space_of(grid), _tube(radius_mm), 1.0)
    edge = min(spacing_mm)
    volume = np.pi * radius_mm**2 * LENGTH
    if radius_mm >= 0.6 * edge:
        # Drawn tubes have round ends, and a ramp of width e on a circle of radius r
        # covers pi (r^2 + e^2 / 12).
        volume += np.pi * (edge**2 / 12 * LENGTH + 4 / 3 * radius_mm**3)
    measured = float(share.sum()) * grid.voxel_mm3
    assert measured == pytest.approx(volume, rel=0.05)
    index = np.array([np.average(i, weights=share) for i in np.indices(shape)])
    centre = (grid.affine @ (*index, 1.0))[:3]
    np.testing.assert_allclose(centre, np.add(START, END) / 2, atol=0.25)


def test_a_thin_vessel_lies_on_its_line():
    grid = axial_grid((40, 40, 40), (1.0, 1.0, 1.0))
    share = np.zeros(grid.shape, dtype=np.float32)
    paint_tree(share, space_of(grid), _tube(0.4), 1.0)
    index = np.argwhere(share > 0)
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    way = np.subtract(END, START) / LENGTH
    off = points - START
    off -= np.outer(off @ way, way)
    weights = share[tuple(index.T)]
    # Trilinear weights spread a point by less than half a voxel on average.
    assert np.average(np.linalg.norm(off, axis=1), weights=weights) < 0.6


def test_the_trunk_carries_all_tips():
    rng = np.random.default_rng(0)
    targets = rng.uniform(20.0, 80.0, (60, 3))
    tree = grow(rng, (0.0, 0.0, 0.0), targets, tip_mm=0.7)
    from_root = np.linalg.norm(tree.start, axis=1) == 0.0
    tips = (tree.radius[from_root, 1] / 0.7) ** EXPONENT
    ends = {tuple(end) for end in tree.end} - {tuple(start) for start in tree.start}
    assert tips.sum() == pytest.approx(len(ends))
    assert (tree.radius[:, 0] >= tree.radius[:, 1] - 1e-9).all()
    reached = np.linalg.norm(tree.end[:, None] - targets, axis=2).min(axis=0)
    assert reached.max() < 2.0
