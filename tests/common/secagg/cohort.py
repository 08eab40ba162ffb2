"""A cohort of sites for tests, each with its own identity, driven through a round."""

from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.plan_privacy import Privacy
from common.secagg.fixed_point import decode, encode
from common.secagg.keys import KeySet, RoundSecrets, announce, key_set
from common.secagg.rounds import mask, open_sum, release
from common.secagg.sharing import Shares, deal, open_shares
from common.secagg.terms import Terms, terms_of
from common.signing import public_text

LINEAGE = "ab" * 32


@dataclass
class Cohort:
    """A round after its set-up."""

    terms: Terms
    identities: dict[str, Ed25519PrivateKey]
    made: dict[str, RoundSecrets]
    keys: KeySet
    held: dict[str, dict[str, Shares]] = field(default_factory=dict)

    def masked(self, deltas, weights, lineage=LINEAGE):
        """Site to masked numbers."""
        found = {}
        for site, delta in deltas.items():
            numbers = encode(self.terms, delta, weights[site], draws(seed_of(site)))
            mask(self.keys, site, self.made[site], lineage, numbers)
            found[site] = numbers
        return found

    def opened(self, masked, answering=None, lineage=LINEAGE):
        """The weighted mean of who is in `masked`."""
        survivors = tuple(sorted(masked))
        total = np.zeros_like(next(iter(masked.values())))
        for numbers in masked.values():
            total += numbers
        asked = survivors if answering is None else answering
        released = {s: release(self.keys, survivors, self.held[s]) for s in asked}
        open_sum(self.keys, lineage, survivors, released, total)
        return decode(self.terms, total, len(survivors))


def draws(seed: int):
    """What a site rounds by."""
    return np.random.default_rng(seed).random


def seed_of(site: str) -> int:
    """The seed of a site's rounding."""
    return sum(site.encode())


def names_of(count: int) -> list[str]:
    return [f"site-{i:03d}" for i in range(count)]


def identities_of(names) -> dict[str, Ed25519PrivateKey]:
    return {name: Ed25519PrivateKey.generate() for name in names}


def roster_of(identities) -> dict[str, str]:
    return {n: public_text(key.public_key()) for n, key in identities.items()}


def cohort(
    count=5, size=40, privacy=None, weight_cap=50, identities=None, number=1
) -> Cohort:
    """Set a round up: keys, shares, all delivered."""
    identities = identities or identities_of(names_of(count))
    terms = terms_of(
        privacy or Privacy(secure_aggregation="on"),
        "run",
        number,
        "cd" * 32,
        roster_of(identities),
        weight_cap,
        size,
        len(identities),
    )
    made = {site: RoundSecrets() for site in identities}
    said = {s: announce(terms, s, made[s], identities[s]).pack() for s in identities}
    keys = key_set(terms, said)
    ready = Cohort(terms, identities, made, keys)
    dealt = {site: deal(keys, site, made[site]) for site in keys.sites}
    for site in keys.sites:
        sealed = {p: dealt[p][1][site] for p in keys.sites if p != site}
        mine = open_shares(keys, site, made[site], sealed)
        ready.held[site] = {**mine, site: dealt[site][0]}
    return ready
