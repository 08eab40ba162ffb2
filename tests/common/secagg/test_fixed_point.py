from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ContributionError, TrainingError
from common.plan_privacy import Privacy
from common.secagg.fixed_point import LIMBS, ONES, TAIL, decode, encode
from common.secagg.terms import check_terms, terms_of
from tests.common.secagg import oracle
from tests.common.secagg.cohort import draws, identities_of, names_of, roster_of

ROSTERS = {n: roster_of(identities_of(names_of(n))) for n in (3, 5, 7)}


def terms(count=5, size=30, bits=32, bound=1.0, cap=50, cohort=2):
    privacy = Privacy(mask_bits=bits, mask_range=bound, min_cohort=cohort)
    return terms_of(privacy, "run", 1, "cd" * 32, ROSTERS[count], cap, size, count)


def vector(size, seed=0, scale=0.3):
    numbers = np.random.default_rng(seed).normal(0, scale, size)
    return numbers.astype(np.float32)


@pytest.mark.parametrize("bits", [16, 32])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), weight=st.integers(1, 50))
def test_numbers_are_those_of_the_oracle(bits, seed, weight):
    agreed = terms(bits=bits)
    delta = vector(30, seed)
    numbers = encode(agreed, delta, weight, draws(seed))
    drawn = draws(seed)(30)
    for q, x, u in zip(numbers, delta, drawn, strict=False):
        exact = oracle.fixed(float(x), 1.0, agreed.limit, weight, 50, float(u))
        # float64 holds the scaled number to 2^-24 at worst: one step, on an edge
        assert (int(q) - exact + 1) % (1 << bits) in (0, 1, 2)
    assert numbers[-TAIL:].tolist() == [1] * ONES + list(
        weight.to_bytes(LIMBS, "little")
    )


@pytest.mark.parametrize("bits", [16, 32])
def test_the_largest_numbers_of_all_sites_do_not_wrap(bits):
    for sign in (1, -1):
        agreed = terms(count=7, bits=bits)
        delta = np.full(30, sign, dtype=np.float32)
        delta[7] *= 5.0  # is cut
        total = sum(
            encode(agreed, delta, 50, draws(i)).astype(np.int64) for i in range(7)
        )
        opened = decode(agreed, (total % (1 << bits)).astype(f"<u{bits // 8}"), 7)
        assert opened.weight == 350
        assert np.allclose(opened.mean, sign, atol=1.1 / agreed.limit)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_what_the_sites_may_send_does_not_open(bits, sign):
    """One of five adds what only all others together could, and more."""
    agreed = terms(bits=bits)
    deltas = [np.full(30, sign, dtype=np.float32) for _ in range(5)]
    weights = (50, 50, 50, 50, 20)

    def total(extra):
        added = np.zeros(30 + TAIL, dtype=f"<u{bits // 8}")
        for i, (delta, weight) in enumerate(zip(deltas, weights, strict=True)):
            added += encode(agreed, delta, weight, draws(i))
        added[17] += np.array(sign * extra).astype(added.dtype)
        return added

    decode(agreed, total(0), 5)  # the control: all at the bound
    with pytest.raises(ContributionError) as caught:
        decode(agreed, total(10), 5)
    assert caught.value.code == "range"


def test_rounding_is_right_in_the_mean():
    agreed = terms(size=200_000, bits=16)
    delta = np.full(200_000, 0.4 / agreed.limit, dtype=np.float32)
    numbers = encode(agreed, delta, 50, draws(1))[:-TAIL]
    assert set(numbers.tolist()) == {0, 1}
    assert abs(numbers.mean() - 0.4) < 0.005  # 5 standard errors


def test_what_is_lost_is_carried_and_sent_later():
    agreed = terms(size=30, bits=16, bound=0.25)
    carried, sent = np.zeros(30, dtype=np.float32), 0.0
    unit = agreed.mask_range / agreed.limit
    for number in range(50):
        delta = np.zeros(30, dtype=np.float32)
        delta[0] = 1.0 if number == 0 else 0.1 * unit
        q = encode(agreed, delta, 50, draws(number), carried)[0]
        sent += float(q.view(np.int16)) * unit
    assert abs(sent + carried[0] - (1.0 + 4.9 * unit)) < 1e-6
    assert abs(carried[0]) <= unit


@pytest.mark.parametrize("weight", [0, 51, 10**6])
def test_a_weight_that_the_round_does_not_allow_is_not_cut_but_refused(weight):
    encode(terms(), vector(30), 50, draws(0))
    with pytest.raises(ContributionError, match="expected 1 to 50") as caught:
        encode(terms(), vector(30), weight, draws(0))
    assert caught.value.code == "weights"


def test_an_update_of_which_much_would_be_cut_is_refused():
    delta = vector(200)
    delta[:10] = 1.5
    encode(terms(size=200), delta, 1, draws(0))
    delta[10] = -1.5
    with pytest.raises(ContributionError, match="6% of the update lies") as caught:
        encode(terms(size=200), delta, 1, draws(0))
    assert caught.value.code == "range"


def test_an_update_that_is_not_finite_is_never_masked():
    for bad in (np.nan, np.inf):
        delta = vector(30)
        delta[7] = bad
        with pytest.raises(TrainingError, match="not finite"):
            encode(terms(), delta, 1, draws(0))


def test_a_sum_with_a_mask_left_in_it_does_not_open():
    agreed = terms()
    total = encode(agreed, vector(30), 10, draws(0))
    for place in range(-TAIL, -LIMBS):
        wrong = total.copy()
        wrong[place] += 1
        with pytest.raises(ContributionError) as caught:
            decode(agreed, wrong, 1)
        assert caught.value.code == "masks"
    wrong = total.copy()
    wrong[-LIMBS:] = 0
    with pytest.raises(ContributionError, match="masks are left"):
        decode(agreed, wrong, 1)


def test_terms_under_which_sums_could_wrap_or_tell_are_refused():
    good = terms()
    check_terms(good)
    assert good.threshold == 3
    many = tuple((f"s{i:04d}", f"{i:064x}") for i in range(300))
    for change, code in [
        ({"members": good.members[:2], "min_cohort": 3}, "cohort"),
        ({"members": many}, "cohort"),
        ({"threshold": 2}, "threshold"),
        ({"members": tuple((s, "00" * 32) for s, _ in good.members)}, "roster"),
        ({"weight_cap": 0}, "weights"),
        ({"weight_cap": 10**7}, "weights"),
        ({"mask_bits": 8}, "headroom"),
        ({"slots": 4}, "headroom"),
        ({"slots": 300}, "headroom"),
    ]:
        with pytest.raises(ContributionError) as caught:
            check_terms(replace(good, **change))
        assert caught.value.code == code, change


@given(st.integers(2, 257), st.integers(0, 40), st.sampled_from([16, 32]))
def test_headroom_and_threshold_hold_for_every_number_of_sites(n, colluders, bits):
    roster = {f"s{i:04d}": f"{i:064x}" for i in range(n)}
    privacy = Privacy(mask_bits=bits, min_cohort=2, colluders=colluders)
    if (n + colluders) // 2 + 1 > n:
        with pytest.raises(ContributionError):
            terms_of(privacy, "run", 1, "cd" * 32, roster, 1, 1, n)
        return
    agreed = terms_of(privacy, "run", 1, "cd" * 32, roster, 1, 1, n)
    assert n * agreed.limit < 1 << (bits - 1)
    assert 2 * agreed.threshold > n + colluders
    assert n * 255 < 1 << bits  # a weight's bytes
