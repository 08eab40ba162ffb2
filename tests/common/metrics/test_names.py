"""Names of metrics: what only repeats another is left out."""

import pytest

from common.metrics.names import told_once


@pytest.mark.parametrize(
    ("monitor", "classes", "kept"),
    [
        ("dice", 1, ["dice", "iou", "loss"]),
        ("dice/a", 1, ["dice/a", "iou", "loss"]),
        ("dice", 2, ["dice", "dice/a", "iou", "iou/a", "loss"]),
    ],
)
def test_a_metric_that_repeats_another_is_left_out(monitor, classes, kept):
    names = ["dice", "dice/a", "iou", "iou/a", "loss"]
    assert told_once(names, monitor, classes) == kept
    assert told_once(["dice/a"], "dice", 1) == ["dice/a"]
