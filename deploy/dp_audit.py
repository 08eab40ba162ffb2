"""What the DP of this installation really hides: one run of its own step on canaries.

Each canary is a patient whose gradient is a number of its own, as large as the clip
lets through. Half of them, by coin toss, are trained on by the very function that sites
train with (`client.dp_train.train_privately`), at a site's chance to be drawn, noise
and number of steps. What comes out tells how sure somebody can be of each coin
(`common.one_run`).

The same with a tenth of the noise shows that the audit would find such a mistake: its
bound has to be above the claim. A thousand canaries can show 4.6 at the most; with a
larger claim this arm proves nothing, and the record says so.

Not covered here: what happens around that step, like a patient under two ids, or
something else in a message that tells of the patients.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn

from client.dp_train import PatientSampler, train_privately
from client.secret_random import SecretStream
from client.train import Correction
from common.accounting import NoisySteps, cost_of
from common.one_run import epsilon_at_least, guesses_right
from common.plan_file import parse_plan
from common.task import Batch
from deploy.progress import tell_work

CANARIES = 1000
GUESSED = 300
"""How many of a thousand coins are guessed; settled beforehand."""
BUG = 10.0
"""The planted bug divides the noise by this."""
_LOUD = 1e3
"""Gradient of a canary before the clip."""
_PLAN = """
[plan]
name = "audit"
[task]
kind = "segmentation"
classes = {{ canary = ["canary"] }}
[model]
name = "LinearProbe"
dimensions = 2
[training]
steps = {steps}
batch_size = 1
patch = [8, 8]
optimizer = "sgd"
momentum = 0.0
weight_decay = 0.0
learning_rate = 1.0
schedule = "constant"
[federation]
rounds = 1
[privacy.dp]
noise_multiplier = 1.0  # what is trained with is said below
"""


@dataclass(frozen=True)
class Audited:
    """What came out."""

    claimed: float
    """Epsilon by accounting, the larger of two accountants."""
    bound: float
    """Epsilon is at least this."""
    bound_with_bug: float
    """The same with a tenth of the noise."""
    canaries: int
    """How many coins."""


def audit_dp(steps: NoisySteps, delta: float) -> Audited:
    """Audit what a site claims.

    Args:
        steps: Chance to be drawn, noise and number of steps.
        delta: Of the claim.
    """

    def bound(noise: float) -> float:
        coins = np.random.default_rng(0).random(CANARIES) < 0.5
        scores = canary_scores(coins, steps.rate, noise, steps.steps)
        right = guesses_right(scores, coins, GUESSED)
        return epsilon_at_least(CANARIES, GUESSED, right, delta)

    return Audited(
        claimed=cost_of([steps], delta).epsilon,
        bound=bound(steps.noise_multiplier),
        bound_with_bug=bound(steps.noise_multiplier / BUG),
        canaries=CANARIES,
    )


def canary_scores(
    inside: Bool[np.ndarray, " M"], rate: float, noise_multiplier: float, steps: int
) -> Float64[np.ndarray, " M"]:
    """Train on the canaries inside; how much of each shows in the model."""
    plan = parse_plan(_PLAN.format(steps=steps))
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(inside), 1, bias=False))
    weights = next(network.parameters())
    nn.init.zeros_(weights)
    stream = SecretStream()
    sampler = PatientSampler(
        _Patches(len(inside)),  # type: ignore[arg-type]
        [(int(number),) for number in np.flatnonzero(inside)],
        rate,
        1,
        stream,
        stream.generator(),
    )
    train_privately(
        network,
        torch.optim.SGD(network.parameters(), lr=1.0),
        sampler,
        _Task(),  # type: ignore[arg-type]
        plan,
        noise_multiplier=noise_multiplier,
        steps=steps,
        first_step=0,
        total_steps=steps,
        correction=Correction(),
        device=torch.device("cpu"),
        progress=partial(tell_work, "canaries, step"),
    )
    return -weights.detach()[0].double().numpy()


class _Patches:
    """Cuts a canary: a picture with one bright point of its own."""

    def __init__(self, canaries: int) -> None:
        self._canaries = canaries

    def batch_of(self, picked: list[int]) -> Batch:
        """One canary each."""
        image = torch.zeros(len(picked), 1, 1, self._canaries)
        image[torch.arange(len(picked)), 0, 0, torch.tensor(picked)] = 1.0
        mask = torch.zeros(len(picked), 1, self._canaries, dtype=torch.int64)
        return Batch(image, mask, torch.zeros(len(picked), dtype=torch.int64))


class _Task:
    """The loss whose gradient is the canary."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Far above the clip."""
        return _LOUD * output.sum()
