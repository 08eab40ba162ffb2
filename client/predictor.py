"""A handed-out model on one case: from HU to a mask on the same grid, or to a class.

The image takes the very road that training cases took (`common.preprocess.prepare`).

On the way back the *probabilities* are resampled linearly and the decision is taken on
the source grid: deciding in model space and copying the nearest class gives staircases
where the plan resamples to coarse voxels. At native spacing nothing is resampled: the
two are the same, and every voxel keeps its class.

Not covered here: whether the model is any good on this scanner (`client.assess`), and
whether the image is of the right part of the body.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from common.errors import ModelError
from common.gradcam import grad_cam
from common.inference import (
    cut_windows,
    pad_to,
    predict_logits,
    predict_window_logits,
)
from common.networks import build_network
from common.package import ModelPackage
from common.plan import Plan
from common.preprocess import prepare
from common.tasks.catalog import task_of
from common.tasks.segmentation import classes_of
from common.volume import (
    AxisOrder,
    Grid,
    Volume,
    canonical_order,
    reorder,
    reorder_grid,
    resample,
)

SLAB = 64
"""Slices of the source grid that are decided at a time; bounds memory."""


@dataclass(frozen=True, eq=False)
class Classified:
    """What a classifier says of a case, and where it looked."""

    probabilities: tuple[float, ...]
    """Of each class, in the order of their numbers; they add up to 1."""
    grey: Float32[np.ndarray, "h w"]
    """The slice that speaks most for the likeliest class, in model space, -1..1."""
    warmth: Float32[np.ndarray, "h w"]
    """Grad-CAM of the likeliest class on that slice, 0..1."""
    spacing_mm: tuple[float, float]
    """Pixel spacing H, W of both."""


def network_of(package: ModelPackage, device: torch.device) -> nn.Module:
    """The package's network in evaluation mode.

    Raises:
        ModelError: The weights are not those of the plan's network.
    """
    plan = package.plan
    network = build_network(plan, task_of(plan).out_channels, plan.plan.seed)
    try:
        network.load_state_dict(dict(package.state))
    except RuntimeError as error:
        raise ModelError(
            f"package got weights that do not fit {plan.model.name} as its plan "
            "describes it, expected one tensor per parameter; hand it out again"
        ) from error
    return network.to(device).eval()


def segment(
    network: nn.Module, volume: Volume, plan: Plan, device: torch.device
) -> Volume:
    """UInt8 class per voxel on the volume's own grid.

    Args:
        network: Of `network_of`, on `device`.
        volume: HU on the series' own grid.
        plan: The package's.
        device: Where to compute.
    """
    image, _, grid = prepare(volume, plan.preprocessing)
    logits = predict_logits(network, image, plan, device)
    order = canonical_order(volume.grid)
    closest = reorder_grid(volume.grid, order)
    if grid.same_as(closest):
        classes = classes_of(logits[None])[0].cpu().numpy()
    else:
        classes = _decide_on(closest, logits, grid)
    return Volume(reorder(Volume(classes, closest), _inverse(order)).array, volume.grid)


def classify(
    network: nn.Module, volume: Volume, plan: Plan, device: torch.device
) -> Classified:
    """Class probabilities of a case: the softmax of the mean logits over its windows.

    The logits are those of `common.inference.predict_class_logits`; here each window's
    are kept, to show the one that speaks most for the answer.
    """
    prepared, _, grid = prepare(volume, plan.preprocessing)
    image = pad_to(prepared, plan.patch)
    corners, logits = predict_window_logits(network, image, plan, device)
    probabilities = logits.mean(dim=0).softmax(dim=0)
    winner = int(probabilities.argmax())
    best = int(logits.softmax(dim=1)[:, winner].argmax())
    window = cut_windows(image, [corners[best]], plan.patch)
    batch = torch.from_numpy(window.astype(np.float32)).to(device)
    if plan.model.dimensions == 3:
        batch = batch[None]
    warmth = grad_cam(network, batch, winner).cpu().numpy().reshape(window[0].shape)
    d = int(warmth.sum(axis=(1, 2)).argmax())
    return Classified(
        probabilities=tuple(float(p) for p in probabilities),
        grey=window[0, d].astype(np.float32),
        warmth=warmth[d],
        spacing_mm=grid.spacing_mm[1:],
    )


def _decide_on(
    target: Grid, logits: Float32[Tensor, "C D H W"], grid: Grid
) -> UInt8[np.ndarray, "D H W"]:
    """Most likely class at the voxels of another grid over the same tissue."""
    one = len(logits) == 1
    likely = (logits.sigmoid() if one else logits.softmax(dim=0)).cpu().numpy()
    classes = np.empty(target.shape, dtype=np.uint8)
    for first in range(0, target.shape[0], SLAB):
        slab = _slab(target, first, min(SLAB, target.shape[0] - first))
        best = np.full(slab.shape, 0.5 if one else -1.0, dtype=np.float32)
        decided = np.zeros(slab.shape, dtype=np.uint8)
        for channel, values in enumerate(likely):
            here = resample(Volume(values, grid), slab, nearest=False, outside=0).array
            ahead = here > best
            decided[ahead] = channel + one
            best[ahead] = here[ahead]
        classes[first : first + len(decided)] = decided
    return classes


def _slab(grid: Grid, first: int, count: int) -> Grid:
    """`count` slices of a grid, from slice `first`."""
    affine = grid.affine.copy()
    affine[:3, 3] += first * affine[:3, 0]
    return Grid((count, *grid.shape[1:]), affine)


def _inverse(order: AxisOrder) -> AxisOrder:
    """The axis order that undoes another."""
    source, flip = [0, 0, 0], [False, False, False]
    for new, (old, flipped) in enumerate(
        zip(order.source_axis, order.flip, strict=True)
    ):
        source[old], flip[old] = new, flipped
    return AxisOrder((source[0], source[1], source[2]), (flip[0], flip[1], flip[2]))
