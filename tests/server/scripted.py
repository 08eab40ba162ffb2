"""A grid of scripted sites: real messages, no training, any misbehaviour."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common.exchange import (
    Answer,
    Hello,
    Judgement,
    JudgeOrder,
    Order,
    Roster,
    TrainOrder,
    Update,
)
from common.metrics.overlap import COUNT
from common.plan import Plan
from common.signing import asked_of, public_text, seal
from common.task import Sums
from common.wire import from_record, to_record
from server.federation import Arm

Twist = Callable[[Update], Update | Error | None]
"""What a site does to its honest update; None: it never answers."""


def honest(site: str, cases: int, order: TrainOrder) -> Update:
    """A pure function of site, round and model, so that any run can be repeated."""
    text = f"{site}/{order.round}/{order.state_round}"
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    noise = np.random.default_rng(seed).normal(size=order.model.size)
    delta = (0.1 * noise - 0.05 * order.model).astype(np.float32)
    control = None if order.control is None else (delta * 0.5).astype(np.float32)
    return Update(
        site=site,
        round=order.round,
        plan_digest=order.plan_digest,
        delta=delta,
        cases=cases,
        loss=1.0 / order.round,
        steps=2,
        train_s=0.0,
        accepted=cases,
        found=cases + 1,
        control_delta=control,
    )


class ScriptedGrid(Grid):
    """Sites that answer at once, as scripted per (site, round)."""

    def __init__(
        self,
        cases: Mapping[str, int],
        twists: Mapping[tuple[str, int], Twist] | None = None,
        scores: Mapping[int, float] | None = None,
        sums: Mapping[str, Sums] | None = None,
    ) -> None:
        self.cases = dict(cases)
        self.twists = dict(twists or {})
        self.scores = scores or {}
        self.sums = sums or {}
        self.orders: list[tuple[str, TrainOrder]] = []
        self.alive = 0
        self.most_alive = 0
        self._replies: dict[str, Message] = {}
        self._sent: dict[str, Message] = {}
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: Run) -> None:
        raise AssertionError("not used")

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise AssertionError("not used")

    def get_node_ids(self) -> Iterable[int]:
        return range(2, 2 + len(self.cases))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message_id = f"m{len(self._sent)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._sent[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for message_id in message_ids:
            answer = self._answer(self._sent[message_id])
            if isinstance(answer, Error) or answer is not None:
                yield Message(answer, reply_to=self._sent[message_id])

    def send_and_receive(self, messages, *, timeout=None):
        raise AssertionError("not used")

    def _answer(self, message: Message) -> RecordDict | Error | None:
        site = list(self.cases)[message.metadata.dst_node_id - 2]
        cases = self.cases[site]
        kind = message.metadata.message_type
        if kind == "query":
            order = from_record(message.content, Hello)
            key = public_text(signing_key(site).public_key())
            roster = Roster(site, cases, 1, 1, cases, cases + 1, key)
            return sealed(roster, order, site)
        if kind == "evaluate":
            order = from_record(message.content, JudgeOrder)
            score = self.scores.get(order.round, 0.5)
            sums = {"dice": np.array([score]), "dice" + COUNT: np.ones(1)}
            told = self.sums.get(site, sums)
            judged = Judgement(site, order.round, order.part, told)
            return sealed(judged, order, site)
        order = from_record(message.content, TrainOrder)
        self.orders.append((site, replace(order, model=order.model.copy())))
        update = honest(site, cases, order)
        twisted = self.twists.get((site, order.round), lambda u: u)(update)
        return sealed(twisted, order, site) if isinstance(twisted, Update) else twisted


def signing_key(site: str) -> Ed25519PrivateKey:
    """A scripted site's key, the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(site.encode()).digest())


def sealed(answer: Answer, order: Order, site: str) -> RecordDict:
    """The answer as the site's app sends it."""
    return to_record(answer, seal(answer, asked_of(order, site), signing_key(site)))


def arm_of(plan: Plan, folder: Path, sites: Iterable[str]) -> Arm:
    """The federated arm over these sites."""
    names = tuple(sorted(sites))
    return Arm("federated", plan, names, names, names, folder, "run")
