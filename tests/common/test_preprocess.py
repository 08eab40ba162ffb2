"""From HU to model space: the window, the recipe, and one path for all."""

import numpy as np
import pytest

from common.errors import GeometryError
from common.plan import Plan, Preprocessing
from common.preprocess import model_grid, prepare, recipe_digest, windowed
from common.volume import Grid, Volume

AXIAL = np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]]


def plan_of(**changes) -> Plan:
    sections = {
        "plan": {"name": "test"},
        "task": {"kind": "segmentation", "classes": {"a": ["a"], "b": ["b"]}},
        "model": {"name": "UNet", "dimensions": 2},
        "training": {"steps": 1, "batch_size": 1, "patch": [8, 8]},
        "federation": {"rounds": 1},
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    return Plan.model_validate(sections)


def test_window_maps_its_ends_to_minus_one_and_one_and_cuts_the_rest():
    hu = np.array([-2000, -1000, -300, 400, 3000], np.int16).reshape(1, 1, 5)
    grey = windowed(hu, (-1000.0, 400.0))
    assert grey.dtype == np.float16
    assert grey.ravel().tolist() == [-1.0, -1.0, 0.0, 1.0, 1.0]


def test_float16_resolves_half_a_hu_in_the_default_window():
    hu = np.arange(-1000, 401, dtype=np.float32).reshape(1, 1, -1)
    grey = windowed(hu, (-1000.0, 400.0)).astype(np.float64).ravel()
    back = (grey + 1) * 700 - 1000
    assert np.abs(back - hu.ravel()).max() < 0.5


def test_unsigned_pictures_do_not_wrap_around():
    picture = np.array([0, 51, 255], np.uint8).reshape(1, 1, 3)
    grey = windowed(picture, (102.0, 204.0)).ravel()
    assert grey.tolist() == [-1.0, -1.0, 1.0]


def test_hu_are_resampled_before_the_window_cuts_them():
    """Between air and bone lies tissue, not the middle of the window."""
    grid = Grid((2, 1, 1), np.diag([2.0, 1, 1, 1])[[2, 1, 0, 3]] + np.zeros((4, 4)))
    hu = Volume(np.array([-1000.0, 3000.0], np.float32).reshape(2, 1, 1), grid)
    fine = Preprocessing(spacing_mm=(grid.spacing_mm[0] / 2, 1.0, 1.0))
    image, _, _ = prepare(hu, fine)
    # Centres at a quarter of the way: -1000, 0, 2000, 3000.
    expected = windowed(
        np.array([-1000.0, 0, 2000, 3000]).reshape(4, 1, 1), (-1000, 400)
    )
    np.testing.assert_array_equal(image, expected)


def test_prepared_arrays_are_contiguous_and_on_the_model_grid():
    affine = AXIAL.copy()
    affine[:, 0] *= -2.5  # slices from head to feet
    grid = Grid((6, 5, 4), affine)
    rng = np.random.default_rng(0)
    hu = Volume(rng.integers(-1000, 400, grid.shape).astype(np.int16), grid)
    mask = Volume(rng.integers(0, 2, grid.shape).astype(np.uint8), grid)
    image, classes, model = prepare(hu, Preprocessing(), mask=mask)
    assert image.flags.c_contiguous
    assert classes.flags.c_contiguous
    assert model.same_as(model_grid(grid, Preprocessing()))
    np.testing.assert_array_equal(classes, mask.array[::-1])
    np.testing.assert_array_equal(image, windowed(hu.array[::-1], (-1000.0, 400.0)))
    pre = Preprocessing(spacing_mm=(5.0, 2.0, 0.5))
    image, _, model = prepare(hu, pre)
    assert image.shape == model.shape == model_grid(grid, pre).shape == (3, 2, 8)


def test_mask_on_another_grid_than_its_volume_is_refused():
    hu = Volume(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 4), AXIAL))
    shifted = AXIAL.copy()
    shifted[0, 3] += 1.0
    mask = Volume(np.zeros((2, 3, 4), np.uint8), Grid((2, 3, 4), shifted))
    with pytest.raises(GeometryError, match="one grid for both"):
        prepare(hu, Preprocessing(), mask=mask)


def test_recipe_changes_with_what_a_prepared_case_depends_on_and_nothing_else(
    monkeypatch,
):
    same = recipe_digest(plan_of())
    assert same == recipe_digest(
        plan_of(
            plan={"seed": 9},
            training={"steps": 50, "patch": [4, 4]},
            federation={"rounds": 7},
            task={"lesions": True},
        )
    )
    others = [
        plan_of(preprocessing={"window_hu": (-160.0, 240.0)}),
        plan_of(preprocessing={"spacing_mm": (2.0, 1.0, 1.0)}),
        plan_of(task={"classes": {"a": ["a", "c"], "b": ["b"]}}),
        plan_of(task={"classes": {"b": ["b"], "a": ["a"]}}),  # a becomes class 2
    ]
    digests = {recipe_digest(plan) for plan in others}
    assert len(digests | {same}) == 5
    for rules in ("preprocess.PREPROCESSING", "tasks.segmentation.TARGET"):
        monkeypatch.setattr(f"common.{rules}_VERSION", 2)
        assert recipe_digest(plan_of()) not in digests | {same}
        monkeypatch.undo()
