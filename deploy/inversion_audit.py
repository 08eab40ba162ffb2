"""Gradient inversion on what the hub gets in a run, beside a control that succeeds.

The same attack three times: on the clear gradient of a network on which it works (the
control); on that network's gradient as this run sends it, one part in a sum over sites,
or clipped and blurred by DP; and on the plan's own network as this run sends it. All in
the attacker's favour: one picture of each site, one plain step, labels and outlines
known, no dropout. Patients are phantoms, so it needs none at the hub.

What an attack does not find, a better one may. So a low figure beside a high control
says that this attack was held up, and no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor, nn

from client.dp_train import Grid, add_clipped, blur
from client.secret_random import SecretStream
from common.errors import ModelError
from common.networks import build_network, check_fits, patch_multiple, smallest_patch
from common.plan import Plan
from common.plan_file import parse_plan
from common.task import Batch
from common.tasks.catalog import task_of
from deploy.inversion import (
    Sight,
    SigmoidNet,
    gradient_of,
    invert,
    invert_by_direction,
    likeness,
)
from server.privacy_record import FULL_STEPS, InversionRecord

SIDE = 32
"""Pixels a side of the control's pictures."""
STEPS = FULL_STEPS
"""Of each attack."""
LIMIT_S = 5.0
"""Seconds after which an attack that is no control takes no more steps."""
MOST_SITES = 8
"""A sum over more is attacked as if it held the largest of them alone, which is in the
attacker's favour and bounds memory."""
_KEY = bytes(32)
"""Of the noise, which here hides nobody, so that an audit can be repeated."""
_SIDES = {2: 32, 3: 16}
"""Dimensions to the least side of the pictures for the plan's network."""
CONTROL = """
[plan]
name = "inversion"
[task]
kind = "classification"
attribute = "malignancy"
classes = [{ name = "benign", below = 3.0 }, { name = "malignant", above = 3.0 }]
[model]
name = "LinearProbe"
dimensions = 2
[training]
steps = 1
batch_size = 1
patch = [32, 32]
loss = "cross_entropy"
optimizer = "sgd"
momentum = 0.0
weight_decay = 0.0
learning_rate = 1.0
schedule = "constant"
[federation]
rounds = 1
"""
"""One plain step; the network is exchanged for `SigmoidNet`."""


@dataclass(frozen=True)
class Way:
    """How gradients reach the hub in a run."""

    shares: tuple[float, ...] = (1.0,)
    """Of the sites in one sum, the largest first; in the clear a single 1."""
    clip_norm: float | None = None
    """To which DP clips each gradient; unset: there is no DP."""
    noise_multiplier: float = 0.0
    """Noise of DP, in clip norms."""

    @property
    def is_clear(self) -> bool:
        """Whether the hub gets one site's gradient as it was."""
        return len(self.shares) == 1 and self.clip_norm is None


def audit_inversion(plan: Plan, way: Way) -> InversionRecord:
    """Attack what the hub gets of a picture, the one with the largest share of the sum.

    Args:
        plan: Of the run.
        way: Of its gradients to the hub.
    """
    sites, control = len(way.shares), parse_plan(CONTROL)
    network = SigmoidNet(0, SIDE)
    pictures = patients(2 * sites, (SIDE, SIDE))
    known, true = pictures[:sites], pictures[0].image
    clear = invert(sight_of(network, control, known[:1], Way()), steps=STEPS)
    defended, steps = None, clear.steps
    if not way.is_clear:
        defended, steps = _attack(sight_of(network, control, known, way), true)
    step = one_step(plan)
    own = build_network(step, task_of(step).out_channels, plan.plan.seed)
    seen = patients(sites, step.training.patch)
    got, own_steps = _attack(sight_of(own, step, seen, way), seen[0].image)
    others = torch.cat([one.image for one in pictures[sites:]])
    return InversionRecord(
        control=likeness(clear.pictures, true),
        chance=likeness(others, true),
        defended=defended,
        network=got,
        steps=min(steps, own_steps),
        sites=sites,
        noise_multiplier=None if way.clip_norm is None else way.noise_multiplier,
    )


def sight_of(network: nn.Module, plan: Plan, known: Sequence[Batch], way: Way) -> Sight:
    """What the hub gets where each site takes one step on one picture."""
    stream, total = SecretStream(_KEY), torch.zeros(())
    for share, batch in zip(way.shares, known, strict=True):
        one = gradient_of(network, plan, batch)
        if way.clip_norm is not None:
            one = blurred([one], way.clip_norm, way.noise_multiplier, stream)
        total = total + share * one
    return Sight(network, plan, total, known, way.shares, way.clip_norm)


def _attack(sight: Sight, true: Tensor) -> tuple[float, int]:
    """Likeness by the better of two attacks, and the steps that each took at least."""
    found = [
        attack(sight, steps=STEPS, limit_s=LIMIT_S)
        for attack in (invert, invert_by_direction)
    ]
    best = max(likeness(one.pictures, true) for one in found)
    return best, min(one.steps for one in found)


def one_step(plan: Plan) -> Plan:
    """The plan with one plain step on one small picture, and nothing in the way."""
    model = plan.model.model_copy(update={"dropout": 0.0})
    multiple, least = patch_multiple(model), smallest_patch(model)
    side = -(-max(_SIDES[model.dimensions], least) // multiple) * multiple
    plain = {
        "steps": 1,
        "epochs": None,
        "batch_size": 1,
        "patch": [side] * model.dimensions,
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "learning_rate": 1.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "amp": "off",
        "max_grad_norm": None,
    }
    training = plan.training.model_copy(update=plain)
    small = plan.model_copy(update={"model": model, "training": training})
    strict = model.model_copy(update={"norm": "instance"})
    try:
        check_fits(small.model_copy(update={"model": strict}))
    except ModelError:  # a single voxel at the bottom, of which no norm makes anything
        training.patch[-1] *= 2
    return small


def patients(count: int, shape: Sequence[int]) -> list[Batch]:
    """A picture (grey values -1..1), mask and label of each phantom patient."""
    rng, side = np.random.default_rng(0), min(shape)
    batches = []
    for number in range(count):
        grey, mask = picture(rng, shape, (side * 5.0 / 32.0, side * 9.0 / 32.0))
        image = torch.from_numpy(grey.astype(np.float32) / 127.5 - 1.0)[None, None]
        classes = torch.from_numpy((mask > 0).astype(np.int64))[None]
        batches.append(Batch(image, classes, torch.tensor([number % 2])))
    return batches


def picture(
    rng: np.random.Generator, shape: Sequence[int], radius: tuple[float, float]
) -> tuple[UInt8[np.ndarray, "*S"], UInt8[np.ndarray, "*S"]]:
    """A bright nodule among vessels in noise: grey values, and its mask (0 or 255).

    Args:
        rng: Draws all of it.
        shape: D H W or H W.
        radius: Of the nodule, least and most, in voxels.
    """
    nodule = ball(rng, shape, rng.uniform(*radius))
    balls = [ball(rng, shape, rng.uniform(1.0, 2.0)) for _ in range(8)]
    vessels = np.any(balls, axis=0)
    grey = rng.normal(60.0, 12.0, tuple(shape))
    grey[vessels] = rng.normal(130.0, 12.0, vessels.sum())
    grey[nodule] = rng.normal(160.0, 12.0, nodule.sum())
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8), np.uint8(255) * nodule


def ball(
    rng: np.random.Generator, shape: Sequence[int], radius: float
) -> Bool[np.ndarray, "*S"]:
    """The inside of a ball that lies in the picture, at a place by chance."""
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    centre = [rng.uniform(radius, size - radius) for size in shape]
    squares = [(x - at) ** 2 for x, at in zip(axes, centre, strict=True)]
    return np.asarray(sum(squares) <= radius**2)


def blurred(
    gradients: Sequence[Float32[Tensor, " P"]],
    clip_norm: float,
    noise_multiplier: float,
    stream: SecretStream,
) -> Float32[Tensor, " P"]:
    """What DP-SGD lets out of patients' gradients: clipped, added, noised, the mean."""
    size = len(gradients[0])
    grid = Grid.of(clip_norm, size, len(gradients))
    total = torch.zeros(size, dtype=torch.int32)
    for gradient in gradients:
        add_clipped([total], [gradient.clone()], grid)
    out = torch.zeros(size)
    sigma = noise_multiplier * clip_norm / grid.unit
    blur(out, total, sigma, grid.unit / len(gradients), stream)
    return out
