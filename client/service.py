"""One site's work behind a narrow interface: order in, answer out.

`SiteService` owns the data, the device and the memory between rounds, and stays warm.
It knows nothing of Flower: engines bring orders and take answers away. Every order is
checked against the plan that the site approved before anything is touched.

Not covered here: clipping, noise and masking. In this version the update leaves in the
clear.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from client.intake.run import SiteData
from client.patches import PatchSampler
from client.state import SiteState, load_state, save_state
from client.store import CaseStore
from client.train import (
    Correction,
    Progress,
    build_optimizer,
    steps_per_round,
    train_round,
)
from common.case import PreparedCase
from common.errors import ContributionError
from common.exchange import (
    RUN_ID,
    Hello,
    Judgement,
    JudgeOrder,
    Order,
    Part,
    Roster,
    TrainOrder,
    Update,
)
from common.networks import build_network
from common.parameters import (
    Layout,
    digest_of,
    layout_of,
    load_vector,
    parts_of,
    to_vector,
)
from common.plan import Plan
from common.task import add_sums
from common.tasks.catalog import task_of


@dataclass(frozen=True)
class SiteCases:
    """The cases of one store, as one site of a federation uses them."""

    store: CaseStore
    """Where they are kept."""
    data: SiteData
    """What intake made of the source: the split and N of M."""


class SiteService:
    """A site that trains and judges on order. One thread at a time."""

    def __init__(
        self,
        name: str,
        folder: Path,
        plan: Plan,
        cases: tuple[SiteCases, ...],
        device: torch.device,
    ) -> None:
        """Bind a site to its data.

        Args:
            name: Name of the site; part of every random seed.
            folder: The site's folder; its memory goes below it.
            plan: The plan that this site approved.
            cases: One entry; several for the pooled baseline.
            device: Where to compute.
        """
        self.name = name
        self._folder = folder
        self._plan = plan
        self._cases = cases
        self._device = device
        self._task = task_of(plan)
        network = build_network(plan, self._task.out_channels, plan.plan.seed)
        self._network: nn.Module = network.to(device)
        self._layout: Layout = layout_of(
            network, keep_norms_local=plan.federation.algorithm == "fedbn"
        )
        # Norm layers too begin anew in each run, whatever was trained here before.
        self._first = SiteState(local=_local_of(network, self._layout))
        self._memory: tuple[str, int, SiteState] | None = None
        self._opened: dict[Part, list[PreparedCase]] = {}
        self._train = [c.store.open(record) for c in cases for record in c.data.train]

    def hello(self, order: Hello) -> Roster:
        """Introduce the site, after checking that both sides mean one model."""
        self._check(order)
        if order.layout_digest != self._layout.digest:
            raise ContributionError(
                f"site {self.name!r} got a model of another layout than its plan's; "
                "are both sides of one FedCT version?",
                code="layout",
            )
        return Roster(
            site=self.name,
            train=len(self._train),
            validation=sum(len(c.data.validation) for c in self._cases),
            test=sum(len(c.data.test) for c in self._cases),
            accepted=self._accepted,
            found=self._found,
        )

    def train(self, order: TrainOrder, progress: Progress) -> Update:
        """Train one round from the order's model; remember the state after it."""
        self._check(order)
        self._check_model(order)
        plan, network = self._plan, self._network
        # A pooled site (rehearsals only) takes its members' steps, one after another.
        steps = sum(
            steps_per_round(plan.training, len(c.data.train)) for c in self._cases
        )
        state = self._recall(order.run, order.state_round)
        self._memory = None  # the optimiser below shares tensors with `state`
        load_vector(network, self._layout, order.model)
        _load_local(network, state)
        optimizer = build_optimizer(network, plan.training)
        if state.optimizer is not None:
            optimizer.load_state_dict(state.optimizer)
        seed = self._seed("train", order.round)
        sampler = PatchSampler(self._train, plan, np.random.default_rng(seed))
        with torch.random.fork_rng():
            _seed_dropout(int(seed.generate_state(1)[0]), self._device)
            trained = train_round(
                network,
                optimizer,
                (sampler.batch() for _ in range(steps)),
                self._task,
                plan,
                steps=steps,
                first_step=(order.round - 1) * steps,
                total_steps=plan.federation.rounds * steps,
                correction=self._correction(order, state),
                scaler=state.scaler,
                device=self._device,
                progress=progress,
            )
        delta = to_vector(network, self._layout) - order.model
        control, control_delta = _new_control(order, state, delta, trained.rate_sum)
        after = SiteState(
            optimizer=optimizer.state_dict()
            if plan.training.keep_optimizer_state
            else None,
            local=_local_of(network, self._layout),
            scaler=trained.scaler,
            control=control,
        )
        save_state(self._state_folder(order.run), order.round, after, order.state_round)
        self._memory = (order.run, order.round, after)
        return Update(
            site=self.name,
            round=order.round,
            plan_digest=plan.digest,
            delta=delta,
            cases=len(self._train),
            loss=trained.loss,
            steps=steps,
            train_s=trained.seconds,
            accepted=self._accepted,
            found=self._found,
            control_delta=control_delta,
        )

    def judge(self, order: JudgeOrder) -> Judgement:
        """Measure the order's model on this site's held-out cases."""
        self._check(order)
        self._check_model(order)
        load_vector(self._network, self._layout, order.model)
        _load_local(self._network, self._recall(order.run, order.state_round))
        self._network.eval()
        sums: dict[str, np.ndarray] = {}
        for index, case in enumerate(self._held_out(order.part)):
            seed = int(self._seed(order.part, index).generate_state(1)[0])
            judged = self._task.judge(self._network, case, seed, self._device)
            sums = add_sums(sums, judged)
        return Judgement(self.name, order.round, order.part, sums)

    @property
    def _accepted(self) -> int:
        return sum(c.data.count.accepted for c in self._cases)

    @property
    def _found(self) -> int:
        return sum(c.data.count.found for c in self._cases)

    def _held_out(self, part: Part) -> list[PreparedCase]:
        """Cases of a part; memory maps, opened when first asked for."""
        if part not in self._opened:
            self._opened[part] = [
                c.store.open(record)
                for c in self._cases
                for record in (
                    c.data.validation if part == "validation" else c.data.test
                )
            ]
        return self._opened[part]

    def _check(self, order: Order) -> None:
        if not RUN_ID.fullmatch(order.run):  # it names a folder of ours
            raise ContributionError(
                f"site {self.name!r} got an order of a run whose id is no plain name, "
                "expected up to 64 letters, digits, dots, hyphens and underscores",
                code="run",
            )
        if order.plan_digest != self._plan.digest:
            raise ContributionError(
                f"site {self.name!r} got an order for plan {order.plan_digest[:12]}, "
                f"approved is {self._plan.digest[:12]}; nothing was done",
                code="plan",
            )

    def _check_model(self, order: TrainOrder | JudgeOrder) -> None:
        if digest_of(order.model) != order.model_digest:
            raise ContributionError(
                f"site {self.name!r} got a model that is not the one announced for "
                f"round {order.round}; nothing was done",
                code="model",
            )

    def _seed(self, purpose: str, number: int) -> np.random.SeedSequence:
        """A seed that depends on plan, site, purpose and number, and nothing else."""
        text = f"{self._plan.plan.seed}/{self.name}/{purpose}/{number}"
        return np.random.SeedSequence(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:16])
        )

    def _state_folder(self, run: str) -> Path:
        return self._folder / "state" / run

    def _recall(self, run: str, number: int) -> SiteState:
        if number == 0:
            return self._first
        if self._memory is not None and self._memory[:2] == (run, number):
            return self._memory[2]
        return load_state(self._state_folder(run), number)

    def _correction(self, order: TrainOrder, state: SiteState) -> Correction:
        federation = self._plan.federation
        if federation.algorithm == "fedprox":
            anchor = tuple(p.detach().clone() for p in self._network.parameters())
            return Correction(anchor=anchor, mu=federation.proximal_mu)
        if order.control is None:
            return Correction()
        shift = order.control.copy()
        if state.control is not None:
            shift -= state.control.numpy()
        return Correction(shift=self._like_parameters(shift))

    def _like_parameters(
        self, vector: Float32[np.ndarray, " P"]
    ) -> tuple[torch.Tensor, ...]:
        """The parts of a vector that are parameters, in the order of parameters()."""
        parts = dict(parts_of(vector, self._layout))
        return tuple(
            torch.from_numpy(parts[name].copy()).to(self._device)
            for name, _ in self._network.named_parameters()
        )


def _seed_dropout(seed: int, device: torch.device) -> None:
    """As `torch.manual_seed`, which spends a millisecond on devices not in use."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _local_of(network: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """FedBN: a copy of what stays at the site."""
    state = network.state_dict()
    return {name: state[name].detach().cpu().clone() for name in layout.local}


def _load_local(network: nn.Module, state: SiteState) -> None:
    """FedBN: put the site's own norm layers back."""
    if state.local:
        network.load_state_dict(state.local, strict=False)


def _new_control(
    order: TrainOrder,
    state: SiteState,
    delta: Float32[np.ndarray, " P"],
    rate_sum: float,
) -> tuple[torch.Tensor | None, Float32[np.ndarray, " P"] | None]:
    """SCAFFOLD's option II: c_i' = c_i - c + (x - y) / sum of rates."""
    if order.control is None:
        return None, None
    change = -order.control - delta / np.float32(rate_sum)
    old = np.zeros_like(change) if state.control is None else state.control.numpy()
    return torch.from_numpy(old + change), change
