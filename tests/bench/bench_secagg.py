"""What secure aggregation adds to a round: seconds at a site, at the hub, and bytes.

    python tests/bench/bench_secagg.py [--params 20000000] [--repeats 3]

Everything that a round under masks does and one in the clear does not is timed: at the
site checking keys, sealing and opening shares, fixed point and masks; at the hub
joining shares, taking masks off (with 0 and with 5 sites lost) and reading the mean.
Adding a masked vector up takes the place of adding one in the clear, and is shown
beside it. The best of the repeats counts. What is opened is compared with the sum that
went in.

Bytes are those of all that one site sends and gets in a round of steady state, over one
float32 vector each way.
"""

import argparse
import hashlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.secret_random import SecretStream
from common.exchange import MaskedUpdate, Opening, OpenOrder, TrainOrder
from common.plan_privacy import Privacy
from common.secagg.fixed_point import Masked, decode, encode
from common.secagg.keys import (
    KeySet,
    RoundSecrets,
    announce,
    key_set,
    pair_key,
    self_key,
)
from common.secagg.masks import apply_masks
from common.secagg.rounds import mask, open_sum, release
from common.secagg.sharing import Shares, deal, open_shares
from common.secagg.terms import terms_of
from common.signing import public_text
from common.wire import payload_bytes, to_record
from server.aggregate import WeightedMean
from tests.bench.side_by_side import machine

MODEL = "ab" * 32
ROUND_S = 60.0
"""Of the round that the bar speaks of."""


class Round:
    """A round that is set up, and what it took."""

    def __init__(self, sites: int, size: int, bits: int) -> None:
        """Make keys and shares of all sites."""
        names = [f"site-{i:03d}" for i in range(sites)]
        identities = {name: Ed25519PrivateKey.generate() for name in names}
        roster = {n: public_text(key.public_key()) for n, key in identities.items()}
        privacy = Privacy(secure_aggregation="on", mask_bits=bits)
        terms = terms_of(privacy, "run", 1, MODEL, roster, 100, size, sites)
        self.made = {name: RoundSecrets() for name in names}
        self.packed = {
            n: announce(terms, n, self.made[n], identities[n]).pack() for n in names
        }
        self.terms = terms
        self.keys = key_set(terms, self.packed)
        self.dealt = {n: deal(self.keys, n, self.made[n]) for n in names}
        self.names = tuple(names)

    def sealed_for(self, site: str) -> dict[str, bytes]:
        """What others sealed for a site."""
        return {n: self.dealt[n][1][site] for n in self.names if n != site}

    def held(self, site: str) -> dict[str, Shares]:
        """Shares at a site."""
        sealed = self.sealed_for(site)
        others = open_shares(self.keys, site, self.made[site], sealed)
        return {**others, site: self.dealt[site][0]}


def best(repeats: int, work: Callable[[], Any]) -> float:
    """Seconds of the quickest try."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def set_up_s(one: Round, repeats: int) -> float:
    """A site's share of the set-up: check keys, deal, open."""
    site = one.names[0]

    def work() -> None:
        keys = key_set(one.terms, one.packed)
        deal(keys, site, one.made[site])
        open_shares(keys, site, one.made[site], one.sealed_for(site))

    return best(repeats, work)


def mask_s(one: Round, delta: np.ndarray, repeats: int) -> tuple[float, Masked]:
    """Fixed point, its digest and masks of one update."""
    site, kept = one.names[0], []

    def work() -> None:
        kept.clear()
        carried = np.zeros_like(delta) if one.terms.mask_bits == 16 else None
        rounding = SecretStream().fractions
        numbers = encode(one.terms, delta, 50, rounding, carried)
        hashlib.sha256(numbers.data).hexdigest()  # is noted before it is masked
        mask(one.keys, site, one.made[site], MODEL, numbers)
        kept.append(numbers)

    return best(repeats, work), kept[0]


def closed_sum(keys: KeySet, one: Round, clear: Masked, survivors: tuple[str, ...]):
    """The survivors' masked sum, made from the clear one, for want of so many sites."""
    plus = [self_key(keys, MODEL, s, one.made[s].seed) for s in survivors]
    minus = []
    for lost in set(keys.sites) - set(survivors):
        for site in survivors:
            key = pair_key(keys, MODEL, lost, one.made[lost].mask_key, site)
            (plus if site < lost else minus).append(key)
    total = clear.copy()
    apply_masks(total, plus=plus, minus=minus)
    return total


def open_s(one: Round, delta: np.ndarray, lost: int, repeats: int) -> float:
    """Join shares, take masks off, read the mean, which must be the update."""
    survivors = one.names[: len(one.names) - lost]
    clear = encode(one.terms, delta, 50, SecretStream().fractions)
    clear *= clear.dtype.type(len(survivors))  # all sent the same
    closed = closed_sum(one.keys, one, clear, survivors)
    asked = survivors[: one.terms.threshold]
    got = {s: release(one.keys, survivors, one.held(s)) for s in asked}
    times = []
    for _ in range(repeats):
        total = closed.copy()
        began = time.perf_counter()
        open_sum(one.keys, MODEL, survivors, got, total)
        opened = decode(one.terms, total, len(survivors))
        times.append(time.perf_counter() - began)
        step = one.terms.mask_range * 2 / one.terms.limit
        assert np.abs(opened.mean - delta).max() <= step + 1e-6
        assert opened.weight == 50 * len(survivors)
    return min(times)


def add_s(masked: Masked, delta: np.ndarray, repeats: int) -> tuple[float, float]:
    """Adding a masked vector up, and one in the clear."""
    total = np.zeros_like(masked)
    mean = WeightedMean(delta.size, min_sites=1)
    tries = iter(range(10**6))
    return (
        best(repeats, lambda: np.add(total, masked, out=total)),
        best(repeats, lambda: mean.add(f"s{next(tries)}", delta, 50.0)),
    )


def bytes_of(one: Round, masked: Masked, size: int) -> tuple[float, float]:
    """Up and down in a round of steady state, over a float32 vector."""
    site, sealed = one.names[0], one.sealed_for(one.names[0])
    shares = release(one.keys, one.names, one.held(site))
    model = np.zeros(size, np.float32)
    up = [
        MaskedUpdate(
            site, 1, MODEL, masked, 0.1, 1, 0.1, 9, 9, next_keys=one.packed[site]
        ),
        Opening(site, 1, shares=shares, sealed=sealed),
    ]
    down = [
        TrainOrder("run", MODEL, 1, 0, model, MODEL, sealed=sealed),
        OpenOrder("run", MODEL, 1, one.names, next_keys=one.packed),
    ]
    both = [sum(payload_bytes(to_record(m)) for m in way) for way in (up, down)]
    return both[0] / (4 * size), both[1] / (4 * size)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    size, repeats = asked.params, asked.repeats
    delta = np.random.default_rng(0).normal(0, 0.01, size).astype(np.float32)
    print(f"{machine()}; {size / 1e6:g} M parameters\n")
    print(
        "| sites | bits | site: set-up s | site: mask s | hub: open s, 0 lost | "
        "hub: open s, 5 lost | hub: add a vector s (in the clear) | "
        "bytes up | bytes down |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for sites in (5, 50):
        for bits in (32, 16):
            one = Round(sites, size, bits)
            ready_s = set_up_s(one, repeats)
            masked_s, masked = mask_s(one, delta, repeats)
            whole_s = open_s(one, delta, 0, repeats)
            lost_s = f"{open_s(one, delta, 5, repeats):.2f}" if sites > 9 else "-"
            added_s, clear_s = add_s(masked, delta, repeats)
            up, down = bytes_of(one, masked, size)
            cells = (
                *(sites, bits, f"{ready_s:.3f}", f"{masked_s:.2f}", f"{whole_s:.2f}"),
                *(lost_s, f"{added_s:.3f} ({clear_s:.3f})"),
                *(f"{up:.4f}x", f"{down:.4f}x"),
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            if sites == 5:
                added = ready_s + masked_s + whole_s
                share = 100 * added / ROUND_S
                print(f"5 sites, {bits} bits: {share:.1f} % of a minute", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of this process {peak:.0f} MiB")


if __name__ == "__main__":
    main()
