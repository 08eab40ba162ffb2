"""Geometry: no step between scanner and model may move a voxel in the patient."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import GeometryError
from common.plan import Preprocessing
from common.preprocess import prepare
from common.volume import (
    Grid,
    Volume,
    canonical,
    canonical_order,
    reorder_grid,
    resample,
    with_spacing,
)

AXIAL = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])  # columns: directions of D, H, W
SAGITTAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
CORONAL = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])


def rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Turns about z, y and x by so many degrees."""
    out = np.eye(3)
    for axis, degrees in ((2, yaw), (1, pitch), (0, roll)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a], turn[b, b], turn[a, b], turn[b, a] = c, c, -s, s
        out = out @ turn
    return out


def grid_of(shape, directions, spacing_mm, origin_mm=(0.0, 0.0, 0.0)) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = directions * np.asarray(spacing_mm)
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def world(grid: Grid, indices: np.ndarray) -> np.ndarray:
    """mm of voxel indices, N 3."""
    return indices @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def all_indices(shape) -> np.ndarray:
    return np.stack(np.indices(shape), axis=-1).reshape(-1, 3)


@st.composite
def grids(draw, oblique: bool = True) -> Grid:
    """Any of the 48 axis orders and flips, tilted by up to 40 degrees in all."""
    order = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    directions = np.eye(3)[:, order] * np.array(signs)
    if oblique:
        angle = st.floats(-13.0, 13.0)
        directions = rotation(*draw(st.tuples(angle, angle, angle))) @ directions
    shape = draw(st.tuples(*[st.integers(1, 7)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.4, 6.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-400.0, 400.0)] * 3))
    return grid_of(shape, directions, spacing, origin)


def numbered(grid: Grid) -> Volume:
    """Every voxel holds its own number."""
    return Volume(np.arange(np.prod(grid.shape)).reshape(grid.shape), grid)


@given(grids())
@settings(max_examples=150)
def test_canonical_order_moves_no_voxel_in_the_patient(grid):
    before, after = numbered(grid), canonical(numbered(grid))
    assert sorted(after.array.ravel()) == sorted(before.array.ravel())
    places = np.empty((before.array.size, 3))
    places[before.array.ravel()] = world(grid, all_indices(grid.shape))
    now = world(after.grid, all_indices(after.grid.shape))
    np.testing.assert_allclose(now, places[after.array.ravel()], atol=1e-9)


@given(grids())
@settings(max_examples=150)
def test_canonical_axes_run_up_back_and_left(grid):
    axes = canonical(numbered(grid)).grid.affine[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    # Tilted by at most 40 degrees, each axis has more of its own direction than of any.
    for column, row in ((0, 2), (1, 1), (2, 0)):
        assert axes[row, column] > 0.7
        assert axes[row, column] == np.abs(axes[:, column]).max()


@given(grids())
@settings(max_examples=50)
def test_canonical_twice_is_canonical_once(grid):
    once = reorder_grid(grid, canonical_order(grid))
    order = canonical_order(once)
    assert order.source_axis == (0, 1, 2)
    assert order.flip == (False, False, False)


@given(grids(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_mask_comes_back_from_model_space_bit_for_bit_at_native_spacing(grid, random):
    mask = np.array([random.randrange(4) for _ in range(np.prod(grid.shape))], np.uint8)
    mask = mask.reshape(grid.shape)
    hu = Volume(np.zeros(grid.shape, np.int16), grid)
    _, classes, model = prepare(hu, Preprocessing(), mask=Volume(mask, grid))
    back = resample(Volume(classes, model), grid, nearest=True, outside=0)
    assert back.grid.same_as(grid)
    np.testing.assert_array_equal(back.array, mask)


@pytest.mark.parametrize(
    "directions",
    [
        AXIAL,
        SAGITTAL,
        CORONAL,
        AXIAL * [-1, 1, 1],
        AXIAL * [1, -1, -1],
        SAGITTAL * [1, -1, 1],
        rotation(12, 0, 0) @ AXIAL,
        rotation(0, 20, 30) @ CORONAL,
        rotation(15, -10, 8) @ (SAGITTAL * [-1, 1, 1]),
    ],
    ids=[
        "axial",
        "sagittal",
        "coronal",
        "head first down",
        "prone",
        "sagittal flipped",
        "axial oblique",
        "coronal oblique",
        "sagittal oblique",
    ],
)
def test_mask_survives_prediction_at_another_spacing(directions):
    """Fine model space: nothing is lost. Coarse: Dice stays high, nothing shifts."""
    grid = grid_of((24, 40, 32), directions, (2.5, 0.8, 0.9), (-90.0, 35.0, 700.0))
    centre = world(grid, np.array([[12.0, 20, 16]]))
    distance = np.linalg.norm(world(grid, all_indices(grid.shape)) - centre, axis=1)
    mask = (distance < 9.0).reshape(grid.shape).astype(np.uint8)
    hu = Volume(np.zeros(grid.shape, np.int16), grid)
    for spacing_mm, least_dice in (((0.4, 0.4, 0.4), 0.985), ((2.0, 2.0, 2.0), 0.85)):
        pre = Preprocessing(spacing_mm=spacing_mm)
        _, classes, model = prepare(hu, pre, mask=Volume(mask, grid))
        back = resample(Volume(classes, model), grid, nearest=True, outside=0).array
        dice = 2 * (back & mask).sum() / (back.sum() + mask.sum())
        assert dice >= least_dice
        there = world(grid, np.argwhere(back)).mean(axis=0)
        assert np.linalg.norm(there - centre) < 0.5


@given(grids(), st.tuples(*[st.floats(0.5, 5.0)] * 3))
@settings(max_examples=100)
def test_new_spacing_keeps_the_box_of_tissue(grid, spacing_mm):
    new = with_spacing(grid, spacing_mm)
    np.testing.assert_allclose(new.spacing_mm, spacing_mm, rtol=1e-9)
    corner = np.array([[-0.5, -0.5, -0.5]])
    np.testing.assert_allclose(world(new, corner), world(grid, corner), atol=1e-9)
    for axis in range(3):
        extent = grid.shape[axis] * grid.spacing_mm[axis]
        now = new.shape[axis] * new.spacing_mm[axis]
        most = max(spacing_mm[axis] / 2, spacing_mm[axis] - extent)
        assert abs(now - extent) <= most + 1e-9


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 1.7, 1.7), (3, 3, 3)])
@pytest.mark.parametrize("tilt", [0.0, 17.0])
def test_blob_keeps_its_place_and_mass_at_another_spacing(spacing_mm, tilt):
    grid = grid_of((30, 48, 44), rotation(tilt, 0, tilt) @ AXIAL, (2.0, 0.9, 0.9))
    centre = world(grid, np.array([[14.3, 25.6, 20.2]]))
    square = ((world(grid, all_indices(grid.shape)) - centre) ** 2).sum(axis=1)
    blob = np.exp(-square / (2 * 6.0**2)).reshape(grid.shape).astype(np.float32)
    new = resample(
        Volume(blob, grid), with_spacing(grid, spacing_mm), nearest=False, outside=0
    )
    weight = new.array.ravel().astype(float)
    there = weight @ world(new.grid, all_indices(new.grid.shape)) / weight.sum()
    assert np.linalg.norm(there - centre) < 0.05
    mass = weight.sum() * new.grid.voxel_mm3 / (blob.sum() * grid.voxel_mm3)
    assert mass == pytest.approx(1.0, abs=0.01)


def as_sitk(volume: Volume) -> sitk.Image:
    """The same voxels for ITK, which counts indices (w, h, d)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array))
    affine = volume.grid.affine
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection(directions[:, ::-1].ravel().tolist())
    return image


def itk_resample(volume: Volume, grid: Grid, interpolator: int) -> np.ndarray:
    like = as_sitk(Volume(np.zeros(grid.shape, np.float32), grid))
    out = sitk.Resample(as_sitk(volume), like, sitk.Transform(), interpolator, -1024.0)
    return sitk.GetArrayFromImage(out)


@pytest.mark.parametrize("tilt", [0.0, 9.0])
@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, -1)])
def test_resampling_agrees_with_simpleitk(tilt, flip):
    rng = np.random.default_rng(5)
    directions = rotation(tilt, tilt / 2, 0) @ AXIAL
    source = grid_of((11, 13, 12), directions * flip, (2.0, 1.0, 1.1), (3.0, -7.0, 90))
    volume = Volume(rng.normal(0, 300, source.shape).astype(np.float32), source)
    new = with_spacing(
        reorder_grid(source, canonical_order(source)), (1.13, 0.71, 0.83)
    )
    ours = resample(canonical(volume), new, nearest=False, outside=-1024.0).array
    theirs = itk_resample(volume, new, sitk.sitkLinear)
    inner = (slice(2, -2),) * 3  # in the outer half voxel ITK extrapolates otherwise
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=0.05)
    nearest = resample(volume, new, nearest=True, outside=-1024.0).array
    theirs = itk_resample(volume, new, sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(nearest, theirs)


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("tilt", [0.0, 25.0])
def test_beyond_the_source_is_outside_not_smeared_edge(nearest, tilt):
    source = grid_of((6, 6, 6), rotation(tilt, 0, 0) @ AXIAL, (1, 1, 1))
    volume = Volume(np.full(source.shape, 50.0, np.float32), source)
    wide = grid_of((16, 16, 16), AXIAL, (1, 1, 1), (-5.0, -5.0, -5.0))
    new = resample(volume, wide, nearest=nearest, outside=-1024.0).array
    assert set(np.unique(new)) == {-1024.0, 50.0}
    assert np.count_nonzero(new == 50.0) == pytest.approx(216, abs=25 if tilt else 0)
    assert new[0, 0, 0] == -1024.0


def test_thin_slices_are_averaged_and_not_skipped():
    """Noise of ten slices that become one falls to a third, not to that of two."""
    grid = grid_of((2000, 3, 3), AXIAL, (0.5, 1, 1))
    noise = np.random.default_rng(6).normal(0, 100, grid.shape).astype(np.float32)
    coarse = with_spacing(grid, (5.0, 1, 1))
    new = resample(Volume(noise, grid), coarse, nearest=False, outside=0).array
    assert new.shape == (200, 3, 3)
    assert 20.0 < new.std() < 35.0
    assert abs(new.mean() - noise.mean()) < 1.0


def test_resampling_to_the_same_grid_changes_nothing():
    grid = grid_of((3, 4, 5), AXIAL, (2, 1, 1))
    volume = numbered(grid)
    assert resample(volume, grid, nearest=True, outside=0).array is volume.array
    linear = resample(volume, grid, nearest=False, outside=0).array
    np.testing.assert_array_equal(linear, volume.array)


def test_label_number_at_a_point_in_the_patient_stays():
    """A hand-made case: the voxel at x = 12, y = 21, z = 33 mm of a coronal series."""
    grid = grid_of((4, 5, 6), CORONAL, (3.0, 2.0, 1.0), (10.0, 15.0, 37.0))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2, 2, 2] = 7  # D is +y: 15 + 6; H is -z: 37 - 4; W is +x: 10 + 2
    moved = canonical(Volume(labels, grid))
    ((d, h, w),) = np.argwhere(moved.array == 7)
    np.testing.assert_allclose(world(moved.grid, np.array([d, h, w])), (12, 21, 33))
    assert moved.grid.shape == (5, 4, 6)


def test_grid_takes_no_broken_affine_and_leaves_the_callers_array_alone():
    affine = np.eye(4)
    grid = Grid((1, 1, 1), affine)
    affine[0, 3] = 5.0
    assert grid.affine[0, 3] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2.0
    for broken in (np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)):
        with pytest.raises(GeometryError):
            Grid((1, 1, 1), broken)
    with pytest.raises(GeometryError):
        Grid((0, 1, 1), np.eye(4))
    with pytest.raises(GeometryError):
        Volume(np.zeros((1, 2, 3)), Grid((1, 2, 4), np.eye(4)))
    with pytest.raises(GeometryError):
        with_spacing(grid, (1.0, 0.0, 1.0))


def test_same_grid_is_told_by_its_corners():
    grid = grid_of((50, 60, 70), AXIAL, (1, 1, 1))
    assert grid.same_as(grid_of((50, 60, 70), AXIAL, (1, 1, 1), (0.009, 0, 0)))
    assert not grid.same_as(grid_of((50, 60, 70), AXIAL, (1, 1, 1), (0.02, 0, 0)))
    assert not grid.same_as(grid_of((50, 60, 70), AXIAL, (1.001, 1, 1)))
    assert not grid.same_as(grid_of((50, 60, 71), AXIAL, (1, 1, 1)))
