"""The networks a plan can name, built from MONAI with the plan's own norm.

Every network is built with batch norm and its norm layers are then exchanged for the
plan's. That is one rule for all, and the only one that holds: MONAI's ResNet ignores
`norm` inside its blocks and its AttentionUnet has no such option (and two kinds of norm
inside). Instance norm has no parameters (MONAI's default), group norm has up to eight
groups and an affine.

Initial weights come from the seed alone and leave the global random state untouched, so
that all engines start from one model.

For a classifier prefer group norm: instance norm right before the global mean takes
away most of what the mean would say.
"""

import math

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.densenet import DenseNet
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.resnet import ResNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.unet import UNet
from torch import nn

from common.errors import ModelError
from common.plan import Model, Plan

_RESNETS: dict[str, tuple[str, list[int]]] = {
    "ResNet10": ("basic", [1, 1, 1, 1]),
    "ResNet18": ("basic", [2, 2, 2, 2]),
    "ResNet34": ("basic", [3, 4, 6, 3]),
    "ResNet50": ("bottleneck", [3, 4, 6, 3]),
}
_DENSENETS = {"DenseNet121": (6, 12, 24, 16), "DenseNet169": (6, 12, 32, 32)}
FOREGROUND_PRIOR = 0.01
"""Share of foreground that a segmenter begins to believe in."""
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def build_network(plan: Plan, out_channels: int, seed: int) -> nn.Module:
    """The plan's network on the CPU, in training mode, with seeded weights.

    Args:
        plan: `[model]`, and the patch it has to fit.
        out_channels: Channels of the output, as the task says.
        seed: Fixes every initial weight; the global random state is left as it was.

    Returns:
        Maps B 1 *S to B C *S (segmentation) or B C (classification); S is H W for two
        dimensions and D H W for three.

    Raises:
        ModelError: The patch does not fit the network's strides.
    """
    _check_patch(plan)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _assemble(plan, out_channels)
    if plan.task.kind == "segmentation":
        _expect_background(network, out_channels)
    return network


def _expect_background(network: nn.Module, out_channels: int) -> None:
    """Let a segmenter begin with the belief that a voxel is background.

    Foreground is rare. A network that starts at one half spends its first hundred steps
    on unlearning that, and sites that do so each in its own way are far apart when they
    are first averaged. The bias of the last convolution is set so that foreground
    starts at `FOREGROUND_PRIOR` (Lin 2017, arXiv 1708.02002, section 3.3).
    """
    kinds = (nn.modules.conv._ConvNd,)
    last = [
        m
        for m in network.modules()
        if isinstance(m, kinds)
        and m.out_channels == out_channels
        and m.bias is not None
    ][-1]
    odds = math.log(FOREGROUND_PRIOR / (1.0 - FOREGROUND_PRIOR))
    assert last.bias is not None
    with torch.no_grad():
        last.bias.zero_()
        if out_channels == 1:
            last.bias.fill_(odds)
        else:  # channel 0 is background
            last.bias[0] = -odds + math.log(out_channels - 1)


def check_fits(plan: Plan) -> None:
    """Refuse a plan whose network can't take its patch; costs no training.

    Besides the rule on strides, a forward pass without data (meta device) is made.

    Raises:
        ModelError: It does not fit; the message says which number is wrong.
    """
    _check_patch(plan)
    with torch.device("meta"), torch.no_grad():
        try:
            network = _assemble(plan, 2)
            output = network(torch.zeros(2, 1, *plan.training.patch))
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"network {plan.model.name} refused training.patch "
                f"{plan.training.patch}: {error}; try a larger patch"
            ) from error
    wanted = (2, 2, *plan.training.patch)
    if plan.task.kind == "segmentation" and tuple(output.shape) != wanted:
        raise ModelError(
            f"network {plan.model.name} turned training.patch {plan.training.patch} "
            f"into {list(output.shape[2:])}, expected the same size"
        )


def patch_multiple(model: Model) -> int:
    """What every number of a patch must be a multiple of."""
    if model.name in ("UNet", "AttentionUnet", "DynUNet"):
        return int(2 ** (len(model.channels) - 1))
    return 8 if model.name == "SegResNet" else 1


def smallest_patch(model: Model) -> int:
    """The least each number of a patch can be."""
    return 32 if model.name in _DENSENETS else patch_multiple(model)


def _check_patch(plan: Plan) -> None:
    model = plan.model
    multiple, least = patch_multiple(model), smallest_patch(model)
    for size in plan.training.patch:
        if size % multiple:
            raise ModelError(
                f"network {model.name} got {size} in training.patch "
                f"{plan.training.patch}, expected multiples of {multiple}; "
                f"change the patch or the number of model.channels"
            )
        if size < least:
            raise ModelError(
                f"network {model.name} got {size} in training.patch "
                f"{plan.training.patch}, expected at least {least}"
            )
    # Instance norm over a single voxel would wipe out every feature.
    deepest = math.prod(
        -(-size // _deepest_stride(model)) for size in plan.training.patch
    )
    if model.norm == "instance" and model.name != "LinearProbe" and deepest == 1:
        raise ModelError(
            f"network {model.name} shrinks training.patch {plan.training.patch} to a "
            f"single voxel, expected more than one for instance norm; double the "
            f"patch or set model.norm = 'group'"
        )


def _deepest_stride(model: Model) -> int:
    if model.name in _DENSENETS:
        return 32
    return 16 if model.name in _RESNETS else patch_multiple(model)


def _assemble(plan: Plan, out_channels: int) -> nn.Module:
    model = plan.model
    if model.name == "LinearProbe":
        return _linear_probe(plan, out_channels)
    if model.name in _RESNETS:
        network = _resnet(model, out_channels)
    elif model.name in _DENSENETS:
        network = _densenet(model, out_channels)
    else:
        network = _u_shaped(model, out_channels)
    _exchange_norms(network, model)
    return network


def _u_shaped(model: Model, out_channels: int) -> nn.Module:
    levels = len(model.channels)
    down = [2] * (levels - 1)
    if model.name == "UNet":
        return UNet(
            spatial_dims=model.dimensions,
            in_channels=1,
            out_channels=out_channels,
            channels=model.channels,
            strides=down,
            num_res_units=model.residual_units,
            norm="batch",
            dropout=model.dropout,
        )
    if model.name == "AttentionUnet":
        return AttentionUnet(
            spatial_dims=model.dimensions,
            in_channels=1,
            out_channels=out_channels,
            channels=model.channels,
            strides=down,
            dropout=model.dropout,
        )
    if model.name == "SegResNet":
        return SegResNet(
            spatial_dims=model.dimensions,
            in_channels=1,
            out_channels=out_channels,
            init_filters=model.channels[0],
            dropout_prob=model.dropout or None,
            norm="batch",
        )
    return DynUNet(
        spatial_dims=model.dimensions,
        in_channels=1,
        out_channels=out_channels,
        kernel_size=[3] * levels,
        strides=[1, *down],
        upsample_kernel_size=down,
        filters=model.channels,
        dropout=model.dropout or None,
        norm_name="batch",
    )


def _resnet(model: Model, out_channels: int) -> nn.Module:
    block, layers = _RESNETS[model.name]
    network = ResNet(
        block=block,
        layers=layers,
        block_inplanes=[64, 128, 256, 512],
        spatial_dims=model.dimensions,
        n_input_channels=1,
        num_classes=out_channels,
    )
    if model.dropout:
        network.fc = nn.Sequential(nn.Dropout(model.dropout), network.fc)
    return network


def _densenet(model: Model, out_channels: int) -> nn.Module:
    return DenseNet(
        spatial_dims=model.dimensions,
        in_channels=1,
        out_channels=out_channels,
        block_config=_DENSENETS[model.name],
        dropout_prob=model.dropout,
    )


def _linear_probe(plan: Plan, out_channels: int) -> nn.Module:
    conv = nn.Conv2d if plan.model.dimensions == 2 else nn.Conv3d
    probe = conv(1, out_channels, kernel_size=3, padding=1)
    if plan.task.kind == "segmentation":
        return probe
    pool: nn.Module = (
        nn.AdaptiveAvgPool2d(1)
        if plan.model.dimensions == 2
        else nn.AdaptiveAvgPool3d(1)
    )
    return nn.Sequential(probe, pool, nn.Flatten())


def _exchange_norms(network: nn.Module, model: Model) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _NORMS):
                setattr(parent, name, _norm(model, child.num_features))


def _norm(model: Model, channels: int) -> nn.Module:
    flat = model.dimensions == 2
    if model.norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if model.norm == "instance":
        return (nn.InstanceNorm2d if flat else nn.InstanceNorm3d)(channels)
    return (nn.BatchNorm2d if flat else nn.BatchNorm3d)(channels)
