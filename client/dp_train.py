"""DP-SGD by the patient: the steps of one round whose result hides each patient.

A step (Abadi 2016, algorithm 1, with patients in place of examples): draw every patient
with the same chance; take the mean gradient over all patches of one patient; clip it as
one vector; add up; add Gaussian noise; divide by the expected number of patients; let
the optimiser step. A step that draws nobody still adds its noise.

Patients are worked on one after another, so memory holds the activations of one patient
however many are drawn. Sums are whole numbers on a grid, exact in any order, which is
what the noise's promise rests on (`client.secret_random`); a clip slightly below the
plan's makes room for rounding.

What the data decides never shows but through the noise: no loss is kept, and a patient
whose gradient is not finite adds nothing, in silence.

Not covered here: the price (`client.ledger`), whether a patient is one patient (two
ids are two patients here), and the time that a step takes, which grows with the number
of patients drawn.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int32
from torch import Tensor, nn

from client.patches import PatchSampler
from client.secret_random import PIECE, SecretStream
from client.train import Correction, Progress, Trained, correct, rate_at, to_device
from common.errors import PlanError, TrainingError
from common.inference import autocast
from common.plan import Plan
from common.task import Batch, Task

_MOST_BITS = 22
"""Finest grid: whole numbers of this size are rounded by adding `_TO_WHOLE`."""
_TO_WHOLE = 1.5 * 2.0**23
"""float32 numbers near it are whole, and their bits count up with them."""
_TO_WHOLE_BITS = 0x4B40_0000
"""The bits of `_TO_WHOLE`."""
_SUM_BITS = 30
"""Sums stay below 2^31, whoever is drawn."""
_ROW = 2048
"""Numbers whose squares are added in float32; rows are added in float64."""
_MANY = 1 << 15
"""A parameter of so many numbers is added by itself; joining it with others costs a
copy."""
_ROUNDING = 2.0**-12
"""Room in the clip for float32: rows of 2048 lose at most 2^-16 of a norm."""


@dataclass(frozen=True)
class PatientSampler:
    """Draws patients, and patches of those drawn."""

    patches: PatchSampler
    """Cuts the patches."""
    patients: Sequence[Sequence[int]]
    """Numbers of the cases of each patient."""
    rate: float
    """q: chance of each patient to be drawn for a step."""
    each: int
    """Patches of each patient that is drawn."""
    stream: SecretStream
    """Who is drawn is secret."""
    generator: np.random.Generator
    """Which of a patient's cases is cut."""

    def draw(self) -> list[Batch]:
        """The patches of every patient who is drawn for a step; maybe nobody's."""
        drawn = np.flatnonzero(self.stream.uniform(len(self.patients)) < self.rate)
        if not len(drawn):
            return []
        picked = [
            cases[int(self.generator.integers(len(cases)))]
            for cases in (self.patients[int(patient)] for patient in drawn)
            for _ in range(self.each)
        ]
        batch = self.patches.batch_of(picked)
        parts = (batch.image, batch.mask, batch.label)
        return [
            Batch(*some)
            for some in zip(*(part.split(self.each) for part in parts), strict=True)
        ]


@dataclass(frozen=True)
class Grid:
    """The whole numbers that clipped gradients are rounded to."""

    unit: float
    """Gradient per whole number."""
    clip: float
    """Norm to which gradients are clipped, so that they are within the plan's clip
    after rounding."""

    @classmethod
    def of(cls, clip_norm: float, parameters: int, patients: int) -> "Grid":
        """The finest grid on which the sum over all patients fits in 31 bits.

        Rounding moves a vector of P numbers by half a unit times the root of P.

        Raises:
            PlanError: That is more than half of the clip.
        """
        bits = min(_MOST_BITS, _SUM_BITS - math.ceil(math.log2(max(patients, 2))))
        unit = clip_norm / 2.0**bits
        moved = 0.5 * math.sqrt(parameters) * unit
        clip = clip_norm * (1.0 - _ROUNDING) - moved
        if clip < 0.5 * clip_norm:
            raise PlanError(
                f"a private step got {patients} patients and {parameters} parameters, "
                "expected few enough for sums in 31 bits; train a smaller model"
            )
        return cls(unit, clip)


def train_privately(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    sampler: PatientSampler,
    task: Task,
    plan: Plan,
    *,
    noise_multiplier: float,
    steps: int,
    first_step: int,
    total_steps: int,
    correction: Correction,
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Take private optimiser steps, in place; they have to be paid for already.

    Args:
        network: On `device`, without batch norm; left in training mode.
        optimizer: Over the network's parameters; what it keeps is made of noisy sums.
        sampler: Draws patients and patches.
        task: Gives the loss.
        plan: Gives rate, clip and precision.
        noise_multiplier: sigma, in clip norms.
        steps: Steps to take.
        first_step: Steps that this site was scheduled for before this round.
        total_steps: Steps of this site over all rounds: the length of the schedule.
        correction: Added to the noisy gradient; it knows nothing of the patients.
        device: Where batches are moved to.
        progress: Told after each step.

    Raises:
        TrainingError: The parameters became not finite.
    """
    dp = plan.privacy.dp
    assert dp is not None
    network.train()
    few, many = _by_size(network)
    numbers = [p.numel() for p in (*few, *many)]
    flat = torch.zeros(sum(numbers), device=device)
    grid = Grid.of(dp.clip_norm, len(flat), len(sampler.patients))
    total = torch.zeros(len(flat), dtype=torch.int32, device=device)
    totals = total.split([sum(numbers[: len(few)]), *numbers[len(few) :]])
    sigma = noise_multiplier * dp.clip_norm / grid.unit
    each = grid.unit / (sampler.rate * len(sampler.patients))
    rate_sum, started = 0.0, time.perf_counter()
    for done in range(steps):
        rate = rate_at(first_step + done, total_steps, plan.training)
        for group in optimizer.param_groups:
            group["lr"] = rate
        total.zero_()
        for batch in sampler.draw():
            optimizer.zero_grad(set_to_none=True)
            _backward(network, task, plan, to_device(batch, device))
            add_clipped(totals, _gradients(few, many), grid)
        blur(flat, total, sigma, each, sampler.stream)
        for parameter, piece in zip((*few, *many), flat.split(numbers), strict=True):
            parameter.grad = piece.view_as(parameter)
        correct(network, correction)
        optimizer.step()
        rate_sum += rate
        progress(done + 1, steps)
    _check_finite(network, steps)
    return Trained(None, rate_sum, time.perf_counter() - started, {})


def _backward(network: nn.Module, task: Task, plan: Plan, batch: Batch) -> None:
    """Add the gradient of one patient's mean loss to what the parameters hold."""
    with autocast(plan, batch.image.device):
        output = network(batch.image)
    task.loss(output.float(), batch).backward()


def _check_finite(network: nn.Module, steps: int) -> None:
    for parameter in network.parameters():
        parameter.grad = None
        most = torch.linalg.vector_norm(parameter.detach(), math.inf)
        if not math.isfinite(float(most)):
            raise TrainingError(
                f"training made the model not finite within {steps} noisy steps, "
                "expected finite parameters; lower training.learning_rate or the noise"
            )


def _by_size(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of few numbers, whose gradients are joined, and those of many."""
    parameters = list(network.parameters())
    few = [p for p in parameters if p.numel() < _MANY]
    return few, [p for p in parameters if p.numel() >= _MANY]


def _gradients(
    few: Sequence[nn.Parameter], many: Sequence[nn.Parameter]
) -> list[Float32[Tensor, " _"]]:
    """The gradient as vectors: all short ones as one, then each long one by itself."""
    found = [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
        for p in (*few, *many)
    ]
    short = found[: len(few)] or [found[0].new_zeros(0)]
    return [torch.cat(short), *found[len(few) :]]


def add_clipped(
    totals: Sequence[Int32[Tensor, " _"]],
    gradients: Sequence[Float32[Tensor, " _"]],
    grid: Grid,
) -> None:
    """Add one patient's clipped gradient to the sum; the gradient is used up.

    Its share of the sum has at most the plan's clip norm, and is nothing at all where
    the gradient is not finite.

    Args:
        totals: Parts of the sum, changed in place.
        gradients: The patient's gradient in the same parts; used up.
        grid: Of the sum.
    """
    norm = norm_of(gradients)
    if not math.isfinite(norm):
        return
    scale = min(1.0, grid.clip / max(norm, torch.finfo(torch.float32).tiny))
    whole = gradients[0].new_tensor(_TO_WHOLE)
    for total, gradient in zip(totals, gradients, strict=True):
        # Scaled and rounded in one pass; read as whole numbers and added in two more.
        torch.add(whole, gradient, alpha=scale / grid.unit, out=gradient)
        total.add_(gradient.view(torch.int32).sub_(_TO_WHOLE_BITS))


def norm_of(vectors: Sequence[Float32[Tensor, " _"]]) -> float:
    """Euclidean norm of all together; long sums are added in float64."""
    parts = []
    for vector in vectors:
        whole = len(vector) // _ROW * _ROW
        rows = torch.linalg.vector_norm(vector[:whole].view(-1, _ROW), dim=1)
        parts += [rows, torch.linalg.vector_norm(vector[whole:])[None]]
    return float(torch.linalg.vector_norm(torch.cat(parts).double()))


def blur(
    gradient: Float32[Tensor, " P"],
    total: Int32[Tensor, " P"],
    sigma: float,
    each: float,
    stream: SecretStream,
) -> None:
    """The noisy mean gradient, from the sum.

    Args:
        gradient: Is overwritten.
        total: Sum on the grid.
        sigma: Standard deviation of the noise, in units of the grid.
        each: Gradient per unit, over the expected number of patients.
        stream: Secret randomness.
    """
    for start in range(0, len(total), PIECE):
        piece = total[start : start + PIECE]
        noise = stream.normal(len(piece)).mul_(sigma).round_().to(total.device)
        gradient[start : start + PIECE] = noise.add_(piece.double()).mul_(each)
