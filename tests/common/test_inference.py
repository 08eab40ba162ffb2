"""Inference: windows cover every voxel, blend as MONAI's do, and lie where told."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import nn

from common.inference import (
    autocast,
    pad_to,
    predict_class_logits,
    predict_logits,
    predict_windows,
    seeded_corners,
    window_corners,
)
from common.networks import build_network

CPU = torch.device("cpu")


class _Doubles(nn.Module):
    """Two channels: the image and its double; remembers the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(image.shape))
        return torch.cat([image, 2 * image], dim=1)


@pytest.mark.parametrize("shape", [(5, 24, 40), (1, 16, 16), (3, 10, 33)])
@pytest.mark.parametrize(("dimensions", "patch"), [(2, [16, 16]), (3, [4, 16, 16])])
def test_a_voxelwise_network_comes_back_unchanged(make_plan, shape, dimensions, patch):
    plan = make_plan(model={"dimensions": dimensions}, training={"patch": patch})
    image = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    logits = predict_logits(_Doubles(), image, plan, CPU)
    assert logits.shape == (2, *shape)
    assert logits.dtype == torch.float32
    expected = image.astype(np.float32)
    np.testing.assert_allclose(logits[0].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(logits[1].numpy(), 2 * expected, atol=1e-5)


def test_agrees_with_monai(make_plan):
    # Sizes at which MONAI's rule for the step and ours give the same windows.
    plan = make_plan(
        model={"dimensions": 3},
        training={"patch": [8, 16, 16]},
        evaluation={"overlap": 0.5},
    )
    network = build_network(plan, 2, seed=1).eval()
    image = np.random.default_rng(0).normal(size=(12, 24, 40)).astype(np.float32)
    with torch.inference_mode():
        expected = sliding_window_inference(
            torch.from_numpy(image)[None, None],
            roi_size=plan.patch,
            sw_batch_size=4,
            predictor=network,
            overlap=0.5,
            mode="gaussian",
        )
    ours = predict_logits(network, image, plan, CPU)
    np.testing.assert_allclose(ours.numpy(), expected[0].numpy(), atol=2e-4)


def test_slices_go_through_a_flat_network_in_batches(make_plan):
    network = _Doubles()
    image = np.zeros((40, 16, 16), dtype=np.float16)
    predict_logits(network, image, make_plan(), CPU)
    assert network.seen == [(40, 1, 16, 16)]


def test_a_small_image_is_padded_with_air(make_plan):
    plan = make_plan(training={"patch": [16, 16]})
    logits = predict_class_logits(
        _SeesMinimum(), np.zeros((1, 8, 8), np.float16), plan, CPU
    )
    assert logits.tolist() == [-1.0]


class _SeesMinimum(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.amin(dim=(1, 2, 3)).unsqueeze(1)


def test_class_logits_are_the_mean_over_windows(make_plan):
    plan = make_plan(training={"patch": [16, 16]}, evaluation={"overlap": 0.0})
    image = np.zeros((2, 16, 32), dtype=np.float16)
    image[0, :, :16] = -4.0
    logits = predict_class_logits(_SeesMinimum(), image, plan, CPU)
    assert logits.tolist() == [-1.0]


def test_padding_keeps_what_is_there():
    array = np.arange(6).reshape(1, 2, 3)
    padded = pad_to(array, (2, 2, 5))
    assert padded.shape == (2, 2, 5)
    assert (padded[:1, :2, :3] == array).all()
    assert (padded == -1).sum() == 14
    assert pad_to(array, (1, 1, 1)) is array


sizes = st.integers(1, 40)


@settings(max_examples=80)
@given(
    st.tuples(sizes, sizes, sizes),
    st.tuples(sizes, sizes, sizes),
    st.floats(0.0, 0.9),
)
def test_windows_cover_every_voxel_and_stay_inside(shape, window, overlap):
    shape = tuple(max(n, w) for n, w in zip(shape, window, strict=True))
    seen = [np.zeros(n, dtype=bool) for n in shape]
    corners = window_corners(shape, window, overlap)
    assert len(set(corners)) == len(corners)
    for corner in corners:
        for axis in range(3):
            assert 0 <= corner[axis] <= shape[axis] - window[axis]
            seen[axis][corner[axis] : corner[axis] + window[axis]] = True
    assert all(axis.all() for axis in seen)


def test_seeded_windows_are_one_per_slice_and_the_seed_moves_them(make_plan):
    plan = make_plan(training={"patch": [16, 16]})
    corners = seeded_corners((5, 32, 40), plan, seed=3)
    assert [d for d, _, _ in corners] == [0, 1, 2, 3, 4]
    assert corners == seeded_corners((5, 32, 40), plan, seed=3)
    many = [seeded_corners((1, 32, 40), plan, seed)[0] for seed in range(400)]
    assert {h for _, h, _ in many} == set(range(17))
    assert {w for _, _, w in many} == set(range(25))


def test_a_seeded_window_in_three_dimensions_is_one(make_plan):
    plan = make_plan(model={"dimensions": 3}, training={"patch": [8, 16, 16]})
    many = [seeded_corners((12, 16, 16), plan, seed) for seed in range(100)]
    assert all(len(corners) == 1 for corners in many)
    assert {corners[0] for corners in many} == {(d, 0, 0) for d in range(5)}


def test_mixed_precision_is_honoured(make_plan):
    image = np.random.default_rng(0).normal(size=(1, 1, 16, 16)).astype(np.float32)
    outputs = []
    for amp in ("off", "bf16"):
        plan = make_plan(training={"amp": amp})
        network = build_network(plan, 1, seed=1).eval()
        outputs.append(predict_windows(network, image, plan, CPU))
        with autocast(plan, CPU):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.float32 if amp == "off" else torch.bfloat16)
    full, half = outputs
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(full, half)
    np.testing.assert_allclose(full.numpy(), half.numpy(), atol=0.05)
