"""Random changes of training patches: mirrors, transposition, grey values.

Drawn per patch, applied to the whole batch at once and only where the plan names it.
Turning happens on the small types of the store (2 and 1 bytes a voxel), before they
become what the network wants (4 and 8). Grey values may leave -1..1; nothing is
clipped, because half of a chest lies at the window's low end and clipping would hide
half of the noise there.

Not covered here: rotation and zoom by fractions, which would interpolate again.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float16, Float32, UInt8
from torch import Tensor

from common.plan import Augmentation

_AXIS_FROM_END = {"D": 3, "H": 2, "W": 1}


def turn(
    image: Float16[np.ndarray, "B D H W"],
    mask: UInt8[np.ndarray, "B D H W"],
    settings: Augmentation,
    generator: np.random.Generator,
) -> None:
    """Mirror and transpose each patch with probability one half, in place."""
    for name in settings.flip:
        chosen = _half(len(image), generator)
        for values in (image, mask):
            values[chosen] = np.flip(values[chosen], -_AXIS_FROM_END[name])
    if settings.transpose:
        chosen = _half(len(image), generator)
        for values in (image, mask):
            values[chosen] = values[chosen].swapaxes(-1, -2)


def shade(
    image: Float32[Tensor, "B 1 *S"],
    settings: Augmentation,
    generator: np.random.Generator,
) -> None:
    """Grey becomes grey (1 + scale a) + shift b + noise c, in place.

    a and b are drawn per patch, c per voxel, all from N(0, 1).
    """
    one_each = (len(image),) + (1,) * (image.ndim - 1)
    if settings.scale:
        a = generator.standard_normal(one_each, dtype=np.float32)
        image *= torch.from_numpy(1.0 + settings.scale * a)
    if settings.shift:
        b = generator.standard_normal(one_each, dtype=np.float32)
        image += torch.from_numpy(settings.shift * b)
    if settings.noise:  # torch draws normals by the voxel twice as fast as numpy
        seed = int(generator.integers(2**63))
        c = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        image.add_(c, alpha=settings.noise)


def _half(count: int, generator: np.random.Generator) -> Bool[np.ndarray, " B"]:
    return generator.random(count) < 0.5
