"""A preview shows the finding where it is in the patient, and nothing of who it is."""

import stat

import numpy as np
import pytest
from PIL import Image

from client.preview import (
    COLOURS,
    TILE,
    classification_preview,
    segmentation_preview,
    write_png,
)
from common.volume import AxisOrder, Grid, Volume, reorder

WINDOW = (-1000.0, 400.0)


def chest(spacing=(4.0, 2.0, 2.0), shape=(20, 50, 60)):
    """Air around a body, and a bright lesion up, in front and on the patient's left."""
    affine = np.eye(4)[[2, 1, 0, 3]] @ np.diag([*spacing, 1.0])
    grid = Grid(shape, affine)
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 8:42, 8:52] = 0
    mask = np.zeros(shape, dtype=np.uint8)
    mask[14:17, 12:18, 40:48] = 1
    return Volume(hu, grid), Volume(mask, grid)


def coloured(picture, colour=COLOURS[0]):
    """Row and column of the pixels in a class's colour."""
    return np.argwhere((picture == np.array(colour)).all(axis=-1))


def tiles(picture, rows):
    """The square tiles, row by row."""
    step = TILE + 4
    return [
        [picture[4 + r * step :, 4 + c * step :][:TILE, :TILE] for c in range(3)]
        for r in range(rows)
    ]


def test_the_finding_lies_where_a_radiologist_looks_for_it():
    picture = segmentation_preview(*chest(), ["nodule"], WINDOW)
    (axial, coronal, sagittal), slices = tiles(picture, 2)
    for tile in (axial, *slices):  # in front is up, the patient's left is on the right
        y, x = coloured(tile).mean(axis=0)
        assert y < TILE / 2 < x
    y, x = coloured(coronal).mean(axis=0)  # head is up
    assert y < TILE / 2 < x
    y, x = coloured(sagittal).mean(axis=0)  # in front is on the left
    assert max(y, x) < TILE / 2


def test_the_picture_does_not_depend_on_how_the_series_runs():
    volume, mask = chest()
    wanted = segmentation_preview(volume, mask, ["nodule"], WINDOW)
    for order in (
        AxisOrder((2, 1, 0), (False, True, False)),
        AxisOrder((1, 2, 0), (True, False, True)),
    ):
        turned = segmentation_preview(
            reorder(volume, order), reorder(mask, order), ["nodule"], WINDOW
        )
        assert np.array_equal(turned, wanted)


def test_millimetres_are_square():
    volume, mask = chest(spacing=(3.0, 3.0, 2.0))
    axial = tiles(segmentation_preview(volume, mask, ["n"], WINDOW), 2)[0][0]
    height, width = np.ptp(coloured(axial), axis=0) + 1
    assert width / height == pytest.approx(8 * 2 / (6 * 3), rel=0.06)


def test_nothing_found_is_said_and_no_colour_drawn():
    volume, mask = chest()
    empty = Volume(np.zeros_like(mask.array), mask.grid)
    picture = segmentation_preview(volume, empty, ["nodule"], WINDOW)
    assert len(coloured(picture)) == 0
    assert picture.std() > 10


def test_classes_have_colours_of_their_own_and_the_legend_names_the_largest():
    volume, mask = chest()
    many = mask.array.copy()
    for number in range(2, 9):
        many[5:15, 10 + 4 * number : 13 + 4 * number, 10:30] = number
    names = [f"class {n}" for n in range(1, 9)]
    picture = segmentation_preview(volume, Volume(many, mask.grid), names, WINDOW)
    for colour in COLOURS:
        assert len(coloured(picture, colour)) > 20


def test_a_long_name_does_not_leave_the_page():
    picture = segmentation_preview(*chest(), ["x" * 500], WINDOW)
    assert picture.shape[1] == 3 * (TILE + 4) + 4


def test_pictures_without_millimetres_show_slices_alone():
    with_planes = segmentation_preview(*chest(), ["nodule"], WINDOW)
    without = segmentation_preview(*chest(), ["nodule"], WINDOW, has_spacing=False)
    assert with_planes.shape[0] - without.shape[0] == TILE + 4
    side = without[TILE // 2 - 8 : TILE // 2 + 8, 8:20]  # where R would stand
    assert side.max() == 0


def test_a_single_slice_can_be_drawn():
    grid = Grid((1, 8, 9), np.eye(4)[[2, 1, 0, 3]])
    volume = Volume(np.zeros(grid.shape, np.int16), grid)
    mask = Volume(np.ones(grid.shape, np.uint8), grid)
    assert len(coloured(segmentation_preview(volume, mask, ["a"], WINDOW))) > 100


def test_warmth_is_drawn_where_it_is():
    grey = np.zeros((32, 32), np.float32)
    warmth = np.zeros((32, 32), np.float32)
    warmth[4:10, 20:28] = 1.0
    picture = classification_preview(
        grey, warmth, (1.0, 1.0), {"benign": 0.2, "malignant": 0.8}
    )
    plain, warm = (tile.astype(int) for tile in tiles(picture, 1)[0][:2])
    changed = np.argwhere(np.abs(warm - plain).sum(axis=-1) > 60)
    y, x = changed.mean(axis=0) / TILE * 32
    assert (y, x) == pytest.approx((7, 24), abs=0.5)


def test_the_file_is_private_and_holds_pixels_alone(tmp_path):
    picture = segmentation_preview(*chest(), ["nodule"], WINDOW)
    write_png(tmp_path / "preview.png", picture)
    assert stat.S_IMODE((tmp_path / "preview.png").stat().st_mode) == 0o600
    with Image.open(tmp_path / "preview.png") as read:
        assert read.info == {}
        assert np.array_equal(np.asarray(read), picture)
