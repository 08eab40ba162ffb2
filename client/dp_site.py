"""What DP means at one site: how often a patient is drawn, under what noise, the price.

The plan says what is common to all; the rest follows from the number of this site's
training patients, which counts as public here, as the number of cases does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from client.dp_train import Grid, PatientSampler, train_privately
from client.ledger import (
    Budget,
    Line,
    Spending,
    check_affordable,
    read_ledger,
    spend,
    steps_of,
)
from client.patches import PatchSampler
from client.secret_random import SecretStream
from client.site_file import is_hospital, read_site_file
from client.store import CaseRecord
from client.train import Correction, Progress, Trained, seed_dropout
from common.accounting import Cost, cost_of, noise_for
from common.case import PreparedCase
from common.errors import PlanError
from common.exchange import TrainOrder
from common.parameters import digest_of
from common.plan import Plan
from common.task import Task


@dataclass(frozen=True)
class Terms:
    """How this site trains by one plan."""

    plan: str
    """Digest of the plan."""
    patients: tuple[tuple[int, ...], ...]
    """Numbers of the training cases of each patient."""
    rate: float
    """q: chance of each patient to be drawn for a step."""
    noise_multiplier: float
    """sigma: standard deviation of the noise, in clip norms."""
    steps: int
    """Steps of a round."""
    rounds: int
    """Rounds of a run, at the most."""
    delta: float
    """The plan's."""

    def spending(self, run: str, number: int) -> Spending:
        """What a round costs, as the ledger writes it."""
        return Spending(
            run=run,
            plan=self.plan,
            round=number,
            rate=self.rate,
            noise_multiplier=self.noise_multiplier,
            steps=self.steps,
            patients=len(self.patients),
        )


def patients_of(cases: Sequence[PreparedCase]) -> tuple[tuple[int, ...], ...]:
    """The cases' numbers, by patient, in an order that depends on the pseudonyms."""
    groups: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        groups.setdefault(case.patient_id, []).append(number)
    return tuple(tuple(groups[patient]) for patient in sorted(groups))


def epoch_length(plan: Plan, cases: Sequence[CaseRecord]) -> int:
    """How many draws make an epoch: of cases, or under DP of patients."""
    if plan.privacy.dp is None:
        return len(cases)
    return len({case.patient_id for case in cases})


def terms_of(
    plan: Plan,
    patients: tuple[tuple[int, ...], ...],
    steps: int,
    parameters: int,
) -> Terms | None:
    """How a site with these patients trains by a plan; none if it is not private.

    Args:
        plan: The plan.
        patients: As `patients_of` gives them; nobody at a site that only judges.
        steps: Steps of a round.
        parameters: Of the network.

    Raises:
        PlanError: So many patients need a smaller delta or a smaller network, or no
            noise keeps epsilon.
    """
    dp = plan.privacy.dp
    if dp is None or not patients:
        return None
    if dp.delta * len(patients) >= 1.0:
        raise PlanError(
            f"plan's privacy.dp.delta {dp.delta:g} is no promise at a site with "
            f"{len(patients)} training patients, expected less than one over their "
            "number; choose a smaller one"
        )
    Grid.of(dp.clip_norm, parameters, len(patients))  # or there is none that fits
    rate = min(1.0, plan.training.batch_size / len(patients))
    rounds = plan.federation.rounds
    multiplier = dp.noise_multiplier
    if multiplier is None:
        assert dp.epsilon is not None  # the plan has one of the two
        multiplier = noise_for(dp.epsilon, dp.delta, rate, rounds * steps)
    return Terms(plan.digest, patients, rate, multiplier, steps, rounds, dp.delta)


def check_run(folder: Path, run: str, terms: Terms) -> None:
    """Refuse a run whose remaining rounds the hospital's budget can't afford.

    Raises:
        PolicyError: It can't; `code` is "budget".
        StoreError: The ledger was altered; `code` is "ledger".
    """
    known = read_ledger(folder)
    done = {line.round for line in known if line.run == run}
    left = terms.rounds - len([n for n in done if n <= terms.rounds])
    rest = terms.spending(run, 1).model_copy(update={"steps": left * terms.steps})
    check_affordable(known, [rest] if left > 0 else [], budget_of(folder))


def pay(folder: Path, order: TrainOrder, terms: Terms) -> Cost:
    """Pay for a round; its noise may be drawn once this has returned.

    Returns:
        What the run has cost so far, at the plan's delta, each epsilon rounded up to
        a tenth: more would tell the exact number of patients.

    Raises:
        PolicyError: It costs more than is left; `code` is "budget".
        StoreError: The ledger was altered, or can't be written; `code` is "ledger".
    """
    spending = terms.spending(order.run, order.round)
    lines = spend(folder, spending, budget_of(folder))
    return cost_of_run(lines, order.run, terms.delta)


def train_by(
    terms: Terms,
    cases: Sequence[PreparedCase],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    plan: Plan,
    *,
    number: int,
    correction: Correction,
    device: torch.device,
    progress: Progress,
) -> Trained:
    """Train round `number`, under randomness that nobody can foretell or repeat.

    It has to be paid for already. Other arguments as in `train_privately`.
    """
    assert plan.privacy.dp is not None
    stream = SecretStream()
    generator = stream.generator()
    sampler = PatientSampler(
        PatchSampler(cases, plan, generator),
        terms.patients,
        terms.rate,
        plan.privacy.dp.patches_per_patient,
        stream,
        generator,
    )
    with torch.random.fork_rng():
        seed_dropout(int(stream.words(1)[0] >> np.uint64(1)), device)
        return train_privately(
            network,
            optimizer,
            sampler,
            task,
            plan,
            noise_multiplier=terms.noise_multiplier,
            steps=terms.steps,
            first_step=(number - 1) * terms.steps,
            total_steps=terms.rounds * terms.steps,
            correction=correction,
            device=device,
            progress=progress,
        )


def cost_of_run(lines: Sequence[Line], run: str, delta: float) -> Cost:
    """What one run has cost, each epsilon rounded up to a tenth."""
    cost = cost_of((steps_of(line) for line in lines if line.run == run), delta)
    return Cost(_tenths(cost.pld), _tenths(cost.prv), delta)


def budget_of(folder: Path) -> Budget:
    """The hospital's budget; a rehearsal's folder has none."""
    if not is_hospital(folder):
        return Budget()
    policy = read_site_file(folder).policy
    return Budget(policy.dp_epsilon, policy.dp_delta)


def answer_key(order: TrainOrder) -> str:
    """All that an answer depends on: only the same order gets it again."""
    control = "" if order.control is None else digest_of(order.control)
    memory = f"{order.state_round}/{order.lineage}"
    return f"{order.round}/{memory}/{order.model_digest}/{control}"


def packed(
    order: TrainOrder,
    delta: Float32[np.ndarray, " P"],
    control_delta: Float32[np.ndarray, " P"] | None,
    cost: Cost,
) -> dict[str, object]:
    """An answer for the site's memory, in case the order comes again.

    To train anew would draw new noise and cost again; the very same numbers cost
    nothing.
    """
    return {
        "key": answer_key(order),
        "delta": torch.from_numpy(delta),
        "control_delta": None
        if control_delta is None
        else torch.from_numpy(control_delta),
        "pld": cost.pld,
        "prv": cost.prv,
    }


def unpacked(
    kept: Mapping[str, Any], order: TrainOrder, terms: Terms
) -> tuple[np.ndarray, np.ndarray | None, Cost] | None:
    """Delta, control delta and cost of an answer to this very order; else nothing."""
    if kept.get("key") != answer_key(order):
        return None
    control = kept["control_delta"]
    cost = Cost(kept["pld"], kept["prv"], terms.delta)
    return kept["delta"].numpy(), None if control is None else control.numpy(), cost


def _tenths(epsilon: float) -> float:
    return math.ceil(10.0 * epsilon - 1e-9) / 10.0
