"""Grad-CAM: which part of an image speaks for a class.

Taken at the feature map that goes into the global mean, the one place that every
classifier here has; for a network that ends in one linear layer this is CAM itself
(Selvaraju 2017, section 3.1).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor, nn

from common.errors import ModelError

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


def grad_cam(
    network: nn.Module, image: Float32[Tensor, "1 1 *S"], class_index: int
) -> Float32[Tensor, "*S"]:
    """Weight per voxel, 0..1 (all 0 where nothing speaks for the class).

    Args:
        network: A classifier in evaluation mode; its gradients are left untouched.
        image: One image, on the network's device.
        class_index: The class whose evidence is asked for.

    Raises:
        ModelError: The network has no global mean.
    """
    pools = [module for module in network.modules() if isinstance(module, _POOLS)]
    if not pools:
        raise ModelError("Grad-CAM got a network without a global mean over features")
    seen: list[Tensor] = []
    hook = pools[-1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with torch.inference_mode(mode=False), torch.enable_grad():
            # A leaf that asks for gradients, so that frozen networks work as well.
            score = network(image.clone().requires_grad_())[0, class_index]
            (gradient,) = torch.autograd.grad(score, seen[0])
    finally:
        hook.remove()
    axes = tuple(range(2, gradient.ndim))
    cam = (gradient.mean(dim=axes, keepdim=True) * seen[0].detach()).sum(1).relu()
    mode = "bilinear" if len(axes) == 2 else "trilinear"
    cam = F.interpolate(cam[None], image.shape[2:], mode=mode, align_corners=False)
    return (cam / cam.max().clamp_min(1e-12))[0, 0]
