"""Running a network over whole cases: sliding windows in two and three dimensions.

There is one way from an image to voxel logits, used by evaluation, pictures and
prediction alike. A two-dimensional network is run as a three-dimensional one whose
patch is one slice thick, so both share the loop. An image smaller than the patch is
padded with -1, the window's low end (air).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Float32, Num
from torch import Tensor, nn

from common.plan import Plan

OUTSIDE = -1.0
"""Grey value where there is no image."""
_VOXELS_PER_BATCH = 2**20
"""Windows are batched up to this many voxels; a larger window goes alone."""
_SIGMA = 0.125
"""Width of the Gaussian weights, in window sizes (as in nnU-Net and MONAI)."""

Box = tuple[int, int, int]
"""Three numbers D, H, W: the corner or the size of a window, in voxels."""


def predict_logits(
    network: nn.Module,
    image: Float[np.ndarray, "D H W"],
    plan: Plan,
    device: torch.device,
) -> Float32[Tensor, "C D H W"]:
    """Voxel logits of a whole image, windows blended with Gaussian weights.

    Args:
        network: In evaluation mode, on `device`; puts out logits per voxel.
        image: Grey values -1..1; float16 and memory maps are fine, a window at a time
            is read and converted.
        plan: Patch size, overlap and mixed precision.
        device: Where the network lives; the logits stay there.
    """
    padded = pad_to(image, plan.patch)
    weight = torch.from_numpy(_gaussian(plan.patch)).to(device)
    total: Tensor | None = None
    weights = torch.zeros(padded.shape, device=device)
    for corners, output in _run_windows(network, padded, plan, device):
        if total is None:
            total = torch.zeros((output.shape[1], *padded.shape), device=device)
        for corner, logits in zip(corners, output, strict=True):
            place = window_at(corner, plan.patch)
            total[(slice(None), *place)] += logits.reshape(-1, *plan.patch) * weight
            weights[place] += weight
    assert total is not None
    d, h, w = image.shape
    return (total / weights)[:, :d, :h, :w]


def predict_class_logits(
    network: nn.Module,
    image: Float[np.ndarray, "D H W"],
    plan: Plan,
    device: torch.device,
    seed: int | None = None,
) -> Float32[Tensor, " C"]:
    """Logits of a whole case: the mean over its windows (and slices).

    With a seed, over the windows of `seeded_corners` alone.
    """
    padded = pad_to(image, plan.patch)
    if seed is not None:
        corners = seeded_corners(box(padded), plan, seed)
        windows = cut_windows(padded, corners, plan.patch)
        return predict_windows(network, windows, plan, device).mean(dim=0)
    return predict_window_logits(network, padded, plan, device)[1].mean(dim=0)


def predict_window_logits(
    network: nn.Module,
    image: Float[np.ndarray, "D H W"],
    plan: Plan,
    device: torch.device,
) -> tuple[list[Box], Float32[Tensor, "N C *S"]]:
    """Where the windows that cover an image lie, and what the network says of each.

    The image has at least the size of a patch (`pad_to`).
    """
    corners: list[Box] = []
    outputs: list[Tensor] = []
    for some, output in _run_windows(network, image, plan, device):
        corners += some
        outputs.append(output)
    return corners, torch.cat(outputs)


def predict_windows(
    network: nn.Module,
    windows: Float[np.ndarray, "N D H W"],
    plan: Plan,
    device: torch.device,
) -> Float32[Tensor, "N C *S"]:
    """What the network says of windows of patch size, without gradients.

    S is H W for two dimensions (D must be 1) and D H W for three; none at all for a
    classifier.
    """
    batch = torch.from_numpy(np.array(windows, dtype=np.float32)).to(device)
    if plan.model.dimensions == 3:
        batch = batch.unsqueeze(1)
    with torch.inference_mode(), autocast(plan, device):
        output = network(batch)
    return output.float()


def autocast(plan: Plan, device: torch.device) -> AbstractContextManager[None]:
    """Mixed precision as the plan's `training.amp` says."""
    dtype = torch.float16 if plan.training.amp == "fp16" else torch.bfloat16
    enabled = plan.training.amp != "off"
    return torch.autocast(device.type, dtype=dtype, enabled=enabled)


def pad_to(array: np.ndarray, size: Box, value: float = OUTSIDE) -> np.ndarray:
    """The array, grown at its ends to at least `size`; itself where it is enough."""
    missing = [
        max(0, want - have) for want, have in zip(size, array.shape, strict=True)
    ]
    if not any(missing):
        return array
    return np.pad(array, [(0, m) for m in missing], constant_values=value)


def box(array: np.ndarray) -> Box:
    """Shape of a volume as three numbers D, H, W."""
    d, h, w = array.shape
    return d, h, w


def window_at(corner: Box, size: Box) -> tuple[slice, slice, slice]:
    """Index of the box of `size` voxels at `corner` (D, H, W)."""
    d, h, w = (slice(c, c + n) for c, n in zip(corner, size, strict=True))
    return d, h, w


def seeded_corners(shape: Box, plan: Plan, seed: int) -> list[Box]:
    """One window per slice (2D) or one in all (3D), at places that the seed fixes."""
    rng = np.random.default_rng(seed)
    free = [have - window + 1 for have, window in zip(shape, plan.patch, strict=True)]
    slices = (
        range(shape[0]) if plan.model.dimensions == 2 else [int(rng.integers(free[0]))]
    )
    return [(d, int(rng.integers(free[1])), int(rng.integers(free[2]))) for d in slices]


def cut_windows(
    array: np.ndarray, corners: list[Box], size: Box
) -> Num[np.ndarray, "N D H W"]:
    """Copies of the boxes of one size at these corners, stacked."""
    return np.stack([array[window_at(corner, size)] for corner in corners])


def window_corners(shape: Box, size: Box, overlap: float) -> list[Box]:
    """First corners of windows that cover a shape; the last of a row ends flush."""
    rows = [
        _starts(have, window, overlap) for have, window in zip(shape, size, strict=True)
    ]
    return list(product(rows[0], rows[1], rows[2]))


def _starts(have: int, window: int, overlap: float) -> list[int]:
    """Where windows of one axis begin; the last one ends flush."""
    last = max(0, have - window)
    step = max(1, int(window * (1.0 - overlap)))
    return sorted({min(start, last) for start in range(0, last + step, step)})


def _run_windows(
    network: nn.Module, image: np.ndarray, plan: Plan, device: torch.device
) -> Iterator[tuple[list[Box], Float32[Tensor, "N C *S"]]]:
    """Batches of windows: where they lie, and what the network says of them."""
    corners = window_corners(box(image), plan.patch, plan.evaluation.overlap)
    size = max(1, _VOXELS_PER_BATCH // int(np.prod(plan.patch)))
    for first in range(0, len(corners), size):
        some = corners[first : first + size]
        windows = cut_windows(image, some, plan.patch)
        yield some, predict_windows(network, windows, plan, device)


def _gaussian(size: Box) -> Float32[np.ndarray, "D H W"]:
    """Blending weights of a window, 1 in the centre, never below 0.001."""
    weight = np.ones(())
    for n in size:
        offset = np.arange(n) - (n - 1) / 2.0
        row = np.exp(-0.5 * (offset / (_SIGMA * n)) ** 2)
        weight = weight[..., None] * row
    return np.maximum(weight, 1e-3).astype(np.float32)
