"""A crafted model that writes pictures into its own gradient (Fowl 2022).

The first layer (arXiv 2110.13057, section 4) measures one thing, how bright a picture
is, and compares it with rising thresholds. Each picture moves all rows below its own
brightness, so neighbouring rows differ by just the pictures between them: where there
is one, the difference over that of the biases is the picture. A sum over hospitals
hides nothing of it, for the pictures lie in different rows.
"""

import numpy as np
import torch
from torch import Tensor, nn

from deploy.inversion_audit import SIDE

BINS = 1500


class Imprint(nn.Sequential):
    """Flatten, the thresholds, and a layer that treats all of them alike."""

    def __init__(self, low: float, high: float) -> None:
        """Thresholds from the darkest to the brightest mean grey value expected."""
        super().__init__(
            nn.Flatten(), nn.Linear(SIDE**2, BINS), nn.ReLU(), nn.Linear(BINS, 2)
        )
        first, last = self[1], self[3]
        with torch.no_grad():
            first.weight.fill_(1.0 / SIDE**2)
            first.bias.copy_(-torch.linspace(low, high, BINS))
            # Small, so that the loss is never sure: a sure loss has no gradient.
            last.weight[0] = 1e-4
            last.weight[1] = -1e-4
            last.bias.zero_()


def first_layer(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases of the thresholds, out of the whole gradient."""
    weight, bias, _ = gradient.split(
        [BINS * SIDE**2, BINS, len(gradient) - BINS * (SIDE**2 + 1)]
    )
    return weight.reshape(BINS, SIDE**2), bias


def read_off(weight: Tensor, bias: Tensor) -> Tensor:
    """Pictures in the gradient of the first layer, [N 1 H W], good ones and bad."""
    rows = weight[:-1] - weight[1:]
    sizes = bias[:-1] - bias[1:]
    told = sizes.abs() > 1e-4 * sizes.abs().max()
    pictures = rows[told] / sizes[told, None]
    return pictures.reshape(-1, 1, SIDE, SIDE)


def psnr(found: Tensor, true: Tensor) -> float:
    """Best peak signal to noise ratio, in dB, between any found and the true picture.

    The range of grey values is 2 (-1..1).
    """
    if not len(found):
        return -np.inf
    errors = ((found.double() - true.double()) ** 2).mean(dim=(1, 2, 3))
    return float(10.0 * torch.log10(4.0 / errors.min()))
