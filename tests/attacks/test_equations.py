"""A server that makes a sum into equations with one solution: one update for each site.

Sums differ by what the server may choose (the largest weight, the plan, the sites)
while the updates stay what they are; or the updates are of so few values that one sum
is enough. Each control is a site without the check that the attack is about.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from pydantic import ValidationError

import client.masking
import client.service
import common.secagg.fixed_point
from client.draws import plan_seed
from client.masking import SiteMasks
from client.open_site import open_site
from client.policy import Policy
from common.errors import ContributionError
from common.exchange import TrainOrder, Update
from common.parameters import digest_of, to_vector
from common.secagg.fixed_point import OpenedSum, decode, encode
from common.secagg.keys import key_set
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.rounds import open_sum
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from server.federation import first_model
from tests.attacks.masked_lab import MODEL, Lab, is_leaked, plan_of, update_of
from tests.attacks.rows import SERVER, row
from tests.client.conftest import quiet, slices, write_hospital

TRIALS = 10
WEIGHTS = {"east": 40, "mid": 60, "north": 90, "south": 150, "west": 400}


def mean_of(lab: Lab, updates, weights, cap: int, plan=None) -> OpenedSum:
    """A round of all sites of the lab, opened; `plan` is that of its last orders."""
    plan, names = plan or lab.plan, lab.names
    packed = {
        name: site.keys(replace(lab.keys_order(), weight_cap=cap), lab.plan, 1).keys
        for name, site in lab.sites.items()
    }
    keys, sealed = (
        key_set(replace(lab.terms(), weight_cap=cap), packed),
        lab.shared(packed),
    )
    total, model = 0, np.resize(MODEL, lab.size)
    for name, site in lab.sites.items():
        mine = {s: sealed[s][name] for s in names if s != name}
        order = TrainOrder(
            "run", plan.digest, 1, 0, model, digest_of(model), sealed=mine
        )
        assert site.answered(order) is None
        told = weights[name], 0.1, 1, 0.1, 10, 10
        update = Update(name, 1, plan.digest, updates[name], *told)
        total = total + site.mask(order, update, plan).masked
    lineage = lineage_after(FRESH, 1, digest_of(model))
    open_sum(keys, lineage, keys.sites, lab.released(names), total)
    return decode(keys.terms, total, len(names))


def solved(folder) -> int:
    """How many of five updates follow from one round under five largest weights."""
    lab, rows, sums = Lab(folder, plan_of(), list(WEIGHTS)), [], []
    updates = {name: update_of(name) for name in WEIGHTS}
    for cap in sorted(WEIGHTS.values(), reverse=True):
        try:
            opened = mean_of(lab, updates, WEIGHTS, cap)
        except ContributionError as error:
            if error.code not in ("weights", "spent"):
                raise
            continue
        rows.append([min(weight, cap) for weight in WEIGHTS.values()])
        sums.append(opened.mean.astype(np.float64) * opened.weight)
    found = np.linalg.lstsq(np.array(rows, float), np.stack(sums), rcond=None)[0]
    near = [np.abs(f - u).max() for f, u in zip(found, updates.values(), strict=True)]
    return sum(error < 1e-3 for error in near)


@row(
    SERVER,
    "has one round masked under five largest weights, and solves for five updates",
    "weights are not cut; one round has one vector",
    short=True,
)
def test_one_round_is_no_system_of_equations(tmp_path, told, monkeypatch):
    def cutting(terms, delta, weight, *others):
        return encode(terms, delta, min(weight, terms.weight_cap), *others)

    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.masking, "encode", cutting)
        weak_site.setattr(client.masking, "note_masked", lambda *given: None)
        weak = solved(tmp_path / "weak")
    with monkeypatch.context() as half:  # each check by itself is enough
        half.setattr(client.masking, "encode", cutting)
        first = solved(tmp_path / "first")
    with monkeypatch.context() as half:
        half.setattr(client.masking, "note_masked", lambda *given: None)
        second = solved(tmp_path / "second")
    told(f"{weak} of 5 updates", f"{solved(tmp_path / 'ours')} of 5")
    assert (weak, first, second, solved(tmp_path / "again")) == (5, 0, 0, 0)


class Careless(SiteMasks):
    """Asks not by which plan the keys of a round were made."""

    def _at_hand(self, order):
        return self._round(order.run, order.round)


def opens_a_sum_of_two(folder, site_class, trial: int) -> bool:
    """Keys by a plan that is content with two sites, training by one that is not."""
    pilot, strict = plan_of(min_cohort=2), plan_of(min_cohort=4)
    lab = Lab(folder, pilot, ["east", "mid"], site_class, trial=trial)
    updates = {name: update_of(name, trial=trial) for name in lab.names}
    try:
        opened = mean_of(lab, updates, dict.fromkeys(lab.names, 10), 10, strict)
    except ContributionError as error:
        if error.code != "plan":
            raise
        return False
    return is_leaked(opened.mean, lab.names, trial)


@row(
    SERVER,
    "sets a round up by a weaker plan than it trains by (sum of 2, cohort 4)",
    "one plan from keys to sum",
    short=True,
)
def test_a_round_is_by_one_plan(tmp_path, told):
    weak = sum(
        opens_a_sum_of_two(tmp_path / f"w{i}", Careless, i) for i in range(TRIALS)
    )
    ours = sum(
        opens_a_sum_of_two(tmp_path / f"o{i}", SiteMasks, i) for i in range(TRIALS)
    )
    told(f"{weak} of {TRIALS} sums of 2", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


UNLIKE = {"east": 10, "mid": 30, "west": 70}
"""Every sum of some of them is another."""


def read_signs(folder) -> float | str:
    """How many signs of three sites' updates follow from one sum, by its arithmetic."""
    unit = 1e-3  # below all that training moves
    lab = Lab(folder, plan_of(mask_range=unit), list(UNLIKE), size=20_000)
    updates = {name: update_of(name, lab.size) for name in UNLIKE}
    try:
        opened = mean_of(lab, updates, UNLIKE, 70)
    except ContributionError as error:
        return str(error.code)
    signs = np.array(list(product([-1, 1], repeat=len(UNLIKE))))
    sums = signs @ np.array([*UNLIKE.values()]) * unit
    told = opened.mean.astype(np.float64)[:, None] * opened.weight
    found = signs[np.abs(told - sums).argmin(1)]
    truth = np.sign(np.stack([*updates.values()], axis=1))
    return float((found == truth).mean())


@row(
    SERVER,
    "reads the signs of three sites of known weights out of one sum",
    "no update that is mostly cut; no single step of Adam",
    short=True,
)
def test_no_sum_is_of_updates_with_two_values(tmp_path, told, monkeypatch):
    with monkeypatch.context() as weak_site:
        weak_site.setattr(common.secagg.fixed_point, "_MOST_CUT", 1.0)
        weak = read_signs(tmp_path / "weak")
    ours = read_signs(tmp_path / "ours")
    for optimizer in ("adam", "adamw"):
        with pytest.raises(ValidationError, match="too few under masks"):
            slices(
                privacy__secure_aggregation="on",
                training__steps=1,
                training__optimizer=optimizer,
            )
    told(f"{weak:.0%} of the signs", "refused by the site; Adam's step by the plan")
    assert isinstance(weak, float)
    assert weak > 0.95
    assert ours == "range"


PLANS = [
    slices(privacy__secure_aggregation="on", training__steps=10, plan__description=said)
    for said in ("", "a typo is mended")
]
START = to_vector(*first_model(PLANS[0]))


def subtracted(root, names) -> float:
    """How far what the second sum lacks is from the first site's part."""

    def parts(plan, sites):
        """What each site adds to the sum of a run by this plan."""
        given = f"run-{plan.digest[:8]}", plan.digest, 1, 0, START, digest_of(START)
        services = [open_site(root / name, plan) for name in sites]
        updates = [one.train(TrainOrder(*given), quiet) for one in services]
        return [u.cases * u.delta.astype(np.float64) for u in updates]

    whole, rest = parts(PLANS[0], names), parts(PLANS[1], names[1:])
    found = np.sum(whole, axis=0) - np.sum(rest, axis=0)
    return float(np.linalg.norm(found - whole[0]) / np.linalg.norm(whole[0]))


@row(
    SERVER,
    "has a plan with another description run without one site, and subtracts "
    "(how far off its update is)",
    "training draws by the site's secret",
    short=True,
)
def test_plans_that_differ_in_their_description_have_other_updates(
    tmp_path, told, monkeypatch
):
    names = ["a-site", "b-site", "c-site", "d-site"]
    for number, name in enumerate(names):
        pictures = tmp_path / "pictures" / name
        write_images(pictures, hospitals=HOSPITALS[:1], patients=5, seed=number)
        write_hospital(tmp_path / name, Policy(approve="auto"), pictures)
    with monkeypatch.context() as weak_site:
        weak_site.setattr(
            client.service,
            "training_seed",
            lambda plan, site, key, number: plan_seed(plan, site, "train", number),
        )
        weak = subtracted(tmp_path, names)
    ours = subtracted(tmp_path, names)
    told(f"{weak:.2f} of its length", f"{ours:.2f}")
    assert weak < 0.01
    assert ours > 0.5
