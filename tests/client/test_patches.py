"""Patches: cut from the right place, as often as the plan says."""

import numpy as np
import pytest
import torch

from client.patches import PatchSampler
from client.store import foreground_voxels
from common.case import PreparedCase
from common.errors import PlanError
from common.plan import Plan
from common.volume import Grid


def plan_of(patch=(4, 6, 8), batch_size=64, foreground=0.5, **augmentation) -> Plan:
    return Plan.model_validate(
        {
            "plan": {"name": "test"},
            "task": {"kind": "segmentation", "classes": {"a": ["a"]}},
            "model": {"name": "UNet", "dimensions": len(patch)},
            "training": {
                "steps": 1,
                "batch_size": batch_size,
                "patch": list(patch),
                "foreground": foreground,
                "augmentation": augmentation,
            },
            "federation": {"rounds": 1},
        }
    )


def coded(shape, number=0, blob=None, label=None) -> PreparedCase:
    """Every voxel tells its index: image = ((d * 16 + h) * 16 + w) / 2048."""
    d, h, w = np.indices(shape)
    image = (((d * 16 + h) * 16 + w) / 2048).astype(np.float16)
    mask = np.zeros(shape, np.uint8)
    if blob is not None:
        mask[blob] = 1
    return PreparedCase(
        case_id=str(number),
        patient_id=str(number),
        image=image,
        grid=Grid(shape, np.eye(4)),
        source_grid=Grid(shape, np.eye(4)),
        mask=mask,
        foreground=foreground_voxels(mask),
        label=label,
    )


def sampler(cases, plan, seed=0) -> PatchSampler:
    return PatchSampler(cases, plan, np.random.default_rng(seed))


def starts_of(batch, patch) -> np.ndarray:
    """First voxel of each patch, read off the coded grey values."""
    first = batch.image.reshape(len(batch.image), *patch)[:, 0, 0, 0]
    code = np.rint(first.numpy() * 2048).astype(int)
    return np.stack([code // 256, code // 16 % 16, code % 16], axis=1)


BLOB = (slice(3, 5), slice(9, 11), slice(2, 4))


def test_patch_is_the_volume_and_the_mask_at_its_place():
    case, plan = coded((8, 16, 16), blob=BLOB), plan_of()
    batch = sampler([case], plan).batch()
    assert batch.image.shape == (64, 1, 4, 6, 8)
    assert batch.image.dtype == torch.float32
    assert batch.mask.shape == (64, 4, 6, 8)
    assert batch.mask.dtype == torch.int64
    for i, (d, h, w) in enumerate(starts_of(batch, (4, 6, 8))):
        box = slice(d, d + 4), slice(h, h + 6), slice(w, w + 8)
        np.testing.assert_array_equal(batch.image[i, 0], case.image[box])
        np.testing.assert_array_equal(batch.mask[i], case.mask[box])


def test_random_patches_lie_everywhere_with_equal_chance():
    case, plan = coded((6, 8, 10)), plan_of(batch_size=6000, foreground=0.0)
    starts = starts_of(sampler([case], plan).batch(), (4, 6, 8))
    places, counts = np.unique(starts, axis=0, return_counts=True)
    assert len(places) == 27  # 3 by 3 by 3 places
    assert counts.min() > 150  # 222 each; 5 standard deviations are 73
    assert counts.max() < 300


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_patches_holds_foreground(share):
    """The blob is in a far corner, which hardly any random patch holds."""
    corner = (slice(7, 8), slice(15, 16), slice(15, 16))
    case = coded((8, 16, 16), blob=corner)
    plan = plan_of((1, 2, 2), batch_size=4000, foreground=share)
    batch = sampler([case], plan).batch()
    hits = (batch.mask.flatten(1).sum(1) > 0).float().mean().item()
    by_chance = 1 / (8 * 15 * 15)
    expected = share + (1 - share) * by_chance
    assert hits == pytest.approx(expected, abs=0.03)


def test_foreground_voxel_lies_anywhere_in_its_patch():
    case = coded((9, 17, 17), blob=(slice(4, 5), slice(8, 9), slice(8, 9)))
    plan = plan_of((3, 2, 4), batch_size=4800, foreground=1.0)
    starts = starts_of(sampler([case], plan).batch(), (3, 2, 4))
    places, counts = np.unique(starts, axis=0, return_counts=True)
    assert places.min(axis=0).tolist() == [2, 7, 5]
    assert places.max(axis=0).tolist() == [4, 8, 8]
    assert len(places) == 3 * 2 * 4
    assert counts.min() > 130  # 200 each; 5 standard deviations are 70


def test_each_case_is_equally_likely_whatever_its_size():
    cases = [coded((4, 6, 8), label=0), coded((7, 16, 16), label=1)]
    batch = sampler(cases, plan_of(batch_size=4000)).batch()
    assert batch.label.float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_slices_are_drawn_from_the_whole_stack():
    case = coded((5, 16, 16), blob=(slice(2, 3), 5, 5))
    plan = plan_of((6, 8), batch_size=2000, foreground=0.25)
    batch = sampler([case], plan).batch()
    assert batch.image.shape == (2000, 1, 6, 8)
    assert batch.mask.shape == (2000, 6, 8)
    drawn = np.bincount(starts_of(batch, (1, 6, 8))[:, 0], minlength=5) / 2000
    np.testing.assert_allclose(drawn, [0.15, 0.15, 0.4, 0.15, 0.15], atol=0.04)


def test_cases_without_mask_or_label_give_zeros():
    case = coded((4, 6, 8))
    bare = PreparedCase("0", "0", case.image, case.grid, case.grid)
    batch = sampler([bare], plan_of()).batch()
    assert not batch.mask.any()
    assert not batch.label.any()
    assert batch.mask.shape == (64, 4, 6, 8)


def test_one_seed_gives_one_sequence_of_batches():
    cases = [coded((8, 16, 16), n, BLOB) for n in range(3)]
    plan = plan_of((4, 8, 8), flip=["D", "W"], transpose=True, scale=0.1, noise=0.1)
    one, same, other = (sampler(cases, plan, seed) for seed in (3, 3, 4))
    for _ in range(3):
        a, b, c = one.batch(), same.batch(), other.batch()
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.mask, b.mask)
        assert not torch.equal(a.image, c.image)
    assert not torch.equal(one.batch().image, a.image)


def test_prepared_arrays_stay_as_they_are():
    case = coded((8, 16, 16), blob=BLOB)
    image, mask = case.image.copy(), case.mask.copy()
    plan = plan_of((4, 8, 8), flip=["D", "H", "W"], transpose=True, shift=1.0)
    sampler([case], plan).batch()
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.mask, mask)


def test_what_can_not_be_cut_is_refused_before_the_first_batch():
    cases = [coded((8, 16, 16)), coded((8, 5, 16))]
    with pytest.raises(PlanError, match=r"\(8, 5, 16\)"):
        sampler(cases, plan_of())
    with pytest.raises(PlanError, match="no case"):
        sampler([], plan_of())
