"""Gradient inversion: the picture back from the update of one optimiser step.

The update comes from the site's own training loop (`client.train.train_round`, one step
of plain SGD), so what the attacker starts from is what would leave. He knows the model,
the rate and the labels, and looks for pictures whose gradient is the one he saw (Zhu
2019, arXiv 1906.08935; with labels known, Zhao 2020, arXiv 2001.02610).

`SigmoidNet` is the control: smooth, without norm layers, the kind of network on which
the attack is known to succeed. No plan can name it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.regression import SSIMMetric
from torch import Tensor, nn

from client.train import Correction, build_optimizer, train_round
from common.plan import Plan
from common.task import Batch
from common.tasks.catalog import task_of
from tests.attacks.phantom_sites import picture

SIDE = 32
_PLAN = """
[plan]
name = "inversion"
[task]
{task}
[model]
{model}
dimensions = 2
[training]
steps = 1
batch_size = 1
patch = [32, 32]
loss = "{loss}"
optimizer = "sgd"
momentum = 0.0
weight_decay = 0.0
learning_rate = 1.0
schedule = "constant"
[federation]
rounds = 1
"""
CLASSIFY = _PLAN.format(
    task="""kind = "classification"
attribute = "malignancy"
classes = [{ name = "benign", below = 3.0 }, { name = "malignant", above = 3.0 }]""",
    model='name = "ResNet10"\nnorm = "group"',
    loss="cross_entropy",
)
SEGMENT = _PLAN.format(
    task='kind = "segmentation"\nclasses = { nodule = ["nodule"] }',
    model='name = "UNet"\nchannels = [8, 16]\nresidual_units = 0\nnorm = "instance"',
    loss="dice_ce",
)


class SigmoidNet(nn.Sequential):
    """Three convolutions with sigmoids and a linear layer, as in Zhu 2019."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            super().__init__(
                *(nn.Conv2d(1, 12, 5, 2, 2), nn.Sigmoid()),
                *(nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid()),
                *(nn.Conv2d(12, 12, 5, 1, 2), nn.Sigmoid()),
                *(nn.Flatten(), nn.Linear(12 * (SIDE // 4) ** 2, 2)),
            )
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)


def patients(count: int) -> list[Batch]:
    """A picture, mask and label of each, grey values -1..1."""
    rng = np.random.default_rng(0)
    batches = []
    for number in range(count):
        grey, mask = picture(rng, SIDE)
        image = torch.from_numpy(grey.astype(np.float32) / 127.5 - 1.0)[None, None]
        classes = torch.from_numpy((mask > 0).astype(np.int64))[None]
        batches.append(Batch(image, classes, torch.tensor([number % 2])))
    return batches


def gradient_of(network: nn.Module, plan: Plan, batch: Batch) -> list[Tensor]:
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
    after = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for parameter, old in zip(network.parameters(), before, strict=True):
            parameter.copy_(old)
    rate = plan.training.learning_rate
    return [(old - new) / rate for old, new in zip(before, after, strict=True)]


def invert(
    network: nn.Module,
    plan: Plan,
    seen: Sequence[Tensor],
    known: Batch,
    *,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """Pictures whose gradient is the one that was seen, [N 1 H W].

    Args:
        network: The model that was sent out.
        plan: Names the loss.
        seen: Gradient per parameter, of the mean loss over N pictures.
        known: Labels and masks of the N pictures; their images are not looked at.
        steps: Of L-BFGS.
        seed: Of the noise that it starts from.
    """
    task, parameters = task_of(plan), list(network.parameters())
    generator = torch.Generator().manual_seed(seed)
    guess = torch.randn(known.image.shape, generator=generator) * 0.3 - 0.5
    guess.requires_grad_(True)
    optimizer = torch.optim.LBFGS([guess], lr=1.0, history_size=50, max_iter=20)
    size = sum(float((g**2).sum()) for g in seen)

    def apart() -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(network(guess), known)
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        terms = [((a - b) ** 2).sum() for a, b in zip(mine, seen, strict=True)]
        distance = torch.stack(terms).sum() / size
        distance.backward()
        return distance

    best, found = float("inf"), guess.detach().clone()
    for _ in range(steps // 20):
        distance = float(optimizer.step(apart).detach())
        if not np.isfinite(distance):
            break
        if distance < best:
            best, found = distance, guess.detach().clone()
    return found.clamp(-1.0, 1.0)


def invert_by_direction(
    network: nn.Module, plan: Plan, seen: Sequence[Tensor], known: Batch, *, steps: int
) -> Tensor:
    """As `invert`, by the gradient's direction and a smooth picture (Geiping 2020).

    Signed Adam on the cosine distance plus total variation (arXiv 2003.14053, equation
    4), which norm layers hold up less than L-BFGS on the squared distance.
    """
    task, parameters = task_of(plan), list(network.parameters())
    generator = torch.Generator().manual_seed(0)
    guess = torch.randn(known.image.shape, generator=generator) * 0.3
    guess.requires_grad_(True)
    optimizer = torch.optim.Adam([guess], lr=0.05)
    falls = [int(steps * part) for part in (0.4, 0.7, 0.9)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, 0.1)
    aim = torch.cat([g.flatten() for g in seen])
    for _ in range(steps):
        optimizer.zero_grad()
        loss = task.loss(network(guess), known)
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        whole = torch.cat([g.flatten() for g in mine])
        distance = 1.0 - torch.cosine_similarity(whole, aim, dim=0)
        across = (guess[..., 1:] - guess[..., :-1]).abs().mean()
        down = (guess[..., 1:, :] - guess[..., :-1, :]).abs().mean()
        (distance + 1e-2 * (across + down)).backward()
        assert guess.grad is not None
        guess.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(-1.0, 1.0)
    return guess.detach()


def joined(batches: Sequence[Batch]) -> Batch:
    """Several patients as one batch."""
    return Batch(
        torch.cat([b.image for b in batches]),
        torch.cat([b.mask for b in batches]),
        torch.cat([b.label for b in batches]),
    )


def likeness(found: Tensor, true: Tensor) -> float:
    """Best SSIM between any found and the first true picture."""
    metric = SSIMMetric(spatial_dims=2, data_range=2.0, win_size=7)
    pairs = [metric(one[None], true[:1]) for one in found]
    return max(float(value) for value in pairs)
