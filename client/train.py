"""Local training: the optimiser steps of one round at one site.

Read top to bottom: build the optimiser, then per step draw a batch, set the rate, go
forward and back, correct the gradient as the algorithm asks, step. The rate follows one
schedule over the *whole run*; a schedule that starts anew each round, or moments that
are thrown away between rounds, cost more accuracy than any choice of aggregation rule.

Not covered here: clipping and noise for privacy (`client.dp_train`).
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import TrainingError
from common.inference import autocast
from common.plan import Plan, Training
from common.task import Batch, Task

Progress = Callable[[int, int], None]
"""Called with (steps done, steps of the round)."""


@dataclass(frozen=True)
class Correction:
    """What a federated algorithm adds to each gradient."""

    anchor: tuple[Tensor, ...] = ()
    """FedProx (Li 2020, eq. 2): the global parameters w_t."""
    mu: float = 0.0
    """FedProx: weight of the pull; the gradient gains mu (w - w_t)."""
    shift: tuple[Tensor, ...] = ()
    """SCAFFOLD (Karimireddy 2020, eq. 3): c - c_i, added to the gradient."""


@dataclass(frozen=True)
class Trained:
    """What a round of training was like."""

    loss: float | None
    """Mean loss over the steps; unset with DP, as no noise covers it."""
    rate_sum: float
    """Sum of the learning rates of the steps taken: what SCAFFOLD divides by. A step
    whose gradient overflows float16 is skipped."""
    seconds: float
    """Wall time of the steps."""
    scaler: dict[str, Any]
    """fp16: the loss scale that was found, for the next round; else empty."""


NOTHING = Trained(None, 0.0, 0.0, {})
"""A round that was answered from memory."""


def build_optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser that the plan names, over all parameters."""
    rate, decay = training.learning_rate, training.weight_decay
    parameters = list(network.parameters())
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=rate, weight_decay=decay, momentum=training.momentum
    )


def steps_per_round(plan: Plan, cases: int) -> int:
    """Optimiser steps of a site with so many training cases."""
    training = plan.training
    if training.steps is not None:
        return training.steps
    assert training.epochs is not None  # the plan has one of the two
    taken = round(training.epochs * cases / training.batch_size)
    return max(plan.fewest_steps, taken)


def rate_at(step: int, total: int, training: Training) -> float:
    """Learning rate of a step, counted over all rounds from 0."""
    rise = (
        min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    )
    fall = 1.0
    if training.schedule == "cosine":
        fall = 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))
    return training.learning_rate * rise * fall


def train_round(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    task: Task,
    plan: Plan,
    *,
    steps: int,
    first_step: int,
    total_steps: int,
    correction: Correction,
    scaler: dict[str, Any],
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Take optimiser steps, in place.

    Args:
        network: On `device`; left in training mode.
        optimizer: Over the network's parameters, with whatever moments it has.
        batches: At least as many batches as steps.
        task: Gives the loss.
        plan: Gives rate, precision and gradient clip.
        steps: Steps to take.
        first_step: Steps that this site was scheduled for before this round.
        total_steps: Steps of this site over all rounds: the length of the schedule.
        correction: What the algorithm adds to each gradient.
        scaler: Of the round before; empty in the first.
        device: Where batches are moved to.
        progress: Told after each step.

    Raises:
        TrainingError: The loss is not finite, or float16 held the gradients of fewer
            steps than a round has at the least.
    """
    scale = torch.amp.GradScaler(device.type, enabled=plan.training.amp == "fp16")
    if scaler:
        scale.load_state_dict(scaler)
    network.train()
    total = torch.zeros((), device=device)
    rate_sum, taken_steps = 0.0, 0
    started = time.perf_counter()
    for done, batch in zip(range(steps), batches, strict=False):
        rate = rate_at(first_step + done, total_steps, plan.training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        here = to_device(batch, device)
        loss, taken = _step(network, optimizer, here, task, plan, correction, scale)
        rate_sum += rate if taken else 0.0
        taken_steps += taken
        total += loss
        progress(done + 1, steps)
    mean = float(total) / steps
    _check_trained(mean, steps, taken_steps, plan)
    return Trained(mean, rate_sum, time.perf_counter() - started, scale.state_dict())


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    task: Task,
    plan: Plan,
    correction: Correction,
    scale: torch.amp.GradScaler,
) -> tuple[Tensor, bool]:
    """Take one step; its loss, and whether float16 held its gradient."""
    with autocast(plan, batch.image.device):
        output = network(batch.image)
    loss = task.loss(output.float(), batch)
    optimizer.zero_grad(set_to_none=True)
    scale.scale(loss).backward()
    scale.unscale_(optimizer)
    correct(network, correction)
    if plan.training.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), plan.training.max_grad_norm)
    before = scale.get_scale()
    scale.step(optimizer)
    scale.update()
    return loss.detach(), scale.get_scale() >= before


def _check_trained(mean: float, steps: int, taken: int, plan: Plan) -> None:
    """Refuse a round that ended in no number, or took too few steps."""
    if not math.isfinite(mean):
        raise TrainingError(
            f"training got a loss of {mean} within {steps} steps, expected a finite "
            "one; lower training.learning_rate or set training.max_grad_norm"
        )
    if taken < plan.fewest_steps:
        raise TrainingError(
            f"training took {taken} of {steps} steps, because float16 did not hold the "
            f"gradients, expected {plan.fewest_steps} or more; set training.amp = "
            '"bf16" or more training.steps'
        )


def seed_dropout(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which spends a millisecond on devices not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the network is."""
    if device.type == "cpu":
        return batch
    return Batch(
        image=batch.image.to(device, non_blocking=True),
        mask=batch.mask.to(device, non_blocking=True),
        label=batch.label.to(device, non_blocking=True),
    )


def correct(network: nn.Module, correction: Correction) -> None:
    """Add to the gradients what the federated algorithm asks for."""
    if not (correction.shift or correction.anchor):
        return
    parameters = list(network.parameters())
    used = [i for i, p in enumerate(parameters) if p.grad is not None]
    gradients = [grad for p in parameters if (grad := p.grad) is not None]
    if correction.shift:
        torch._foreach_add_(gradients, [correction.shift[i] for i in used])
    if correction.anchor:
        here = [parameters[i].detach() for i in used]
        apart = torch._foreach_sub(here, [correction.anchor[i] for i in used])
        torch._foreach_add_(gradients, apart, alpha=correction.mu)
