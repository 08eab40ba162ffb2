"""A hub that knows how each site rounds: numbers of a masked sum become one site's.

Where a step of the grid is wider than a change, a site sends 0, and 1 or -1 only where
its draw was near an edge. Steps are so wide at 16 bits at a schedule's end, and at any
width if the hub names a large weight and many slots. Who knows all draws knows which
site moved a number of the sum. The control rounds by site and round alone.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

import client.masking
from common.exchange import TrainOrder, Update
from common.parameters import digest_of
from common.secagg.fixed_point import encode
from common.secagg.keys import key_set
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.rounds import open_sum
from common.signing import public_text
from tests.attacks.masked_lab import Lab, plan_of, update_of
from tests.attacks.rows import SERVER, row

FIVE = ["east", "mid", "north", "south", "west"]
SIZE = 200_000
HONEST, COARSE = (10, 5), (1_000_000, 257)
"""Largest weight and slots, by the hub's word; a site's weight is 10."""


def guessed(key: str, number: int):
    """Draws that follow from what the hub knows."""
    seed = hashlib.sha256(f"{key}/{number}".encode()).digest()[:16]
    return np.random.default_rng(int.from_bytes(seed)).random


def public_draws(identity, digest, number):
    """A site that rounds by them."""
    return guessed(public_text(identity.public_key()), number)


def assigned(folder, bits, grid, change, monkeypatch) -> float:
    """How many of the sum's ones the hub can say whose they are."""
    lab, sent = Lab(folder, plan_of(mask_bits=bits), FIVE, size=SIZE), []

    def noted(*given):
        numbers = encode(*given)
        sent.append(numbers[:SIZE].copy())
        return numbers

    monkeypatch.setattr(client.masking, "encode", noted)
    about = {"weight_cap": grid[0], "slots": grid[1]}
    order = replace(lab.keys_order(), **about)
    packed = {n: s.keys(order, lab.plan, 1).keys for n, s in lab.sites.items()}
    keys, sealed = key_set(replace(lab.terms(), **about), packed), lab.shared(packed)
    model, total = np.zeros(SIZE, np.float32), 0
    for name, site in lab.sites.items():
        mine = {s: sealed[s][name] for s in FIVE if s != name}
        given = "run", lab.plan.digest, 1, 0, model, digest_of(model)
        train = TrainOrder(*given, sealed=mine)
        assert site.answered(train) is None
        delta = update_of(name, SIZE) * np.float32(change)
        update = Update(name, 1, lab.plan.digest, delta, 10, 0.1, 1, 0.1, 10, 10)
        total = total + site.mask(train, update, lab.plan).masked
    lineage = lineage_after(FRESH, 1, digest_of(model))
    open_sum(keys, lineage, keys.sites, lab.released(FIVE), total)
    found = total[:SIZE].view(f"i{bits // 8}")
    drawn = np.stack([guessed(lab.roster[name], 1)(SIZE) for name in FIVE])
    whose = np.where(found > 0, drawn.argmax(0), drawn.argmin(0))
    ones = np.flatnonzero(abs(found) == 1)
    assert len(ones) > 1000
    truth = np.stack(sent)[whose[ones], ones].view(f"i{bits // 8}")
    return float(np.mean(truth == found[ones]))


@pytest.mark.parametrize(
    ("bits", "grid", "change", "grid_is"),
    [(32, COARSE, 1e-1, "a coarse grid"), (16, HONEST, 1e-5, "an honest one")],
)
@row(
    SERVER,
    "works out by the sites' rounding whose each number of a sum is (of five)",
    "rounding by the site's secret",
    short=True,
)
def test_no_number_of_a_sum_is_one_site_s(
    tmp_path, told, monkeypatch, bits, grid, change, grid_is
):
    given = bits, grid, change, monkeypatch
    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.masking, "secret_rounding", public_draws)
        weak = assigned(tmp_path / "weak", *given)
    ours = assigned(tmp_path / "ours", *given)
    told(f"{bits} bits, {grid_is}: {weak:.0%} told", f"{ours:.0%}")
    assert weak > 0.9
    assert ours < 0.25
