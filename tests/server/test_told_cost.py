"""What sites told of their DP's cost: silence and nonsense are never a small cost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.record import SiteRound
from server.told_cost import range_of, told_by

COSTS = st.floats(0.0, 1e6)


def row(pld, prv, site="east", outcome="accepted") -> SiteRound:
    return SiteRound(site=site, outcome=outcome, epsilon_pld=pld, epsilon_prv=prv)


@given(st.lists(st.tuples(COSTS, COSTS), min_size=1))
def test_each_accountant_has_the_most_that_was_ever_told_of_it(steps):
    plds, prvs = (sorted(one) for one in zip(*steps, strict=True))
    rows = [row(*pair) for pair in zip(plds, prvs, strict=True)]
    others = [row(None, None, site="west"), row(None, None, outcome="late")]
    assert told_by([*rows, *others], "east") == (plds[-1], prvs[-1])


def test_the_accountants_are_taken_apart():
    assert told_by([row(1.0, 2.05), row(1.1, 2.0)], "east") == (1.1, 2.05)


@pytest.mark.parametrize("nonsense", [None, math.nan, math.inf, -math.inf, -0.1])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_update_without_sound_figures_spoils_them_all(nonsense, place):
    for spoilt in (row(nonsense, 1.0), row(1.0, nonsense)):
        rows = [row(1.0, 1.0), row(1.0, 1.0)]
        rows.insert(place, spoilt)
        assert told_by(rows, "east") == "not told"
        assert range_of(told_by(rows, "east")) == "not told"


def test_a_site_without_an_accepted_update_told_nothing():
    assert told_by([], "east") == "not told"
    assert told_by([row(1.0, 1.0, outcome="refused")], "east") == "not told"


@pytest.mark.parametrize(
    ("then", "said"), [(2.9, (3.0, 3.0)), (2.8, "fell"), (0.0, "fell")]
)
def test_a_cost_that_falls_by_more_than_rounding_is_not_believed(then, said):
    assert told_by([row(3.0, 1.0), row(then, 3.0)], "east") == said
    mirrored = [row(1.0, 3.0), row(3.0, then)]
    assert told_by(mirrored, "east") == said


@given(COSTS, COSTS)
def test_a_range_holds_the_larger_figure(pld, prv):
    low, _, high = range_of((pld, prv)).split()
    assert int(low) <= max(pld, prv) <= int(high) == int(low) + 1
