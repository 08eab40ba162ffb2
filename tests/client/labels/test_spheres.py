"""Spheres: their volume, their place, and those that are almost nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.intake.verdict import Code
from client.labels.spheres import Sphere, spheres
from common.volume import Grid


def grid_with(spacing_mm: tuple[float, float, float], extent_mm: float = 24.0) -> Grid:
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    shape = tuple(int(np.ceil(extent_mm / s)) + 2 for s in spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing_mm
    affine[:3, 3] = [100.0, -250.0, -40.0]
    return Grid(shape, affine)


def middle(grid: Grid) -> tuple[float, float, float]:
    index = [(n - 1) / 2 + 0.13 for n in grid.shape]
    x, y, z, _ = grid.affine @ [*index, 1.0]
    return float(x), float(y), float(z)


@pytest.mark.parametrize("diameter_mm", [6.0, 11.3, 20.0])
def test_volume_is_within_two_percent_at_fine_spacing(diameter_mm: float) -> None:
    grid = grid_with((0.4, 0.3, 0.3))
    (segment,), findings = spheres([Sphere(middle(grid), diameter_mm)], grid)
    mm3 = segment.mask.sum() * grid.voxel_mm3
    assert findings == ()
    assert mm3 == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.02)


@given(
    st.tuples(*[st.floats(0.3, 2.7)] * 3),
    st.floats(0.1, 15.0),
    st.tuples(*[st.floats(0.0, 1.0)] * 3),
)
def test_exactly_the_centres_within_the_radius_and_the_nearest_are_inside(
    spacing: tuple[float, float, float],
    diameter_mm: float,
    place: tuple[float, float, float],
) -> None:
    grid = grid_with(spacing, extent_mm=9.0)
    index = [p * (n - 1) for p, n in zip(place, grid.shape, strict=True)]
    centre = (grid.affine @ [*index, 1.0])[:3]
    (segment,), _ = spheres([Sphere(tuple(centre), diameter_mm)], grid)
    voxels = np.stack(np.indices(grid.shape), axis=-1).reshape(-1, 3)
    mm = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    away = np.linalg.norm(mm - centre, axis=1).reshape(grid.shape)
    assert segment.mask[away < diameter_mm / 2 - 1e-6].all()
    outside = segment.mask & (away > diameter_mm / 2 + 1e-6)
    assert outside.sum() <= 1  # the nearest voxel of a sphere without a centre
    assert segment.mask.any()


def test_no_finding_is_an_empty_segment_with_a_note() -> None:
    (segment,), findings = spheres([], grid_with((1.0, 1.0, 1.0)))
    assert not segment.mask.any()
    assert [(f.code, f.refuses) for f in findings] == [(Code.LABEL_EMPTY, False)]


def test_a_sphere_beyond_the_image_or_without_size_is_refused() -> None:
    grid = grid_with((1.0, 1.0, 1.0))
    beyond = Sphere((0.0, 0.0, 0.0), 5.0)
    assert spheres([beyond], grid)[1][0].code is Code.LABEL_GRID_MISMATCH
    for diameter_mm in (0.0, -3.0, float("nan"), float("inf")):
        segments, findings = spheres([Sphere(middle(grid), diameter_mm)], grid)
        assert segments == ()
        assert (findings[0].code, findings[0].refuses) == (Code.LABEL_VALUE, True)
