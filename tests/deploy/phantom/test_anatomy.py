"""A patient is the same tissue on every grid, and masks are what they claim."""

import numpy as np
import pytest

from common.volume import AxisOrder, Grid, Volume, reorder, reorder_grid, resample
from deploy.phantom.anatomy import Anatomy, Phantom, imagine, render
from deploy.phantom.nodules import NoduleMix, NodulePlan, distance
from deploy.phantom.scanner import axial_grid
from deploy.phantom.space import fill, space_at, space_of
from deploy.phantom.torso import Habitus, lungs

SMALL = Anatomy(scale=0.5, branches=24)
GRID = axial_grid((24, 48, 48), (5.0, 3.75, 3.75), (0.0, 0.0, -4.0))


def draw(seed: int) -> Phantom:
    return render(imagine(np.random.default_rng(seed), SMALL), GRID)


@pytest.fixture(scope="module")
def phantom():
    return draw(7)


def test_equal_generators_draw_equal_patients(phantom):
    again = draw(7)
    other = draw(8)
    np.testing.assert_array_equal(again.volume.array, phantom.volume.array)
    assert [n.centre_mm for n in again.nodules] == [
        n.centre_mm for n in phantom.nodules
    ]
    assert np.abs(other.volume.array - phantom.volume.array).mean() > 20


@pytest.mark.parametrize(
    "order",
    [
        AxisOrder((2, 0, 1), (False, True, False)),  # sagittal, feet first
        AxisOrder((1, 0, 2), (True, True, True)),  # coronal, flipped
        AxisOrder((0, 1, 2), (True, False, False)),
    ],
)
def test_a_reordered_grid_shows_the_same_voxels_in_another_order(phantom, order):
    patient = imagine(np.random.default_rng(7), SMALL)
    turned = render(patient, reorder_grid(GRID, order))
    expected = reorder(phantom.volume, order).array
    # Coordinates are summed in another order: whole HU agree, the last bits do not.
    assert np.abs(turned.volume.array - expected).max() < 0.5
    for nodule, straight in zip(turned.nodules, phantom.nodules, strict=True):
        mask = reorder(Volume(straight.mask, GRID), order).array
        assert (nodule.mask != mask).sum() <= 1


def test_an_oblique_grid_shows_the_same_patient():
    patient = imagine(np.random.default_rng(7), SMALL)
    fine = axial_grid((60, 90, 90), (2.0, 2.0, 2.0), (0.0, 0.0, -4.0))
    tilt = np.radians(20.0)
    affine = fine.affine.copy()
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = turn @ affine[:3, 3]
    oblique = render(patient, Grid(fine.shape, affine))
    back = resample(oblique.volume, fine, nearest=False, outside=-5000.0)
    inside = back.array > -2000
    straight = render(patient, fine).volume.array
    apart = np.abs(back.array - straight)[inside]
    assert inside.mean() > 0.5
    assert np.median(apart) < 3.0
    assert (apart > 300.0).mean() < 0.01


def test_tissues_have_the_hu_of_tissues():
    patient = imagine(np.random.default_rng(3), Anatomy(contrast=0.0))
    grid = axial_grid((60, 90, 90), (4.0, 4.0, 4.0))
    hu = render(patient, grid).volume.array
    deep = lungs(patient.habitus, space_of(grid)) < -8.0
    assert -1000.0 <= hu.min() < -990.0
    assert 500.0 < hu.max() < 1200.0
    assert -900.0 < np.median(hu[deep]) < -800.0
    lung_litres = (lungs(patient.habitus, space_of(grid)) < 0).sum() * 64e-6
    assert 2.5 < lung_litres < 7.0
    soft = (hu > 0) & (hu < 90)
    fat = (hu > -120) & (hu < -70)
    assert soft.mean() > 0.1
    assert fat.mean() > 0.04


@pytest.mark.parametrize("diameter_mm", [8.0, 15.0, 26.0])
def test_a_smooth_nodule_has_the_volume_of_its_ball(diameter_mm):
    plan = NodulePlan((1.3, -0.4, 0.7), diameter_mm, False, 40.0)
    grid = axial_grid((60, 60, 60), (0.5, 0.5, 0.5))
    volume = (distance(plan, space_of(grid)) < 0).sum() * grid.voxel_mm3
    assert volume == pytest.approx(np.pi / 6 * diameter_mm**3, rel=0.01)


def test_lobes_keep_the_volume_of_the_ball():
    lobes = ((1.0, 0.0, 0.0, 0.4), (0.0, -0.6, 0.8, 0.3), (0.0, 1.0, 0.0, 0.2))
    plan = NodulePlan((0.0, 0.0, 0.0), 16.0, True, 40.0, lobes=lobes)
    grid = axial_grid((60, 60, 60), (0.5, 0.5, 0.5))
    volume = (distance(plan, space_of(grid)) < 0).sum() * grid.voxel_mm3
    assert volume == pytest.approx(np.pi / 6 * 16.0**3, rel=0.02)


def test_nodules_lie_in_the_lung_apart_from_each_other_and_show_up():
    mix = NoduleMix(count=(3, 3), part_solid=0.0, attached=0.0)
    anatomy = Anatomy(nodules=mix, contrast=0.0)
    patient = imagine(np.random.default_rng(5), anatomy)
    grid = axial_grid((120, 160, 160), (2.0, 2.0, 2.0))
    phantom = render(patient, grid)
    assert len(phantom.nodules) == 3
    assert np.sum([n.mask for n in phantom.nodules], axis=0).max() == 1
    air = lungs(patient.habitus, space_of(grid))
    for nodule in phantom.nodules:
        assert air[nodule.mask].max() < 0.0
        assert phantom.volume.array[nodule.mask].mean() > -250.0
        centre = np.argwhere(nodule.mask).mean(axis=0)
        place = (grid.affine @ (*centre, 1.0))[:3]
        assert np.abs(place - nodule.centre_mm).max() < 2.5
        ball = np.pi / 6 * nodule.diameter_mm**3
        assert nodule.mask.sum() * 8.0 == pytest.approx(ball, rel=0.12)


def test_pleural_nodules_are_cut_by_the_lung():
    anatomy = Anatomy(nodules=NoduleMix(count=(4, 4), attached=1.0), branches=60)
    patient = imagine(np.random.default_rng(11), anatomy)
    depth = [
        float(lungs(patient.habitus, space_at(np.array([n.centre])))[0])
        / (n.diameter_mm / 2)
        for n in patient.nodules
    ]
    assert any(-1.0 < d < -0.5 for d in depth)
    grid = axial_grid((120, 160, 160), (2.0, 2.0, 2.0))
    air = lungs(patient.habitus, space_of(grid))
    for nodule in render(patient, grid).nodules:
        assert air[nodule.mask].max() < 0.0


def test_partial_volume_keeps_the_content_of_an_edge():
    x = np.linspace(-3.0, 3.0, 601, dtype=np.float32)
    share = fill(x - 0.2, 1.5)
    assert share.min() == 0.0
    assert share.max() == 1.0
    assert share.sum() * 0.01 == pytest.approx(3.2, abs=0.02)


def test_distance_to_the_lung_has_its_sign():
    habitus = Habitus()
    inside, outside = (-70.0, 0.0, 20.0), (0.0, -130.0, 20.0)
    values = lungs(habitus, space_at(np.array([inside, outside])))
    assert values[0] < -10.0
    assert values[1] > 10.0
