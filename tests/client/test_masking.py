"""What a site does with the orders of a masked round, and what it refuses by name."""

from dataclasses import replace

import numpy as np
import pytest

from client.mask_memory import MASKED, OPENED
from client.masking import SiteMasks
from client.peers import PEERS
from common.errors import ContributionError
from common.exchange import KeysOrder, OpenOrder, SharesOrder, TrainOrder
from common.parameters import digest_of
from tests.attacks.masked_lab import MODEL, Lab, identity_of, plan_of
from tests.plans import plan

FIVE = ["east", "mid", "north", "south", "west"]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, plan_of(), FIVE)


def refused(code, call, *args):
    with pytest.raises(ContributionError) as caught:
        call(*args)
    assert caught.value.code == code


def order_for(lab, sealed, name, model=MODEL, number=1):
    mine = {s: sealed[s][name] for s in FIVE if s != name}
    digest = digest_of(model)
    return TrainOrder("run", lab.plan.digest, number, 0, model, digest, sealed=mine)


def test_no_keys_are_made_for_a_roster_that_does_not_fit(lab):
    site, order = lab.sites["mid"], lab.keys_order()
    site.keys(order, lab.plan, 5)  # the control
    roster = dict(order.members)
    three = {n: roster[n] for n in FIVE[:3]}
    mine = {**roster, "mid": roster["east"], "east": roster["mid"]}
    for code, wrong, least in [
        ("cohort", replace(order, members=three), 4),
        ("cohort", replace(order, members={"mid": roster["mid"]}), 1),
        ("roster", replace(order, members=mine), 1),
        ("roster", replace(order, members={n: roster[n] for n in FIVE[2:]}), 1),
        ("plan", replace(order, plan_digest="00" * 32), 1),
        ("run", replace(order, run="../else"), 1),
        ("weights", replace(order, weight_cap=0), 1),
        ("headroom", replace(order, slots=2), 1),
    ]:
        refused(code, site.keys, wrong, lab.plan, least)
    clear = plan()
    refused("roster", site.keys, replace(order, plan_digest=clear.digest), clear, 1)


def test_a_site_that_changed_its_key_is_refused_until_the_engineer_agrees(lab):
    lab.announced()
    site, order = lab.sites["mid"], lab.keys_order(2)
    swapped = {**order.members, "east": "ab" * 32}
    refused("roster", site.keys, replace(order, members=swapped), lab.plan, 1)
    assert "ab" * 32 not in (lab.folder / "mid" / PEERS).read_text()
    (lab.folder / "mid" / PEERS).unlink()
    site.keys(replace(order, members=swapped), lab.plan, 1)


def test_shares_are_dealt_once_for_one_set_of_keys(lab):
    packed = lab.announced()
    site = lab.sites["mid"]
    order = SharesOrder("run", lab.plan.digest, 1, packed)
    first = site.shares(order).sealed
    assert site.shares(order).sealed == first
    fewer = {n: k for n, k in packed.items() if n != "west"}
    refused("spent", site.shares, replace(order, keys=fewer))
    without = {n: k for n, k in packed.items() if n != "mid"}
    refused("keys", site.shares, replace(order, keys=without))


def test_a_vector_is_masked_once_and_an_order_said_twice_has_one_answer(lab):
    _, sealed = lab.set_up()
    first = lab.masked("mid", sealed)
    again = lab.masked("mid", sealed)
    assert again is first
    other = order_for(lab, sealed, "mid", MODEL + np.float32(1))
    refused("spent", lab.sites["mid"].answered, other)


def test_what_is_not_set_up_with_this_process_is_refused(lab):
    _, sealed = lab.set_up()
    site = SiteMasks(lab.folder / "mid", "mid", identity_of("mid"))  # started again
    refused("keys", site.answered, order_for(lab, sealed, "mid"))
    told = OpenOrder("run", lab.plan.digest, 1, tuple(FIVE))
    refused("keys", site.open, told, 1)
    refused("keys", lab.sites["mid"].open, told, 1)  # it did not mask yet


def test_a_sum_is_opened_for_one_set_and_never_below_the_cohort(lab):
    _, sealed = lab.set_up()
    lab.all_masked(sealed)
    site = lab.sites["mid"]
    told = OpenOrder("run", lab.plan.digest, 1, tuple(FIVE))
    refused("cohort", site.open, replace(told, survivors=("east", "mid")), 1)
    refused("cohort", site.open, replace(told, survivors=tuple(FIVE[:4])), 5)
    first = site.open(told, 1)
    assert first.shares == site.open(told, 1).shares
    refused("spent", site.open, replace(told, survivors=tuple(FIVE[:4])), 1)
    assert not first.agreement


def test_nothing_is_released_before_enough_others_agreed(lab):
    _, sealed = lab.set_up()
    lab.all_masked(sealed)
    four = tuple(FIVE[:4])
    told = OpenOrder("run", lab.plan.digest, 1, four)
    words = {n: lab.sites[n].open(told, 1).agreement for n in four}
    assert all(len(word) == 64 for word in words.values())
    site = lab.sites["mid"]
    few = {n: words[n] for n in four[:2]}
    refused("survivors", site.open, replace(told, agreed=few), 1)
    opened = site.open(replace(told, agreed=words), 1)
    assert set(opened.shares) == set(FIVE)


def test_secrets_of_a_round_are_on_no_disk(lab):
    _, sealed = lab.set_up()
    lab.all_masked(sealed)
    lab.released(FIVE)
    site = lab.sites["mid"]
    held = [one for one in site._rounds.values() if one.made is not None]
    assert [one.terms.round for one in held] == [2]  # round 1's are gone already
    secrets = [getattr(held[0].made, f) for f in ("seal_key", "mask_key", "seed")]
    secrets += [s.seed for one in site._rounds.values() for s in one.held.values()]
    files = [p for p in lab.folder.rglob("*") if p.is_file()]
    assert {p.name for p in files} == {PEERS, OPENED, MASKED}
    for path in files:
        content = path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0
        assert not any(x in content or x.hex().encode() in content for x in secrets)


def test_an_update_of_another_size_is_not_masked(lab):
    order = replace(lab.keys_order(), size=MODEL.size + 1)
    assert isinstance(order, KeysOrder)
    packed = {n: s.keys(order, lab.plan, 1).keys for n, s in lab.sites.items()}
    sealed = lab.shared(packed)
    refused("model", lab.masked, "mid", sealed)
