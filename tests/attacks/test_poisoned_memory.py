"""A hub that prepares the memory of all sites but one: a masked sum is the last one's.

An optimiser that has seen gradients as large as a model made by the hub can call forth
hardly moves for hundreds of steps. In rounds that are never opened the hub shows such a
model to all sites but its victim, and the sum of the next honest round is nearly the
victim's update. The control is a site that goes on from any memory it has.
"""

import shutil
from dataclasses import replace

import numpy as np

import client.masking
import client.service
import common.secagg.fixed_point
from client.open_site import open_site
from client.state import load_state
from common.errors import ContributionError, FedctError
from common.exchange import TrainOrder, Update
from common.parameters import digest_of, to_vector
from common.secagg.fixed_point import decode
from common.secagg.keys import KeySet, key_set
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.rounds import open_sum
from server.federation import first_model
from tests.attacks.lying_hub import LyingHub, SaidNoError
from tests.attacks.masked_lab import MODEL as NOTHING
from tests.attacks.masked_lab import Lab, plan_of, update_of
from tests.attacks.rows import SERVER, row
from tests.client.conftest import quiet, slices

TRIALS = 5
NAMES = ["a-site", "b-site", "c-site", "d-site"]
VICTIM, REST = NAMES[-1], NAMES[:-1]
PLAN = slices(
    privacy__secure_aggregation="on",
    federation__min_sites=3,
    federation__rounds=10,
    training__steps=40,
)
MODEL = to_vector(*first_model(PLAN))
HUGE = MODEL * np.float32(1e5)


def poisoned(hub: LyingHub) -> str:
    """Two rounds without the victim; what the others' memory stems from then."""
    lineage = FRESH
    for number, model in enumerate((HUGE, MODEL), start=1):
        one = hub.set_up(number, REST)
        for name in REST:  # thrown away
            hub.masked(name, hub.order(one, name, model, number - 1, lineage))
        lineage = lineage_after(lineage, number, digest_of(model))
    return lineage


def mean_of(
    hub: LyingHub, number: int, lies: dict[str, str]
) -> np.ndarray | FedctError | SaidNoError:
    """The mean of all sites' updates, each told its lie about its memory of round 2."""
    one = hub.set_up(number, NAMES)
    try:
        masked = [
            hub.masked(n, hub.order(one, n, MODEL, 2 * (n != VICTIM), lies[n]))
            for n in NAMES
        ]
        total = np.sum(masked, axis=0, dtype=np.uint32)
        after = lineage_after(lies[VICTIM], number, digest_of(MODEL))
        return hub.opened(one, total, after).mean
    except (ContributionError, SaidNoError) as error:
        return error


def distance(hub: LyingHub, number: int, mean: np.ndarray) -> float:
    """From the victim's update to what the hub takes for it, in its own length.

    1 is what a hub has that guesses that the victim did not move.
    """
    given = "run", PLAN.digest, number, 0, MODEL, digest_of(MODEL)
    alone = shutil.copytree(hub.folders[VICTIM], hub.root / f"alone-{number}")
    update = open_site(alone, PLAN).train(TrainOrder(*given), quiet)
    found = mean * (sum(hub.train.values()) / hub.train[VICTIM])
    return float(np.linalg.norm(found - update.delta) / np.linalg.norm(update.delta))


@row(
    SERVER,
    "makes all optimisers but one stand still (how far off the last one's update is)",
    "memory of one lineage, or none",
    short=True,
)
def test_no_site_moves_alone_among_optimisers_that_stand_still(
    tmp_path, told, monkeypatch
):
    hub = LyingHub(tmp_path, PLAN, NAMES)
    theirs = poisoned(hub)
    nothing, something = dict.fromkeys(NAMES, FRESH), dict.fromkeys(NAMES, theirs)
    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.service, "begins_anew", lambda order: False)
        weak_site.setattr(client.service, "checked_memory", lambda state, order: state)
        weak = distance(hub, 3, mean_of(hub, 3, nothing))
    apart = mean_of(hub, 4, {**something, VICTIM: FRESH})
    assert isinstance(apart, ContributionError)
    assert apart.code == "masks"
    never_there = mean_of(hub, 5, something)
    assert isinstance(never_there, SaidNoError)
    assert never_there.args == (104029,)
    ours = distance(hub, 6, mean_of(hub, 6, nothing))
    told(f"{weak:.2f} of its length", f"{ours:.2f}")
    assert weak < 0.5
    assert ours > 1.0


FOUR = ["east", "mid", "north", "west"]
COARSE, FINE = (1_000_000, 257), (10, 4)
"""Largest weight and slots, by the hub's word: how wide a step of 16 bits is."""
PUSH = 0.2
"""What all parameters move by in the rounds before; nothing of it gets across."""


def handed_in(
    lab: Lab, number: int, names: list[str], grid: tuple[int, int], lineage: str
) -> tuple[KeySet, np.ndarray]:
    """The sum of what some of the sites hand in of a round."""
    cap, slots = grid
    order = replace(lab.keys_order(number), weight_cap=cap, slots=slots)
    packed = {n: site.keys(order, lab.plan, 1).keys for n, site in lab.sites.items()}
    terms = replace(lab.terms(number), weight_cap=cap, slots=slots)
    sealed, total = lab.shared(packed, number), np.zeros(0, np.uint16)
    for name in names:
        mine = {s: sealed[s][name] for s in FOUR if s != name}
        given = "run", lab.plan.digest, number, number - 1, NOTHING, digest_of(NOTHING)
        train, site = TrainOrder(*given, sealed=mine, lineage=lineage), lab.sites[name]
        assert site.answered(train) is None
        delta = np.full_like(NOTHING, PUSH)
        if number == 4:
            delta = update_of(name, trial=lab.trial)
        told = 10, 0.1, 1, 0.1, 10, 10
        update = Update(name, number, lab.plan.digest, delta, *told)
        masked = site.mask(train, update, lab.plan).masked
        total = total + masked if len(total) else masked
    return key_set(terms, packed), total


def drowns_the_others(folder, trial: int) -> bool:
    """Has all sites but one carry so much that their next numbers are all the same."""
    lab, lineage = Lab(folder, plan_of(mask_bits=16), FOUR, trial=trial), FRESH
    *others, victim = FOUR
    try:
        for number in (1, 2, 3, 4):  # only the last is opened
            if number < 4:
                handed_in(lab, number, [victim], FINE, lineage)
                handed_in(lab, number, others, COARSE, lineage)
            else:
                keys, total = handed_in(lab, number, FOUR, FINE, lineage)
            lineage = lineage_after(lineage, number, digest_of(NOTHING))
    except ContributionError as error:
        return error.code != "lineage"
    open_sum(keys, lineage, keys.sites, lab.released(FOUR, 4), total)
    mean = decode(keys.terms, total, len(FOUR)).mean
    found = len(FOUR) * mean - len(others) * lab.plan.privacy.cut_at
    near = np.abs(found - update_of(victim, trial=trial)) < 1e-3
    return bool(near.mean() > 0.9)  # a few numbers were rounded up on the coarse grid


@row(
    SERVER,
    "has all sites but one carry what 16 bits lose on a coarser grid",
    "one grid along a lineage",
    short=True,
)
def test_no_site_is_heard_alone_among_sites_that_carry_too_much(
    tmp_path, told, monkeypatch
):
    def believing(folder, number, terms):
        """Goes on from what is left over, on whatever grid."""
        return np.zeros(terms.size, np.float32) if not number else left(folder, number)

    def left(folder, number):
        return load_state(folder / "carried", number).carried.numpy().copy()

    # A site refuses to cut as much as this; off on both sides, to see the grid alone.
    monkeypatch.setattr(common.secagg.fixed_point, "_MOST_CUT", 1.0)
    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.masking, "load_carried", believing)
        weak = sum(drowns_the_others(tmp_path / f"w{i}", i) for i in range(TRIALS))
    ours = sum(drowns_the_others(tmp_path / f"o{i}", i) for i in range(TRIALS))
    told(f"{weak} of {TRIALS} updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)
