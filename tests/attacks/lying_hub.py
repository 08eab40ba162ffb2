"""A hub that says to real hospitals what it likes, round after round, under masks.

The hospitals are whole: policy, gate, audit log, training on pictures (`serve_order`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import Message

from client.app import serve_order
from client.policy import Policy
from client.site import SIGN_KEY
from common.exchange import (
    Answer,
    Hello,
    KeysOrder,
    MaskedUpdate,
    Opening,
    OpenOrder,
    Order,
    Roster,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
)
from common.keys import read_signing_key
from common.parameters import digest_of
from common.plan import Plan
from common.plan_file import plan_toml
from common.secagg.fixed_point import OpenedSum, decode
from common.secagg.keys import KeySet, key_set
from common.secagg.lineage import FRESH
from common.secagg.rounds import open_sum
from common.secagg.terms import masked_weight, terms_of
from common.signing import public_text
from common.wire import from_record, to_record
from deploy.engine import InProcessGrid
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from server.federation import first_model, plan_layout
from tests.client.conftest import write_hospital

A = TypeVar("A", bound=Answer)


class SaidNoError(Exception):
    """A hospital answered with a number."""


def ask(folder: Path, order: Order, kind: type[A]) -> A:
    """What a hospital answers.

    Raises:
        SaidNoError: It refuses.
    """
    kind_of = "train" if isinstance(order, TrainOrder) else "query"
    message = Message(to_record(order), 2, kind_of)
    message.metadata.__dict__["_message_id"] = "m"
    reply = serve_order(folder, message)[0]
    if reply.has_error():
        raise SaidNoError(reply.error.code)
    return from_record(reply.content, kind)


@dataclass
class MaskedRound:
    """A round after its set-up: keys, and who gets which sealed shares."""

    keys: KeySet
    sealed: dict[str, dict[str, bytes]]


@dataclass
class LyingHub:
    """All of the plan's hospitals, and what the hub knows of them."""

    root: Path
    plan: Plan
    names: Sequence[str]
    folders: dict[str, Path] = field(default_factory=dict)
    train: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Found the hospitals, each with pictures of its own, and call the roll."""
        InProcessGrid([])  # Flower wants a task identity before it makes messages
        rule = Policy(approve="auto", min_sites=len(self.names) - 1)
        for number, name in enumerate(self.names):
            pictures = self.root / "pictures" / name
            write_images(pictures, hospitals=HOSPITALS[:1], patients=5, seed=number)
            self.folders[name] = write_hospital(self.root / name, rule, pictures)
        layout = plan_layout(self.plan).digest
        text = plan_toml(self.plan, with_simulation=False)
        hello = "run", self.plan.digest, text, layout, self.keys
        for name, folder in self.folders.items():
            self.train[name] = ask(folder, Hello(*hello), Roster).train

    @property
    def keys(self) -> dict[str, str]:
        """Site to verifying key."""
        private = {n: read_signing_key(f / SIGN_KEY) for n, f in self.folders.items()}
        return {name: public_text(key.public_key()) for name, key in private.items()}

    def set_up(self, number: int, names: Sequence[str]) -> MaskedRound:
        """Have a round set up among some of the hospitals."""
        members = {name: self.keys[name] for name in names}
        weights = [masked_weight(self.plan.federation, self.train[n]) for n in names]
        size, head = first_model(self.plan)[1].size, ("run", self.plan.digest)
        given = members, max(weights), size, len(names)
        terms = terms_of(self.plan.privacy, "run", number, self.plan.digest, *given)
        packed = {
            n: ask(self.folders[n], KeysOrder(*head, number, *given), RoundKeys).keys
            for n in names
        }
        sealed = {
            n: ask(
                self.folders[n], SharesOrder(*head, number, packed), SealedShares
            ).sealed
            for n in names
        }
        delivered = {r: {s: sealed[s][r] for s in names if s != r} for r in names}
        return MaskedRound(key_set(terms, packed), delivered)

    def order(
        self,
        one: MaskedRound,
        name: str,
        model: np.ndarray,
        since: int,
        lineage: str = FRESH,
    ) -> TrainOrder:
        """An order to train, with any model and state that the hub likes."""
        number, sealed = one.keys.terms.round, one.sealed[name]
        given = "run", self.plan.digest, number, since, model, digest_of(model)
        return TrainOrder(*given, sealed=sealed, lineage=lineage)

    def masked(self, name: str, order: TrainOrder) -> np.ndarray:
        """What a hospital hands in."""
        return ask(self.folders[name], order, MaskedUpdate).masked

    def opened(self, one: MaskedRound, total: np.ndarray, lineage: str) -> OpenedSum:
        """The sum of all who were set up."""
        sites = one.keys.sites
        order = "run", self.plan.digest, one.keys.terms.round, sites
        shares = {
            n: ask(self.folders[n], OpenOrder(*order), Opening).shares for n in sites
        }
        open_sum(one.keys, lineage, sites, shares, total)
        return decode(one.keys.terms, total, len(sites))
