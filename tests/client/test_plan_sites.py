"""What an engineer confirmed is what takes part, whatever a hub names afterwards."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.desk import check_sites, decide, queue_plan, sites_of
from client.desk_file import read_desk
from client.peers import PEERS, check_peers, known_peers
from client.plan_sites import check_named, differences, may_be_masked
from client.policy import Policy
from common.errors import ContributionError, PolicyError, UsageError
from common.plan_file import plan_toml
from tests.client.conftest import slices

PLAN = slices(privacy__secure_aggregation="on")
AUTO = slices(privacy__secure_aggregation="auto")
THREE = {name: 64 * name[0] for name in ("a-site", "b-site", "c-site")}
FOUR = {**THREE, "d-site": 64 * "d"}
SWAPPED = {**THREE, "c-site": 64 * "e"}
TRUSTING = Policy(approve="auto")


@pytest.fixture
def site(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


def queue(site, sites=THREE, plan=PLAN, policy=None):
    return queue_plan(site, plan_toml(plan), "run", policy, sites)


def refused(site, sites, plan=PLAN):
    with pytest.raises(PolicyError, match="fedct client approve") as caught:
        check_sites(site, plan, sites)
    assert caught.value.code == "roster"
    return str(caught.value)


def test_approving_confirms_the_sites_that_stand_beside_the_plan(site):
    assert queue(site).sites == THREE
    queue(site, FOUR)  # what waits is what was looked at
    entry = decide(site, PLAN.digest, "approved")
    assert (entry.sites, entry.are_confirmed, entry.changed) == (THREE, True, {})
    check_sites(site, PLAN, THREE)
    check_sites(site, PLAN, dict(list(THREE.items())[:2]))  # who is not there yet
    assert known_peers(site) == THREE


@pytest.mark.parametrize(
    ("sites", "why"),
    [(FOUR, "d-site is new"), (SWAPPED, "c-site has another key")],
)
def test_others_are_refused_until_the_engineer_confirms_them(site, sites, why):
    queue(site)
    decide(site, PLAN.digest, "approved")
    assert why in refused(site, sites)
    assert sites_of(site, PLAN.digest) == THREE
    assert read_desk(site).plans[0].changed == sites
    check_sites(site, PLAN, THREE)
    decide(site, PLAN.digest, "approved")
    check_sites(site, PLAN, sites)
    check_peers(site, sites)  # a key that was met before gives way to a confirmed one
    if sites is SWAPPED:
        assert "c-site has another key" in refused(site, THREE)


def test_what_was_put_before_the_engineer_is_not_changed_unseen(site):
    queue(site)
    decide(site, PLAN.digest, "approved")
    refused(site, FOUR)
    refused(site, SWAPPED)
    check_sites(site, PLAN, THREE)
    assert read_desk(site).plans[0].changed == FOUR
    decide(site, PLAN.digest, "denied")
    queue(site, SWAPPED)
    assert decide(site, PLAN.digest, "approved").sites == THREE


def test_on_first_use_sites_may_come_but_none_under_another_key(site):
    entry = queue(site, policy=TRUSTING)
    assert (entry.state, entry.are_confirmed) == ("approved", False)
    check_sites(site, PLAN, FOUR)
    assert sites_of(site, PLAN.digest) == FOUR
    refused(site, SWAPPED)
    decide(site, PLAN.digest, "approved")  # the engineer looks, and takes the new key
    assert sites_of(site, PLAN.digest) == SWAPPED
    refused(site, FOUR)


def test_a_plan_of_unknown_sites_can_not_be_approved_by_hand(site):
    """As an older FedCT queued it; the hub names them when it asks again."""
    queue(site)
    path = site / "desk" / "desk.json"
    entry = read_desk(site).plans[0].model_copy(update={"sites": {}})
    desk = read_desk(site).model_copy(update={"plans": (entry,)})
    path.write_text(desk.model_dump_json())
    with pytest.raises(UsageError, match="did not name its sites"):
        decide(site, PLAN.digest, "approved")
    queue(site)
    assert decide(site, PLAN.digest, "approved").sites == THREE


def test_a_plan_without_masks_has_no_sites_to_confirm(site):
    clear = slices()
    assert not may_be_masked(clear)
    assert queue(site, THREE, clear).sites == {}
    assert decide(site, clear.digest, "approved").are_confirmed is False
    check_sites(site, clear, FOUR)
    assert not (site / PEERS).exists()


names = st.sampled_from(["a", "b", "c", "d", "e"])
rosters = st.dictionaries(names, st.sampled_from(["11" * 32, "22" * 32]), min_size=1)


@given(known=rosters, named=rosters, masks=st.sampled_from([PLAN, AUTO]))
def test_sites_pass_only_if_they_are_of_those_known_and_masks_stay(known, named, masks):
    passes = not differences(masks, known, named, is_confirmed=True)
    falls = masks is AUTO and len(named) < 3 <= len(known)
    assert passes == (named.items() <= known.items() and not falls)
    loosely = not differences(masks, known, named, is_confirmed=False)
    agree = all(known.get(n, k) == k for n, k in named.items())
    assert loosely == (agree and not falls)


def test_a_key_met_first_stays_until_a_person_confirms_another(site):
    check_peers(site, THREE)
    with pytest.raises(ContributionError, match="approve the plan again"):
        check_peers(site, SWAPPED)
    queue(site, SWAPPED)
    decide(site, PLAN.digest, "approved")
    check_peers(site, SWAPPED)


@pytest.mark.parametrize(
    "odd",
    [
        {"d-site\n": 64 * "d"},
        {"a-site\n": 64 * "d"},
        {"\nd-site": 64 * "d"},
        {"d site": 64 * "d"},
        {"": 64 * "d"},
        {"d-site": 64 * "d" + "\n"},
        {"d-site": 63 * "d"},
    ],
)
def test_a_name_or_key_that_is_none_to_the_last_character_is_refused(odd):
    check_named(PLAN, FOUR)  # the control
    with pytest.raises(PolicyError) as caught:
        check_named(PLAN, {**THREE, **odd})
    assert caught.value.code == "roster"
