"""Pictures: size, colours, and that both outlines are seen."""

import numpy as np

from common.drawing import BLUE, ORANGE, SIDE, heat, outlines, widest_slice

GREY = np.zeros((32, 48), dtype=np.float32)


def _has(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == np.array(colour, dtype=np.uint8)).all(axis=-1)


def _square() -> np.ndarray:
    mask = np.zeros(GREY.shape, dtype=np.uint8)
    mask[8:20, 10:30] = 1
    return mask


def test_the_longest_side_is_fixed_and_pixels_are_square_in_millimetres():
    empty = np.zeros_like(_square())
    assert outlines(GREY, empty, empty, (1.0, 1.0)).shape == (256, SIDE, 3)
    assert outlines(GREY, empty, empty, (3.0, 1.0)).shape == (SIDE, 192, 3)


def test_both_outlines_are_seen_where_truth_and_prediction_agree():
    picture = outlines(GREY, _square(), _square(), (1.0, 1.0))
    assert _has(picture, BLUE).sum() > 400
    assert _has(picture, ORANGE).sum() > 400
    blue, orange = np.argwhere(_has(picture, BLUE)), np.argwhere(_has(picture, ORANGE))
    assert (blue.min(axis=0) < orange.min(axis=0)).all()
    assert (blue.max(axis=0) > orange.max(axis=0)).all()


def test_only_what_is_there_is_drawn():
    empty = np.zeros_like(_square())
    assert not _has(outlines(GREY, empty, _square(), (1.0, 1.0)), BLUE).any()
    assert not _has(outlines(GREY, _square(), empty, (1.0, 1.0)), ORANGE).any()
    plain = outlines(GREY, empty, empty, (1.0, 1.0))
    assert (plain == 128).all()


def test_grey_runs_from_black_to_white_and_is_cut_off_beyond():
    ramp = np.array([[-3.0, -1.0, 1.0, 3.0]], dtype=np.float32)
    empty = np.zeros(ramp.shape, dtype=np.uint8)
    picture = outlines(ramp, empty, empty, (1.0, 1.0))
    assert picture.min() == 0
    assert picture.max() == 255


def test_heat_warms_where_it_is_and_frames_by_right_and_wrong():
    warmth = np.zeros(GREY.shape, dtype=np.float32)
    warmth[10:20, 10:20] = 1.0
    right = heat(GREY, warmth, (1.0, 1.0), right=True)
    wrong = heat(GREY, warmth, (1.0, 1.0), right=False)
    assert tuple(right[0, 0]) == BLUE
    assert tuple(wrong[0, 0]) == ORANGE
    assert right[120, 120, 0] > right[120, 120, 2] + 50
    assert tuple(right[200, 300]) == (127, 127, 127) or np.ptp(right[200, 300]) == 0
    assert right.dtype == np.uint8


def test_the_widest_slice_has_most_foreground():
    mask = np.zeros((5, 4, 4), dtype=np.uint8)
    assert widest_slice(mask) == 2
    mask[3, :2] = 7
    mask[1, 0] = 1
    assert widest_slice(mask) == 3
