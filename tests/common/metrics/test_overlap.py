"""Overlap: numbers by hand, and sums of splits are the sums of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics.overlap import COUNT, MEANS, mean_of, overlap_sums, voxel_pairs
from common.task import add_sums


def _row(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8).reshape(1, 1, 1, -1)


def test_hand_made_masks_give_the_numbers_by_hand():
    # Two voxels in common, one missed, one too many.
    truth, predicted = _row(1, 1, 1, 0, 0), _row(0, 1, 1, 1, 0)
    sums = overlap_sums(voxel_pairs(truth, predicted, 1), empty_is_right=False)
    assert (sums["tp"], sums["fp"], sums["fn"]) == (2, 1, 1)
    assert mean_of(sums, "dice") == pytest.approx(2 * 2 / 6)
    assert mean_of(sums, "iou") == pytest.approx(2 / 4)
    assert mean_of(sums, "precision") == pytest.approx(2 / 3)
    assert mean_of(sums, "recall") == pytest.approx(2 / 3)


def test_precision_and_recall_are_not_mixed_up():
    sums = overlap_sums(
        voxel_pairs(_row(1, 1, 1, 1), _row(1, 0, 0, 0), 1), empty_is_right=False
    )
    assert mean_of(sums, "precision") == 1.0
    assert mean_of(sums, "recall") == 0.25


def test_classes_are_told_apart():
    truth, predicted = _row(1, 1, 2, 2, 0), _row(1, 2, 2, 2, 2)
    sums = overlap_sums(voxel_pairs(truth, predicted, 2), empty_is_right=False)
    np.testing.assert_allclose(mean_of(sums, "dice"), [2 / 3, 4 / 6])


def test_two_empty_masks_count_only_where_the_caller_says_so():
    pairs = voxel_pairs(_row(0, 0), _row(0, 0), 1)
    silent = overlap_sums(pairs, empty_is_right=False)
    assert silent["dice" + COUNT] == 0
    assert np.isnan(mean_of(silent, "dice")).all()
    counted = overlap_sums(pairs, empty_is_right=True)
    assert mean_of(counted, "dice") == 1.0
    assert mean_of(counted, "iou") == 1.0
    assert counted["precision" + COUNT] == counted["recall" + COUNT] == 0


@pytest.mark.parametrize("empty_is_right", [True, False])
def test_a_missed_or_invented_structure_is_a_zero_and_counts(empty_is_right):
    for truth, predicted in ((_row(1, 1), _row(0, 0)), (_row(0, 0), _row(1, 1))):
        pairs = voxel_pairs(truth, predicted, 1)
        sums = overlap_sums(pairs, empty_is_right=empty_is_right)
        assert sums["dice"] == 0
        assert sums["dice" + COUNT] == 1


masks = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 3, (2, 6, 2, 3, 4), np.uint8)
)


@settings(max_examples=40)
@given(masks, st.integers(1, 5), st.booleans())
def test_sums_of_two_parts_add_up_to_the_whole(pair, cut, empty_is_right):
    truth, predicted = pair

    def judge(part: slice) -> dict[str, np.ndarray]:
        pairs = voxel_pairs(truth[part], predicted[part], 2)
        return overlap_sums(pairs, empty_is_right=empty_is_right)

    whole = judge(slice(None))
    parts = add_sums(judge(slice(0, cut)), judge(slice(cut, None)))
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)
    for name in MEANS:
        assert (whole[name] <= whole[name + COUNT] + 1e-9).all()


def test_255_classes_are_counted_without_overflow():
    truth = np.full((1, 1, 1, 300), 254, dtype=np.uint8)
    pairs = voxel_pairs(truth, truth, 254)
    assert pairs[0, 254, 254] == 300
    assert pairs.sum() == 300
