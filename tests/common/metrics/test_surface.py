"""Surface distances: against brute force, MONAI, and shapes known by hand."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

from common.metrics.surface import surface_distance, surface_points

SPACINGS = [(1.0, 1.0, 1.0), (3.0, 0.7, 0.7), (2.5, 1.0, 0.5)]


def _blob(seed: int, shape: tuple[int, int, int] = (12, 18, 16)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    noise[[0, -1]] = noise[:, [0, -1]] = noise[:, :, [0, -1]] = -9
    return ndimage.gaussian_filter(noise, 1.5) > 0.02


def _brute_force(a: np.ndarray, b: np.ndarray, spacing_mm) -> tuple[float, float]:
    """Every surface voxel against every other; neighbours looked up one by one."""

    def surface(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        found = []
        for d, h, w in np.argwhere(padded):
            faces = [padded[d - 1, h, w], padded[d + 1, h, w], padded[d, h - 1, w]]
            faces += [padded[d, h + 1, w], padded[d, h, w - 1], padded[d, h, w + 1]]
            if not all(faces):
                found.append((d, h, w))
        return np.array(found) * np.array(spacing_mm)

    apart = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    there, back = apart.min(axis=1), apart.min(axis=0)
    mean = np.concatenate([there, back]).mean()
    return mean, max(np.percentile(there, 95), np.percentile(back, 95))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_brute_force(seed, spacing_mm):
    a, b = _blob(seed), _blob(seed + 100)
    ours = surface_distance(a, b, spacing_mm)
    assert ours is not None
    mean, hd95 = _brute_force(a, b, spacing_mm)
    assert ours.mean_mm == pytest.approx(mean, rel=1e-9)
    assert ours.hd95_mm == pytest.approx(hd95, rel=1e-9)


@pytest.mark.filterwarnings("ignore:monai.metrics.utils get_mask_edges:FutureWarning")
@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_agrees_with_monai(spacing_mm):
    a, b = _blob(1), _blob(2)
    ours = surface_distance(a, b, spacing_mm)
    assert ours is not None
    pair = [torch.from_numpy(m.astype(np.float32))[None, None] for m in (a, b)]
    hd95 = compute_hausdorff_distance(*pair, percentile=95, spacing=spacing_mm)
    mean = compute_average_surface_distance(*pair, symmetric=True, spacing=spacing_mm)
    assert ours.hd95_mm == pytest.approx(hd95.item(), rel=1e-4)
    assert ours.mean_mm == pytest.approx(mean.item(), rel=1e-4)


def test_a_shift_along_one_axis_is_measured_in_its_own_millimetres():
    plate = np.zeros((9, 9, 9), dtype=bool)
    plate[2] = True
    moved = np.roll(plate, 2, axis=0)
    ours = surface_distance(plate, moved, (3.0, 1.0, 1.0))
    assert ours is not None
    assert (ours.mean_mm, ours.hd95_mm) == (6.0, 6.0)


def test_equal_masks_are_zero_apart_and_order_does_not_matter():
    a, b = _blob(3), _blob(4)
    same = surface_distance(a, a, (2.0, 1.0, 1.0))
    assert same is not None
    assert (same.mean_mm, same.hd95_mm) == (0.0, 0.0)
    assert surface_distance(a, b, (1, 1, 1)) == surface_distance(b, a, (1, 1, 1))


def test_an_empty_mask_has_no_distance():
    empty = np.zeros((3, 4, 5), dtype=bool)
    assert surface_distance(empty, _blob(1)[:3, :4, :5] | True, (1, 1, 1)) is None
    assert surface_distance(empty, empty, (1, 1, 1)) is None


def test_the_volume_border_is_surface_and_the_inside_is_not():
    solid = np.ones((5, 5, 5), dtype=bool)
    points = surface_points(solid, (2.0, 1.0, 1.0))
    assert len(points) == 5**3 - 3**3
    assert points.max(axis=0).tolist() == [8.0, 4.0, 4.0]


def test_a_single_slice_works():
    a = np.zeros((1, 8, 8), dtype=bool)
    a[0, 2:5, 2:5] = True
    ours = surface_distance(a, np.roll(a, 1, axis=2), (1.0, 1.0, 2.0))
    assert ours is not None
    assert ours.hd95_mm == 2.0
