"""A server that has a round masked again: what it must not learn from the two answers.

Each control is a site with the one check taken out that the attack is about.
"""

import numpy as np

import client.masking
from client.mask_memory import MASKED
from client.masking import SiteMasks
from client.state import states_of
from common.errors import ContributionError
from common.secagg.fixed_point import TAIL, decode
from common.secagg.rounds import open_sum
from tests.attacks.masked_lab import Lab, is_leaked, lineage_in, plan_of, update_of
from tests.attacks.rows import SERVER, row

TRIALS = 10
FIVE = ["east", "mid", "north", "south", "west"]


def opened(lab, answering):
    """The mean of all sites of a lab, opened with the shares of those answering."""
    keys, sealed = lab.set_up()
    total = sum(lab.all_masked(sealed).values())
    open_sum(
        keys,
        lineage_in(keys),
        keys.sites,
        lab.released(lab.names, names=answering),
        total,
    )
    return decode(keys.terms, total, len(lab.names)).mean


def masks_among_fewer(folder, trial):
    """Opens a round with three sites' shares, then again among those not asked for any.

    Three of five open the sum of five. The other two gave no share yet, and they are
    enough for a group of three: the difference of both sums is that of two sites.
    """
    try:
        whole = opened(Lab(folder, plan_of(), FIVE, trial=trial), FIVE[:3])
        part = opened(Lab(folder, plan_of(), FIVE[2:], trial=trial, slots=5), FIVE[3:])
    except ContributionError:
        return False
    return is_leaked((5 * whole - 3 * part) / 2, FIVE[:2], trial)


@row(
    SERVER,
    "repeats a round among fewer sites, and subtracts (sum of 2, cohort 3)",
    "groups of a round share more than half",
    short=True,
)
def test_of_a_round_no_second_sum_is_opened_by_sites_that_opened_none(
    tmp_path, told, monkeypatch
):
    ours = sum(masks_among_fewer(tmp_path / f"o{i}", i) for i in range(TRIALS))
    monkeypatch.setattr(client.masking, "check_group", lambda *given: None)
    weak = sum(masks_among_fewer(tmp_path / f"w{i}", i) for i in range(TRIALS))
    told(f"{weak} of {TRIALS} sums of 2", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


class Repeating(SiteMasks):
    """Masks as often as it is asked, by the same secrets, and forgets what."""

    def mask(self, order, update, plan):
        one = self._rounds[order.run, order.round]
        made = one.made
        answer = super().mask(order, update, plan)
        (states_of(self._folder, order.run) / MASKED).unlink()
        one.lineage, one.made = None, made
        return answer


def replays_the_order(site_class, folder, trial):
    """Has a site mask two updates of one round, as if its answer had been lost."""
    lab = Lab(folder, plan_of(), FIVE, site_class, trial=trial)
    keys, sealed = lab.set_up()
    victim = FIVE[0]
    vectors = [lab.masked(victim, sealed).copy()]
    lab.trial = trial + TRIALS  # from another state of the site
    vectors.append(lab.masked(victim, sealed))
    apart = (vectors[1] - vectors[0])[:-TAIL].view(np.int32)
    terms, weight = keys.terms, 10
    step = terms.mask_range * terms.weight_cap / terms.limit / weight
    updates = [update_of(victim, trial=t) for t in (trial, trial + TRIALS)]
    return bool(np.abs(apart * step - (updates[1] - updates[0])).max() < 1e-5)


@row(
    SERVER, "replays an order, for two updates under one mask", "one answer", short=True
)
def test_an_order_that_is_replayed_gets_the_same_vector_again(tmp_path, told):
    def attack(kind, i):
        return replays_the_order(kind, tmp_path / f"{kind.__name__}{i}", i)

    weak = sum(attack(Repeating, i) for i in range(TRIALS))
    ours = sum(attack(SiteMasks, i) for i in range(TRIALS))
    told(f"{weak} of {TRIALS} differences of updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)
