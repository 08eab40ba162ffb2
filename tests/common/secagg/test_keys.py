from dataclasses import replace

import pytest

from common.errors import ContributionError
from common.plan_privacy import Privacy
from common.secagg.keys import (
    ANNOUNCEMENT_BYTES,
    RoundSecrets,
    announce,
    check_mask_key,
    check_seed,
    key_set,
    pair_key,
    unpack,
)
from common.secagg.sharing import SEALED_BYTES, deal, open_shares
from tests.common.secagg.cohort import LINEAGE, cohort, identities_of, names_of

PRIVACY = Privacy(min_cohort=2)


def packed(ready):
    return {s: a.pack() for s, a in ready.keys.announcements.items()}


def refused(code, call, *args):
    with pytest.raises(ContributionError) as caught:
        call(*args)
    assert caught.value.code == code


def test_both_sites_of_a_pair_derive_one_key_and_no_other_pair_does():
    ready = cohort(4, privacy=PRIVACY)
    found = {}
    for a in ready.keys.sites:
        for b in ready.keys.sites:
            if a != b:
                secret = ready.made[a].mask_key
                found[a, b] = pair_key(ready.keys, LINEAGE, a, secret, b)
    assert all(found[a, b] == found[b, a] for a, b in found)
    assert len(set(found.values())) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"run": "other"},
        {"round": 2},
        {"plan_digest": "00" * 32},
        {"threshold": 4},
        {"min_cohort": 4},
        {"mask_bits": 16},
        {"mask_range": 2.0},
        {"weight_cap": 51},
        {"size": 41},
        {"slots": 6},
        {"contract": 99},
    ],
)
def test_every_term_is_bound_by_the_signature(change):
    ready = cohort(5, privacy=PRIVACY)
    key_set(ready.terms, packed(ready))  # the control
    refused("signature", key_set, replace(ready.terms, **change), packed(ready))


def test_keys_that_a_site_did_not_sign_are_refused():
    ready = cohort(4, privacy=PRIVACY)
    a, b, *_ = ready.keys.sites
    good = packed(ready)
    mine = announce(ready.terms, a, RoundSecrets(), ready.identities[b]).pack()
    refused("signature", key_set, ready.terms, {**good, a: mine})
    refused("signature", key_set, ready.terms, {**good, a: good[b]})
    refused("keys", key_set, ready.terms, {**good, a: good[a][:-1]})
    refused("roster", key_set, ready.terms, {**good, "stranger": good[a]})
    for place in range(0, ANNOUNCEMENT_BYTES, 7):
        bent = bytearray(good[a])
        bent[place] ^= 1
        refused("signature", key_set, ready.terms, {**good, a: bytes(bent)})


def test_a_site_that_copies_anothers_round_key_is_refused():
    ready = cohort(4, privacy=PRIVACY)
    a, b, *_ = ready.keys.sites
    stolen = replace(RoundSecrets(), mask_key=ready.made[b].mask_key)
    copied = announce(ready.terms, a, stolen, ready.identities[a]).pack()
    refused("keys", key_set, ready.terms, {**packed(ready), a: copied})


def test_too_few_keys_make_no_round():
    ready = cohort(5, privacy=PRIVACY)
    few = dict(list(packed(ready).items())[:2])
    refused("cohort", key_set, ready.terms, few)


def test_a_point_of_low_order_makes_no_key():
    ready = cohort(3, privacy=PRIVACY)
    a, b, _ = ready.keys.sites
    keys = replace(
        ready.keys,
        announcements={
            **ready.keys.announcements,
            b: replace(ready.keys.announcements[b], mask_public=bytes(32)),
        },
    )
    refused("keys", pair_key, keys, LINEAGE, a, ready.made[a].mask_key, b)


def test_shares_open_for_their_receiver_alone():
    ready = cohort(4, privacy=PRIVACY)
    a, b, c, d = ready.keys.sites
    sealed = {s: deal(ready.keys, s, ready.made[s])[1] for s in ready.keys.sites}
    assert {len(x) for one in sealed.values() for x in one.values()} == {SEALED_BYTES}
    mine = {s: sealed[s][a] for s in (b, c, d)}
    open_shares(ready.keys, a, ready.made[a], mine)  # the control
    bent = bytearray(mine[b])
    bent[20] ^= 1
    for wrong in (
        {**mine, b: sealed[b][c]},  # another's
        {**mine, b: sealed[c][a]},  # another sender's
        {**mine, b: bytes(bent)},
        {**mine, b: mine[b][:-1]},
        {s: mine[s] for s in (b, c)},
        {**mine, a: mine[b]},
    ):
        refused("share", open_shares, ready.keys, a, ready.made[a], wrong)


def test_shares_of_another_round_do_not_open():
    identities = identities_of(names_of(4))
    first = cohort(identities=identities, privacy=PRIVACY)
    second = cohort(identities=identities, privacy=PRIVACY, number=2)
    a, *others = first.keys.sites
    old = {s: deal(first.keys, s, first.made[s])[1][a] for s in others}
    refused("share", open_shares, second.keys, a, second.made[a], old)


def test_joined_secrets_are_held_against_what_was_announced():
    ready = cohort(3, privacy=PRIVACY)
    a, b, _ = ready.keys.sites
    check_seed(ready.keys, a, ready.made[a].seed)
    check_mask_key(ready.keys, a, ready.made[a].mask_key)
    refused("share", check_seed, ready.keys, a, ready.made[b].seed)
    refused("share", check_mask_key, ready.keys, a, ready.made[b].mask_key)


def test_secrets_are_fresh_and_never_shown():
    one, other = RoundSecrets(), RoundSecrets()
    fields = ("seal_key", "mask_key", "seed")
    assert len({getattr(x, f) for x in (one, other) for f in fields}) == 6
    assert repr(one) == "RoundSecrets()"
    assert unpack(bytes(ANNOUNCEMENT_BYTES)).pack() == bytes(ANNOUNCEMENT_BYTES)
