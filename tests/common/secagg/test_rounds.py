from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.canonical import items
from common.errors import ContributionError
from common.plan_privacy import Privacy
from common.secagg.fixed_point import TAIL, encode
from common.secagg.rounds import (
    check_agreement,
    check_survivors,
    mask,
    open_sum,
    release,
    sign_survivors,
)
from tests.common.secagg import oracle
from tests.common.secagg.cohort import LINEAGE, cohort, draws, names_of, seed_of


def privacy(bits=32, cohort=2, bound=1.0):
    return Privacy(mask_bits=bits, min_cohort=cohort, mask_range=bound)


def updates(sites, size, seed=0):
    draw = np.random.default_rng(seed)
    deltas = {s: draw.normal(0, 0.2, size).astype(np.float32) for s in sites}
    return deltas, {s: int(draw.integers(1, 51)) for s in sites}


def plain_sum(ready, deltas, weights):
    """Fixed-point FedAvg in the clear, in Python's integers."""
    bits = ready.terms.mask_bits
    total = [0] * ready.terms.size
    for site, delta in deltas.items():
        numbers = encode(ready.terms, delta, weights[site], draws(seed_of(site)))
        for i, q in enumerate(numbers[:-TAIL].tolist()):
            total[i] += q - (1 << bits) if q >> (bits - 1) else q
    return total


def mean_of(ready, total, weight):
    unit = Fraction(ready.terms.mask_range) * ready.terms.weight_cap
    unit = float(unit) / ready.terms.limit / weight
    return np.array([float(q) * unit for q in total]).astype(np.float32)


@pytest.mark.parametrize("bits", [16, 32])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_whoever_drops_out_the_sum_of_the_rest_is_exact(bits, data):
    count = data.draw(st.integers(3, 8))
    ready = cohort(count, size=25, privacy=privacy(bits))
    lost = data.draw(st.integers(0, count - ready.terms.fewest))
    stay = sorted(data.draw(st.permutations(ready.keys.sites))[lost:])
    deltas, weights = updates(stay, 25, data.draw(st.integers(0, 999)))
    answering = data.draw(st.permutations(stay))[: ready.terms.threshold]
    opened = ready.opened(ready.masked(deltas, weights), answering)
    assert opened.weight == sum(weights.values())
    total = plain_sum(ready, deltas, weights)
    wanted = mean_of(ready, total, opened.weight)
    assert opened.mean.tobytes() == wanted.tobytes()
    exact = np.average(
        np.stack([np.clip(deltas[s], -1, 1) for s in stay]),
        axis=0,
        weights=[weights[s] for s in stay],
    )
    step = ready.terms.weight_cap / ready.terms.limit * len(stay) / opened.weight
    assert np.abs(opened.mean - exact).max() <= step + 1e-6


def test_a_masked_vector_is_that_of_the_oracle():
    ready = cohort(3, size=9, privacy=privacy())
    deltas, weights = updates(ready.keys.sites, 9)
    numbers = ready.masked(deltas, weights)
    low, me, high = names_of(3)
    clear = encode(ready.terms, deltas[me], weights[me], draws(seed_of(me)))

    def derived(purpose, secret, **about):
        about |= {
            "purpose": f"fedct {purpose}",
            "transcript": ready.keys.transcript,
            "lineage": LINEAGE,
        }
        key = oracle.hkdf(secret, items(about), 16)
        return oracle.mask_numbers(key, 9 + TAIL, 32)

    made = ready.made[me]
    own = derived("own mask", made.seed, site=me)
    pairs = {}
    for peer in (low, high):
        public = ready.keys.announcements[peer].mask_public
        shared = oracle.x25519(made.mask_key, public)
        a, b = sorted((me, peer))
        pairs[peer] = derived("pair mask", shared, low=a, high=b)
    wanted = [
        (int(q) + o - p + r) % 2**32
        for q, o, p, r in zip(clear, own, pairs[low], pairs[high], strict=True)
    ]
    assert numbers[me].tolist() == wanted


def test_masks_of_another_model_do_not_cancel():
    ready = cohort(4, privacy=privacy())
    deltas, weights = updates(ready.keys.sites, 40)
    assert ready.opened(ready.masked(deltas, weights)).weight > 0  # the control
    masked = ready.masked(deltas, weights)
    odd = names_of(4)[2]
    numbers = encode(ready.terms, deltas[odd], weights[odd], draws(1))
    mask(ready.keys, odd, ready.made[odd], "00" * 32, numbers)
    with pytest.raises(ContributionError) as caught:
        ready.opened({**masked, odd: numbers})
    assert caught.value.code == "masks"


def test_below_the_threshold_nothing_opens_and_nothing_changes():
    ready = cohort(5, privacy=privacy())
    deltas, weights = updates(ready.keys.sites, 40)
    masked = ready.masked(deltas, weights)
    survivors = ready.keys.sites
    total = sum(masked.values())
    before = total.copy()
    asked = survivors[: ready.terms.threshold - 1]
    released = {s: release(ready.keys, survivors, ready.held[s]) for s in asked}
    with pytest.raises(ContributionError) as caught:
        open_sum(ready.keys, LINEAGE, survivors, released, total)
    assert caught.value.code == "threshold"
    assert np.array_equal(total, before)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_changed_share_is_found_before_the_sum_is_touched(lost):
    ready = cohort(5, privacy=privacy())
    stay = ready.keys.sites[lost:]
    deltas, weights = updates(stay, 40)
    total = sum(ready.masked(deltas, weights).values())
    before = total.copy()
    released = {s: release(ready.keys, stay, ready.held[s]) for s in stay}
    liar = released[stay[0]]
    liar[ready.keys.sites[0]] = bytes(65) + b"\x07"
    with pytest.raises(ContributionError) as caught:
        open_sum(ready.keys, LINEAGE, stay, released, total)
    assert caught.value.code == "share"
    assert np.array_equal(total, before)


def test_a_set_of_survivors_is_checked_before_anything_is_released():
    ready = cohort(5, privacy=privacy(cohort=4))
    names = ready.keys.sites
    check_survivors(ready.keys, names[0], names)
    check_survivors(ready.keys, names[0], names[:4])
    for told, code in [
        (names[:3], "cohort"),
        ((*names[:4], names[0]), "survivors"),
        ((*names[:4], "stranger"), "survivors"),
        (names[1:], "survivors"),
    ]:
        with pytest.raises(ContributionError) as caught:
            check_survivors(ready.keys, names[0], told)
        assert caught.value.code == code, told


def test_agreement_needs_the_threshold_of_survivors_on_one_set():
    ready = cohort(5, privacy=privacy())
    names = ready.keys.sites
    told, other = names[:4], (*names[:3], names[4])
    signed = {s: sign_survivors(ready.keys, told, ready.identities[s]) for s in told}
    check_agreement(ready.keys, told, signed)
    few = {s: signed[s] for s in told[:2]}
    else_signed = sign_survivors(ready.keys, other, ready.identities[told[2]])
    outside = sign_survivors(ready.keys, told, ready.identities[names[4]])
    for signatures in (
        few,
        {**few, told[2]: else_signed},
        {**few, told[2]: signed[told[1]]},
        {**few, names[4]: outside},
        {**few, "stranger": outside},
    ):
        with pytest.raises(ContributionError) as caught:
            check_agreement(ready.keys, told, signatures)
        assert caught.value.code == "survivors"


def test_no_site_ever_releases_both_shares_of_one_site():
    ready = cohort(5, privacy=privacy())
    stay = ready.keys.sites[:4]
    for site in stay:
        out = release(ready.keys, stay, ready.held[site])
        assert set(out) == set(ready.keys.sites)
        for owner, share in out.items():
            kept = ready.held[site][owner]
            assert share == (kept.seed if owner in stay else kept.mask_key)
