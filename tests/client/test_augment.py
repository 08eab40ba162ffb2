"""Augmentation: image and mask turn together, and only as the plan says."""

import numpy as np
import pytest
import torch

from client.augment import shade, turn
from common.plan import Augmentation

ODD = 401


def patches(count=ODD, shape=(2, 5, 5)):
    """All patches alike, each voxel another value; the mask is the image's low bits."""
    values = np.arange(np.prod(shape)).reshape(shape)
    image = np.tile(values.astype(np.float16), (count, 1, 1, 1))
    return image, (image % 7).astype(np.uint8)


def kinds(image) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    for patch in image:
        found[patch.tobytes()] = found.get(patch.tobytes(), 0) + 1
    return found


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 1),
        ({"flip": ["D"]}, 2),
        ({"flip": ["H", "W"]}, 4),
        ({"transpose": True}, 2),
        ({"flip": ["H", "W"], "transpose": True}, 8),
        ({"flip": ["D", "H", "W"], "transpose": True}, 16),
    ],
)
def test_all_turns_that_are_allowed_come_equally_often(settings, count):
    image, mask = patches(3200)
    turn(image, mask, Augmentation(**settings), np.random.default_rng(1))
    found = kinds(image)
    assert len(found) == count
    expected = 3200 / count
    assert min(found.values()) > expected - 5 * expected**0.5
    np.testing.assert_array_equal(mask, image % 7)


@pytest.mark.parametrize(("axis", "number"), [("D", 1), ("H", 2), ("W", 3)])
def test_each_mirror_is_along_its_own_axis(axis, number):
    image, mask = patches()
    before = image[:1].copy()
    turn(image, mask, Augmentation(flip=[axis]), np.random.default_rng(2))
    mirrored = np.flip(before, number)
    assert set(kinds(image)) == {before[0].tobytes(), mirrored[0].tobytes()}


def test_grey_values_spread_as_the_plan_says():
    rng = np.random.default_rng(3)
    image = torch.full((4000, 1, 4, 4), 0.5)
    shade(image, Augmentation(scale=0.2), rng)
    factors = image[:, 0, 0, 0] / 0.5
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)
    assert factors.std().item() == pytest.approx(0.2, abs=0.02)
    assert (image.flatten(1).std(1) < 1e-6).all()  # one factor per patch
    image = torch.full((4000, 1, 4, 4), 0.5)
    shade(image, Augmentation(shift=0.1), rng)
    assert image[:, 0, 0, 0].mean().item() == pytest.approx(0.5, abs=0.01)
    assert image[:, 0, 0, 0].std().item() == pytest.approx(0.1, abs=0.01)
    image = torch.zeros((400, 1, 8, 8))
    shade(image, Augmentation(noise=0.05), rng)
    assert image.std().item() == pytest.approx(0.05, abs=0.002)
    assert abs(np.corrcoef(image[:, 0, 0, 0], image[:, 0, 0, 1])[0, 1]) < 0.2


def test_nothing_is_done_unasked():
    image, mask = patches(5)
    grey = torch.from_numpy(image).float().unsqueeze(1)
    rng = np.random.default_rng(4)
    before = rng.bit_generator.state
    turn(image, mask, Augmentation(), rng)
    shade(grey, Augmentation(), rng)
    np.testing.assert_array_equal(image, patches(5)[0])
    np.testing.assert_array_equal(grey[:, 0], image)
    assert rng.bit_generator.state == before
