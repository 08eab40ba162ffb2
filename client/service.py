"""One site's work behind a narrow interface: order in, answer out.

`SiteService` owns the data, the device and the memory between rounds, and stays warm.
It knows nothing of Flower: engines bring orders and take answers away. Every order is
checked against the plan that the site approved before anything is touched.

With DP each patient is clipped and blurred, and paid for before (`client.dp_site`).

Not covered here: masking (`client.masking`), and what may leave (`client.egress`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jaxtyping import Float32
from torch import nn

from client.corrections import check_control, correction_of, new_control
from client.dp_site import (
    check_run,
    epoch_length,
    packed,
    patients_of,
    pay,
    terms_of,
    train_by,
    unpacked,
)
from client.draws import plan_seed, training_seed
from client.intake.run import SiteData
from client.lineage import begins_anew, checked_memory, lineage_of
from client.order_log import check_unanswered
from client.patches import PatchSampler
from client.state import SiteState, load_state, save_state, states_of
from client.store import CaseStore
from client.train import (
    NOTHING,
    Correction,
    Progress,
    Trained,
    build_optimizer,
    seed_dropout,
    steps_per_round,
    train_round,
)
from common.accounting import Cost
from common.case import PreparedCase
from common.errors import ContributionError, StoreError
from common.exchange import (
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
from common.parameters import Layout, digest_of, layout_of, load_vector, to_vector
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
        identity: Ed25519PrivateKey | None = None,
    ) -> None:
        """Bind a site to its data.

        Args:
            name: Name of the site.
            folder: The site's folder; its memory goes below it.
            plan: The plan that this site approved.
            cases: One entry; several for the pooled baseline.
            device: Where to compute.
            identity: A hospital's key, from which its draws follow; see `client.draws`.
        """
        self.name = name
        self._identity = identity
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
        # A pooled site (rehearsals only) takes its members' steps, one after another.
        counts = [epoch_length(plan, c.data.train) for c in cases]
        self._steps = sum(steps_per_round(plan, count) for count in counts)
        patients = patients_of(self._train)
        self._terms = terms_of(plan, patients, self._steps, self._layout.size)

    def hello(self, order: Hello) -> Roster:
        """Introduce the site, after checking that both sides mean one model."""
        self._check(order)
        if order.layout_digest != self._layout.digest:
            raise ContributionError(
                f"site {self.name!r} got a model of another layout than its plan's; "
                "are both sides of one FedCT version?",
                code="layout",
            )
        if self._terms is not None:
            check_run(self._folder, order.run, self._terms)
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
        check_control(self._layout, self._plan.federation, order)
        if (again := self._answered(order)) is not None:
            return again
        if self._terms is not None:
            check_unanswered(self._folder, order)  # other noise would be another look
        state = self._state_for(order)
        self._memory = None  # the optimiser below shares tensors with `state`
        load_vector(self._network, self._layout, order.model)
        _load_local(self._network, state)
        optimizer = build_optimizer(self._network, self._plan.training)
        if state.optimizer is not None:
            optimizer.load_state_dict(state.optimizer)
        cost = None
        if self._terms is None:
            trained = self._train_openly(order, state, optimizer, progress)
        else:
            cost = pay(self._folder, order, self._terms)  # before any noise is drawn
            trained = self._train_privately(order, state, optimizer, progress)
        delta = to_vector(self._network, self._layout) - order.model
        control, control_delta = new_control(order, state, delta, trained.rate_sum)
        after = SiteState(
            optimizer=optimizer.state_dict()
            if self._plan.training.keep_optimizer_state
            else None,
            local=_local_of(self._network, self._layout),
            scaler=trained.scaler,
            control=control,
            answer={} if cost is None else packed(order, delta, control_delta, cost),
            lineage=lineage_of(order),
        )
        save_state(
            states_of(self._folder, order.run), order.round, after, order.state_round
        )
        self._memory = (order.run, order.round, after)
        return self._update(order, delta, control_delta, cost, trained)

    def _train_openly(
        self,
        order: TrainOrder,
        state: SiteState,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
    ) -> Trained:
        """Steps that can be repeated: what they draw follows as in `client.draws`."""
        seed = training_seed(self._plan, self.name, self._identity, order.round)
        sampler = PatchSampler(self._train, self._plan, np.random.default_rng(seed))
        with torch.random.fork_rng():
            seed_dropout(int(seed.generate_state(1)[0]), self._device)
            return train_round(
                self._network,
                optimizer,
                (sampler.batch() for _ in range(self._steps)),
                self._task,
                self._plan,
                steps=self._steps,
                first_step=(order.round - 1) * self._steps,
                total_steps=self._plan.federation.rounds * self._steps,
                correction=self._correction(order, state),
                scaler=state.scaler,
                device=self._device,
                progress=progress,
            )

    def _train_privately(
        self,
        order: TrainOrder,
        state: SiteState,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
    ) -> Trained:
        """Steps that nobody can foretell or repeat; they are paid for already."""
        assert self._terms is not None
        return train_by(
            self._terms,
            self._train,
            self._network,
            optimizer,
            self._task,
            self._plan,
            number=order.round,
            correction=self._correction(order, state),
            device=self._device,
            progress=progress,
        )

    def _answered(self, order: TrainOrder) -> Update | None:
        """DP: the answer to this very order, if it was given once and is still kept."""
        if self._terms is None:
            return None
        try:
            kept = self._recall(order.run, order.round).answer
        except StoreError:
            return None
        again = unpacked(kept, order, self._terms)
        return None if again is None else self._update(order, *again)

    def _update(
        self,
        order: TrainOrder,
        delta: Float32[np.ndarray, " P"],
        control_delta: Float32[np.ndarray, " P"] | None,
        cost: Cost | None,
        trained: Trained = NOTHING,
    ) -> Update:
        return Update(
            site=self.name,
            round=order.round,
            plan_digest=self._plan.digest,
            delta=delta,
            cases=len(self._train),
            loss=trained.loss,
            steps=self._steps,
            train_s=trained.seconds,
            accepted=self._accepted,
            found=self._found,
            control_delta=control_delta,
            epsilon_pld=None if cost is None else cost.pld,
            epsilon_prv=None if cost is None else cost.prv,
        )

    def judge(self, order: JudgeOrder) -> Judgement:
        """Measure the order's model on this site's held-out cases."""
        self._check(order)
        self._check_model(order)
        load_vector(self._network, self._layout, order.model)
        if self._layout.local:
            _load_local(self._network, self._recall(order.run, order.state_round))
        self._network.eval()
        sums: dict[str, np.ndarray] = {}
        for index, case in enumerate(self._held_out(order.part)):
            seed = plan_seed(self._plan, self.name, order.part, index)
            number = int(seed.generate_state(1)[0])
            judged = self._task.judge(self._network, case, number, self._device)
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
        if part not in get_args(Part):  # the order's word for it
            said = f"an order to judge names no part of {get_args(Part)}; not done"
            raise ContributionError(said, code="content")
        if part not in self._opened:
            self._opened[part] = [
                c.store.open(record)
                for c in self._cases
                for record in getattr(c.data, part)
            ]
        return self._opened[part]

    def _check(self, order: Order) -> None:
        states_of(self._folder, order.run)  # or it names no folder
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

    def _correction(self, order: TrainOrder, state: SiteState) -> Correction:
        federation = self._plan.federation
        return correction_of(self._network, self._layout, federation, order, state)

    def _state_for(self, order: TrainOrder) -> SiteState:
        if begins_anew(order) and not self._layout.local:
            return self._first  # a site that lost its state takes part again
        return checked_memory(self._recall(order.run, order.state_round), order)

    def _recall(self, run: str, number: int) -> SiteState:
        if number == 0:
            return self._first
        if self._memory is not None and self._memory[:2] == (run, number):
            return self._memory[2]
        return load_state(states_of(self._folder, run), number)


def _local_of(network: nn.Module, layout: Layout) -> dict[str, torch.Tensor]:
    """FedBN: a copy of what stays at the site."""
    state = network.state_dict()
    return {name: state[name].detach().cpu().clone() for name in layout.local}


def _load_local(network: nn.Module, state: SiteState) -> None:
    """FedBN: put the site's own norm layers back."""
    network.load_state_dict(state.local, strict=False)
