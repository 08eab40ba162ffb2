"""Lesions: which are found, which are invented."""

import numpy as np

from common.metrics.lesions import LesionCount, count_lesions


def _space(*boxes: tuple[slice, slice, slice]) -> np.ndarray:
    mask = np.zeros((10, 20, 20), dtype=bool)
    for place in boxes:
        mask[place] = True
    return mask


SMALL = (slice(1, 3), slice(1, 3), slice(1, 3))
LARGE = (slice(5, 9), slice(10, 18), slice(10, 18))
ELSEWHERE = (slice(1, 3), slice(15, 18), slice(1, 4))


def test_found_missed_and_invented_are_counted():
    counted = count_lesions(_space(SMALL, LARGE), _space(SMALL, ELSEWHERE))
    assert counted == LesionCount(found=1, total=2, false_positives=1)


def test_nothing_against_nothing():
    assert count_lesions(_space(), _space()) == LesionCount(0, 0, 0)


def test_parts_that_touch_at_a_corner_are_one_lesion():
    corner = (slice(3, 5), slice(3, 5), slice(3, 5))
    assert count_lesions(_space(SMALL, corner), _space()).total == 1


def test_calling_everything_finds_nothing():
    everything = np.ones((10, 20, 20), dtype=bool)
    counted = count_lesions(_space(SMALL), everything)
    assert counted == LesionCount(found=0, total=1, false_positives=1)


def test_the_bar_is_an_iou_of_one_tenth():
    truth = np.zeros((1, 1, 20), dtype=bool)
    truth[..., :10] = True
    just = np.zeros_like(truth)
    just[..., 0] = True  # 1 / 10
    assert count_lesions(truth, just).found == 1
    short = np.zeros_like(truth)
    short[..., 9:11] = True  # 1 / 11
    assert count_lesions(truth, short) == LesionCount(0, 1, 1)


def test_one_prediction_over_two_lesions_can_find_both():
    near = (slice(1, 3), slice(4, 6), slice(1, 3))
    bridge = (slice(1, 3), slice(1, 6), slice(1, 3))
    counted = count_lesions(_space(SMALL, near), _space(bridge))
    assert counted == LesionCount(found=2, total=2, false_positives=0)
