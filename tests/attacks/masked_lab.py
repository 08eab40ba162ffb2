"""A server that attacks a masked round: it has all that passes it, and tells any lie.

The sites are those of the product (`client.masking.SiteMasks`); what they train is made
up. A control is a site with one of its checks taken out.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.masking import SiteMasks
from common.errors import ContributionError
from common.exchange import KeysOrder, OpenOrder, SharesOrder, TrainOrder, Update
from common.parameters import digest_of
from common.plan import Plan
from common.secagg.fixed_point import decode
from common.secagg.keys import KeySet, key_set, pair_key, self_key
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.masks import apply_masks
from common.secagg.shamir import join, lagrange
from common.secagg.terms import terms_of
from common.signing import public_text
from tests.plans import plan

MODEL = np.zeros(64, np.float32)


def plan_of(**privacy) -> Plan:
    """A plan under masks."""
    changes = {f"privacy__{name}": value for name, value in privacy.items()}
    return plan(privacy__secure_aggregation="on", **changes)


def identity_of(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def update_of(site: str, size: int = MODEL.size, trial: int = 0) -> np.ndarray:
    """What a site learnt: what the server is after."""
    seed = int.from_bytes(hashlib.sha256(f"{site}/{trial}".encode()).digest()[:8])
    return np.random.default_rng(seed).normal(0, 0.1, size).astype(np.float32)


@dataclass
class Lab:
    """One federation under attack."""

    folder: Path
    plan: Plan
    names: list[str]
    site_class: type[SiteMasks] = SiteMasks
    size: int = MODEL.size
    trial: int = 0
    slots: int = 0
    sites: dict[str, SiteMasks] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.names:
            home = self.folder / name
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.sites[name] = self.site_class(home, name, identity_of(name))

    @property
    def roster(self) -> dict[str, str]:
        return {n: public_text(identity_of(n).public_key()) for n in self.names}

    def keys_order(self, number=1, members=None) -> KeysOrder:
        members = members or self.roster
        digest, slots = self.plan.digest, self.slots or len(members)
        return KeysOrder("run", digest, number, members, 10, self.size, slots)

    def terms(self, number=1, members=None):
        members = members or self.roster
        privacy, digest = self.plan.privacy, self.plan.digest
        slots = self.slots or len(members)
        return terms_of(privacy, "run", number, digest, members, 10, self.size, slots)

    def announced(self, number=1) -> dict[str, bytes]:
        order = self.keys_order(number)
        return {
            name: site.keys(order, self.plan, 1).keys
            for name, site in self.sites.items()
        }

    def shared(self, packed, number=1) -> dict[str, dict[str, bytes]]:
        """Sender to receiver to sealed share."""
        order = SharesOrder("run", self.plan.digest, number, packed)
        return {n: dict(s.shares(order).sealed) for n, s in self.sites.items()}

    def set_up(self, number=1) -> tuple[KeySet, dict[str, dict[str, bytes]]]:
        packed = self.announced(number)
        return key_set(self.terms(number), packed), self.shared(packed, number)

    def masked(self, name, sealed, number=1, model=MODEL) -> np.ndarray:
        """What a site hands in."""
        model = np.resize(model, self.size)
        digest = digest_of(model)
        mine = {s: sealed[s][name] for s in self.names if s != name}
        order = TrainOrder(
            "run", self.plan.digest, number, 0, model, digest, sealed=mine
        )
        site = self.sites[name]
        if (known := site.answered(order)) is not None:
            return known.masked
        delta = update_of(name, self.size, self.trial)
        update = Update(name, number, self.plan.digest, delta, 10, 0.1, 1, 0.1, 10, 10)
        return site.mask(order, update, self.plan).masked

    def all_masked(self, sealed, number=1, names=None) -> dict[str, np.ndarray]:
        return {n: self.masked(n, sealed, number) for n in names or self.names}

    def open(self, name, survivors, number=1, agreed=None):
        """A site's answer to an order to open; none if it refuses."""
        order = OpenOrder(
            "run", self.plan.digest, number, tuple(survivors), agreed or {}
        )
        try:
            return self.sites[name].open(order, 1)
        except ContributionError:
            return None

    def released(self, survivors, number=1, names=None) -> dict[str, dict[str, bytes]]:
        """Shares of the sites asked, after they were shown each other's signatures."""
        asked = names or survivors
        said = {n: self.open(n, survivors, number) for n in asked}
        words = {n: o.agreement for n, o in said.items() if o and o.agreement}
        if words:
            said = {n: self.open(n, survivors, number, words) for n in asked}
        return {n: dict(o.shares) for n, o in said.items() if o and o.shares}


def lineage_in(keys: KeySet) -> str:
    """What the masks of a round hang on where all begin with fresh optimisers."""
    return lineage_after(FRESH, keys.terms.round, digest_of(MODEL))


def joined(keys: KeySet, shares: dict[str, bytes]) -> bytes | None:
    """A secret of which the server has these shares; none if they make none."""
    places = {site: i for i, site in enumerate(keys.terms.sites)}
    chosen = sorted(shares)[: keys.terms.threshold]
    if not chosen:
        return None
    dealt = {places[s]: shares[s] for s in chosen}
    try:
        return join(dealt, lagrange([places[s] for s in chosen]))
    except ContributionError:
        return None


def unmask(
    keys: KeySet, total: np.ndarray, inside: list[str], seeds: dict, secrets: dict
) -> np.ndarray | None:
    """The mean of those `inside`, by whatever secrets the server got; none if closed.

    `seeds` of those inside, and `secrets` (mask keys) of those outside.
    """
    told, numbers = lineage_in(keys), total.copy()
    plus, minus = [], [self_key(keys, told, s, seeds[s]) for s in inside if s in seeds]
    for lost, secret in secrets.items():
        for site in inside:
            key = pair_key(keys, told, lost, secret, site)
            (minus if site < lost else plus).append(key)
    apply_masks(numbers, plus=plus, minus=minus)
    try:
        return decode(keys.terms, numbers, len(inside)).mean
    except ContributionError:
        return None


def is_leaked(found: np.ndarray | None, names: list[str], trial: int = 0) -> bool:
    """Whether this is the mean of these sites' updates."""
    if found is None:
        return False
    exact = np.mean([update_of(n, found.size, trial) for n in names], axis=0)
    return bool(np.abs(found - exact).max() < 1e-5)
