"""Gradient inversion: the picture back from the update of one optimiser step.

The update comes from the site's own training loop (`client.train.train_round`, one step
of plain SGD), so what the attacker starts from is what would leave. He knows the model,
the rate, the labels and the outlines, and looks for pictures whose gradient is the one
he saw: by its distance (Zhu 2019, arXiv 1906.08935; with labels known, Zhao 2020, arXiv
2001.02610), or by its direction (Geiping 2020, arXiv 2003.14053).

`SigmoidNet` is the control: smooth, without norm layers, the kind of network on which
the attack is known to succeed. No plan can name it.

Not covered here: updates of many steps, several pictures of one site in a step, an
attacker who knows what pictures of hospitals look like, and batch norm in a sum, which
the attacker takes over the pictures of all sites.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from monai.metrics.regression import SSIMMetric
from torch import Tensor, nn

from client.train import Correction, build_optimizer, train_round
from common.plan import Plan
from common.task import Batch
from common.tasks.catalog import task_of
from deploy.progress import tell_work

_WINDOW = 7
"""Voxels a side over which likeness is taken."""


class SigmoidNet(nn.Sequential):
    """Three convolutions with sigmoids and a linear layer, as in Zhu 2019."""

    def __init__(self, seed: int, side: int) -> None:
        """Seeded weights; takes [N 1 side side], for a side that 4 divides."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(
                *(nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid()),
                *(nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid()),
                *(nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid()),
                *(nn.Flatten(), nn.Linear(12 * (side // 4) ** 2, 2)),
            )
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)


@dataclass(frozen=True, eq=False)
class Sight:
    """What an attacker at the hub has before him."""

    network: nn.Module
    """The model that was sent out."""
    plan: Plan
    """Names the loss."""
    gradient: Float32[Tensor, " P"]
    """What came: the weighted mean of the gradients of N pictures."""
    known: Sequence[Batch]
    """Label and mask of each of the N; their images are not looked at."""
    weights: Sequence[float]
    """Of the N, with sum 1."""
    clip_norm: float | None = None
    """Norm to which each gradient was clipped; unset: it was not."""


def gradient_of(network: nn.Module, plan: Plan, batch: Batch) -> Float32[Tensor, " P"]:
    """What one step of the site's training loop moved, as the gradient it was."""
    before = [p.detach().clone() for p in network.parameters()]
    train_round(
        network,
        build_optimizer(network, plan.training),
        [batch],
        task_of(plan),
        plan,
        steps=1,
        first_step=0,
        total_steps=1,
        correction=Correction(),
        scaler={},
        device=torch.device("cpu"),
        progress=lambda done, steps: None,
    )
    moved = []
    with torch.no_grad():
        for parameter, old in zip(network.parameters(), before, strict=True):
            moved.append((old - parameter).flatten() / plan.training.learning_rate)
            parameter.copy_(old)
    return torch.cat(moved)


@dataclass(frozen=True, eq=False)
class Found:
    """What an attack came to."""

    pictures: Float32[Tensor, "N 1 *S"]
    """The guess at each picture, -1..1."""
    steps: int
    """Of its optimiser, until they were done or the time was up."""


def invert(
    sight: Sight, *, steps: int, limit_s: float = math.inf, seed: int = 0
) -> Found:
    """Pictures whose gradient is the one that was seen, by L-BFGS (Zhu 2019).

    Args:
        sight: What the attacker has.
        steps: Of L-BFGS.
        limit_s: Seconds after which no step begins.
        seed: Of the noise that it starts from.
    """
    guess = (_noise(sight, seed) * 0.3 - 0.5).requires_grad_(True)
    optimizer = torch.optim.LBFGS([guess], lr=1.0, history_size=50, max_iter=1)
    size = float((sight.gradient**2).sum())

    def apart() -> Tensor:
        optimizer.zero_grad()
        distance = ((gradient_at(sight, guess) - sight.gradient) ** 2).sum() / size
        distance.backward()
        return distance

    until, done = time.monotonic() + limit_s, 0
    best, found = math.inf, guess.detach().clone()
    while done < steps and time.monotonic() < until:
        here = guess.detach().clone()
        distance = float(optimizer.step(apart).detach())
        if not math.isfinite(distance):
            break
        if distance < best:
            best, found = distance, here
        done += 1
        tell_work("gradient inversion, step", done, steps)
    return Found(found.clamp(-1.0, 1.0), done)


def invert_by_direction(
    sight: Sight, *, steps: int, limit_s: float = math.inf
) -> Found:
    """As `invert`, by the gradient's direction and a smooth picture (Geiping 2020).

    Signed Adam on the cosine distance plus total variation (equation 4), which norm
    layers hold up less than L-BFGS on the squared distance.
    """
    guess = (_noise(sight, 0) * 0.3).requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=0.05)
    falls = [int(steps * part) for part in (0.4, 0.7, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, 0.1)
    until, done = time.monotonic() + limit_s, 0
    while done < steps and time.monotonic() < until:
        optimizer.zero_grad()
        mine = gradient_at(sight, guess)
        distance = 1.0 - torch.cosine_similarity(mine, sight.gradient, dim=0)
        (distance + 1e-2 * _roughness(guess)).backward()
        assert guess.grad is not None
        guess.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(-1.0, 1.0)
        done += 1
        tell_work("gradient inversion, step", done, steps)
    return Found(guess.detach(), done)


def _noise(sight: Sight, seed: int) -> Tensor:
    """Standard normal numbers in the shape of the N pictures."""
    shape = (len(sight.known), *sight.known[0].image.shape[1:])
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient_at(sight: Sight, guess: Tensor) -> Float32[Tensor, " P"]:
    """What would have come, had the pictures been these; can be differentiated."""
    if sight.clip_norm is None:
        return _mean_gradient(sight, guess, range(len(guess)))
    total = torch.zeros_like(sight.gradient)
    for number, weight in enumerate(sight.weights):
        one = _mean_gradient(sight, guess, [number]) / weight
        total = total + weight * one * (sight.clip_norm / one.norm()).clamp(max=1.0)
    return total


def _mean_gradient(
    sight: Sight, guess: Tensor, numbers: Sequence[int]
) -> Float32[Tensor, " P"]:
    """The weighted sum of the gradients of some of the pictures."""
    task, output = task_of(sight.plan), sight.network(guess[list(numbers)])
    losses = [
        sight.weights[number] * task.loss(output[at : at + 1], sight.known[number])
        for at, number in enumerate(numbers)
    ]
    parts = torch.autograd.grad(
        torch.stack(losses).sum(),
        list(sight.network.parameters()),
        create_graph=True,
        materialize_grads=True,
    )
    return torch.cat([part.flatten() for part in parts])


def _roughness(guess: Tensor) -> Tensor:
    """Total variation of the pictures, the mean over each axis."""
    axes = range(2, guess.ndim)
    return torch.stack([guess.diff(dim=axis).abs().mean() for axis in axes]).sum()


def likeness(
    found: Float32[Tensor, "N 1 *S"], true: Float32[Tensor, "1 1 *S"]
) -> float:
    """Best SSIM (Wang 2004, equation 13) between any found and the true picture."""
    metric = SSIMMetric(spatial_dims=true.ndim - 2, data_range=2.0, win_size=_WINDOW)
    return max(float(metric(one[None], true)) for one in found)
