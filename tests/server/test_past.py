"""What a round goes on from: laws of the journal's last rounds."""

from dataclasses import replace

import pytest

from common.secagg.lineage import FRESH
from server.past import SELDOM, STUCK, Past, past_of
from server.record import RoundRecord, SiteRound
from tests.common.secagg.cohort import cohort

SITES = ("east", "mid", "west")


def closed(number, accepted=SITES, *, anew=False, cap=10, norm=None):
    rows = [
        SiteRound(
            site=s,
            outcome="accepted" if s in accepted else "late",
            update_norm=norm,
        )
        for s in SITES
    ]
    return RoundRecord(
        number=number,
        outcome="closed",
        sites=rows,
        model_digest="",
        seconds=0.0,
        lineage=f"after {number}",
        began_anew=anew,
        weight_cap=cap,
    )


def void(number):
    empty = {"outcome": "void", "lineage": "", "began_anew": None, "weight_cap": None}
    return closed(number).model_copy(update=empty)


def test_before_the_first_sum_there_is_nothing():
    for records in ([], [void(1)]):
        past = past_of(records, SITES)
        assert (past.since, past.lineage) == (dict.fromkeys(SITES, 0), FRESH)
        assert past.in_last_sum == frozenset()


def test_the_last_sum_is_that_of_the_last_round_that_counted():
    past = past_of([closed(1, anew=True), closed(2, SITES[:2]), void(3)], SITES)
    assert past.since == {"east": 2, "mid": 2, "west": 1}
    assert past.in_last_sum == {"east", "mid"}
    assert past.lineage == "after 2"


@pytest.mark.parametrize("voids", range(4))
def test_after_some_void_rounds_nobody_goes_on(voids):
    records = [closed(1, anew=True), *(void(2 + n) for n in range(voids))]
    assert (past_of(records, SITES).lineage == FRESH) == (voids >= STUCK)


def test_who_joins_waits_once_all_began_anew_for_another():
    records = [closed(1, anew=True), closed(2, SITES[:2])]

    def may(records, fewest=2):
        return past_of(records, SITES).may_take_part(SITES, SITES, fewest)

    assert may(records) == {*SITES}  # the first round's beginning is nobody's fault
    records.append(closed(3, SITES[:2], anew=True))
    for number in range(4, 4 + SELDOM):
        assert may(records) == {"east", "mid"}
        assert may(records, fewest=3) == {*SITES}  # it is needed
        assert may([*records, void(number)]) == {*SITES}  # or may be
        records.append(closed(number, SITES[:2]))
    assert may(records) == {*SITES}


def test_updates_are_held_against_the_last_norms_there_were():
    records = [closed(1, norm=2.0), closed(2, norm=3.0), void(3)]
    assert past_of(records, SITES).last_norm == 3.0


def test_a_round_goes_on_among_the_sites_and_under_the_cap_of_the_last():
    keys = cohort(3).keys
    same = Past(dict.fromkeys(keys.sites, 4), weight_cap=keys.terms.weight_cap)
    assert same.goes_on(keys)
    assert not replace(same, since={**same.since, keys.sites[0]: 3}).goes_on(keys)
    assert not replace(same, weight_cap=keys.terms.weight_cap + 1).goes_on(keys)
    fewer = dict(list(keys.announcements.items())[1:])
    assert same.goes_on(replace(keys, announcements=fewer))  # one was lost
