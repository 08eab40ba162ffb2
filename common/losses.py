"""Losses of segmentation and classification, in few launches and without branches.

No value is read back from the device and no index list is made, so a whole training
step can be captured as one CUDA graph, and gradients are deterministic. Dice is taken
per patch and class with the background left out; `SMOOTH` keeps a patch without
foreground quiet: its Dice loss is small while nothing is predicted.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from common.errors import ModelError

SMOOTH = 1.0
"""Added above and below the fraction, in voxels (Milletari 2016 has none)."""
GAMMA = 2.0
"""Focusing exponent (Lin 2017, section 5.1)."""


def segmentation_loss(
    name: str, logits: Float[Tensor, "B C *S"], mask: Int64[Tensor, "B *S"]
) -> Float[Tensor, ""]:
    """Dice loss plus voxel-wise cross-entropy or focal loss, weighted one to one.

    Args:
        name: `dice_ce` or `dice_focal`, as in the plan.
        logits: One channel: foreground through a sigmoid. More: softmax, channel 0 is
            background.
        mask: Class per voxel, 0 background.
    """
    if logits.shape[1] == 1:
        truth = (mask > 0).unsqueeze(1).to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        shares, truths = torch.sigmoid(logits), truth
    else:
        truth = torch.zeros_like(logits).scatter_(1, mask.unsqueeze(1), 1.0)
        log_shares = F.log_softmax(logits, dim=1)
        entropy = -(truth * log_shares).sum(dim=1)
        shares, truths = log_shares[:, 1:].exp(), truth[:, 1:]
    dice = 1.0 - soft_dice(shares, truths).mean()
    return dice + _focused(name.removeprefix("dice_"), entropy)


def soft_dice(
    shares: Float[Tensor, "B K *S"], truth: Float[Tensor, "B K *S"]
) -> Float[Tensor, "B K"]:
    """Dice of probabilities against 0/1 truth, per patch and class."""
    shares, truth = shares.flatten(2), truth.flatten(2)
    both = (shares * truth).sum(dim=2)
    return (2.0 * both + SMOOTH) / (shares.sum(dim=2) + truth.sum(dim=2) + SMOOTH)


def classification_loss(
    name: str, logits: Float[Tensor, "B C"], label: Int64[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Mean over the batch of `cross_entropy` or `focal`, as in the plan."""
    return _focused(name, F.cross_entropy(logits, label, reduction="none"))


def _focused(name: str, entropy: Float[Tensor, "*any"]) -> Float[Tensor, ""]:
    """Mean entropy, or mean focal loss: entropy is -log p, so p is exp(-entropy)."""
    if name in ("ce", "cross_entropy"):
        return entropy.mean()
    if name == "focal":
        return ((1.0 - torch.exp(-entropy)) ** GAMMA * entropy).mean()
    raise ModelError(
        f"loss got {name!r}, expected dice_ce, dice_focal, cross_entropy or focal"
    )
