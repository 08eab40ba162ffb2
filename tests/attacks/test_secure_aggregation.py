"""A server after one site's update: every lie of the list, against weak sites and ours.

Each control is a site with the one check taken out that the attack is about: there the
server gets the update, to the last bit of its rounding.
"""

import secrets
from dataclasses import replace

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import client.masking
from client.desk import decide, queue_plan
from client.mask_memory import OPENED
from client.masking import SiteMasks
from client.peers import PEERS
from client.policy import Policy
from client.rules import permitted
from client.state import states_of
from common.errors import ContributionError, PolicyError
from common.exchange import Hello, SharesOrder
from common.plan_file import plan_toml
from common.plan_privacy import Privacy
from common.secagg.fixed_point import TAIL, decode, encode
from common.secagg.keys import (
    Announcement,
    KeySet,
    RoundSecrets,
    announce,
    commitment_of,
    key_set,
    pair_key,
    self_key,
    share_key,
    unpack,
)
from common.secagg.masks import apply_masks
from common.secagg.rounds import mask, open_sum, release
from common.secagg.shamir import SHARE_BYTES
from common.secagg.sharing import deal, open_shares
from common.signing import public_text
from tests.attacks.masked_lab import (
    Lab,
    identity_of,
    is_leaked,
    joined,
    lineage_in,
    plan_of,
    unmask,
    update_of,
)
from tests.attacks.rows import SERVER, row
from tests.client.conftest import write_hospital
from tests.common.secagg.cohort import LINEAGE, cohort, draws

TRIALS = 10
FIVE = ["east", "mid", "north", "south", "west"]
MASKS = "secure aggregation"


class Forgetful(SiteMasks):
    """Answers as often as it is asked."""

    def open(self, order, min_cohort):
        self._rounds[order.run, order.round].told = None
        (states_of(self._folder, order.run) / OPENED).unlink(missing_ok=True)
        return super().open(order, min_cohort)


def lies_in_wait(site_class, folder, trial):
    """Calls a site lost although its vector came, then asks for the other shares."""
    lab = Lab(folder, plan_of(), FIVE, site_class, trial=trial)
    keys, sealed = lab.set_up()
    masked = lab.all_masked(sealed)
    victim, *others = FIVE
    got = lab.released(others, names=others)
    key = joined(keys, {s: x[victim] for s, x in got.items()})
    more = lab.released(FIVE, names=FIVE)  # and now with it, so that its seed comes out
    seed = joined(keys, {s: x[victim] for s, x in more.items()})
    if key is None or seed is None:
        return False
    # With the victim's mask key its pairwise masks are known, with its seed the rest.

    lineage = lineage_in(keys)
    pairs = {s: pair_key(keys, lineage, victim, key, s) for s in others}
    numbers = masked[victim].copy()
    minus = [k for s, k in pairs.items() if victim < s]
    plus = [k for s, k in pairs.items() if victim > s]
    minus.append(self_key(keys, lineage, victim, seed))
    apply_masks(numbers, plus=plus, minus=minus)

    try:
        return is_leaked(decode(keys.terms, numbers, 1).mean, [victim], trial)
    except ContributionError:
        return False


@row(SERVER, "asks for both kinds of share of one site", MASKS, short=True)
def test_no_site_gives_both_shares_of_another(tmp_path, told):
    weak = sum(lies_in_wait(Forgetful, tmp_path / f"w{i}", i) for i in range(TRIALS))
    ours = sum(lies_in_wait(SiteMasks, tmp_path / f"o{i}", i) for i in range(TRIALS))
    told(f"{weak} of {TRIALS} updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def opens_shares_with_the_mask_key(one_pair: bool) -> bool:
    """Has the mask key of a site it calls lost; are its sealed shares open by that?"""
    ready = cohort(5)
    keys, made = ready.keys, ready.made
    victim, *others = keys.sites
    if one_pair:  # as if the protocol had a single pair per site
        made = {s: replace(m, seal_key=m.mask_key) for s, m in made.items()}
        said = {
            s: replace(a, seal_public=a.mask_public)
            for s, a in keys.announcements.items()
        }
        keys = KeySet(keys.terms, said, keys.transcript)
    _, sealed = deal(keys, victim, made[victim])
    known = made[victim].mask_key  # joined from the others' shares
    found = {}
    for peer in others:
        cipher = AESGCM(share_key(keys, known, peer, victim, peer))
        try:
            content = cipher.decrypt(
                sealed[peer][:12], sealed[peer][12:], keys.transcript
            )
        except InvalidTag:
            continue
        found[peer] = content[:SHARE_BYTES]
    return joined(keys, found) == made[victim].seed


@row(SERVER, "opens sealed shares with a lost site's mask key", MASKS, short=True)
def test_the_key_that_is_given_away_opens_no_share(told):
    weak = sum(opens_shares_with_the_mask_key(True) for _ in range(TRIALS))
    ours = sum(opens_shares_with_the_mask_key(False) for _ in range(TRIALS))
    told(f"one key pair: {weak} of {TRIALS} seeds", f"two pairs: {ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


class Trusting(SiteMasks):
    """Takes round keys as they come."""

    def _dealt(self, one, packed):
        found = {s: unpack(packed[s]) for s in sorted(packed)}
        one.keys = KeySet(one.terms, found, b"trusted")
        mine, one.dealt = deal(one.keys, self._site, one.made)
        one.held = {self._site: mine}
        return one.dealt


def stands_between(site_class, folder, trial):
    """Gives one site round keys of its own in all others' place."""
    lab = Lab(folder, plan_of(), FIVE, site_class, trial=trial)
    packed = lab.announced()
    victim, *others = FIVE
    made = {s: RoundSecrets() for s in others}
    mine = {
        s: announce(lab.terms(), s, made[s], identity_of("the server")).pack()
        for s in others
    }
    shown = {**mine, victim: packed[victim]}

    order = SharesOrder("run", lab.plan.digest, 1, shown)
    try:
        sealed = lab.sites[victim].shares(order).sealed
    except ContributionError:
        return False
    found = {s: unpack(shown[s]) for s in sorted(shown)}
    keys = KeySet(lab.terms(), found, b"trusted")
    back = {s: {victim: deal(keys, s, made[s])[1][victim]} for s in others}
    total = lab.masked(victim, back)
    held = {s: _opened(keys, s, made[s], victim, sealed[s]) for s in others}
    seed = joined(keys, {s: x.seed for s, x in held.items()})
    secrets_known = {s: made[s].mask_key for s in others}
    return is_leaked(
        unmask(keys, total, [victim], {victim: seed}, secrets_known), [victim], trial
    )


def _opened(keys, site, made, sender, sealed):
    pair = {s: keys.announcements[s] for s in (site, sender)}
    return open_shares(
        KeySet(keys.terms, pair, keys.transcript), site, made, {sender: sealed}
    )[sender]


@row(SERVER, "swaps the sites' round keys for its own", MASKS, short=True)
def test_no_site_takes_round_keys_that_their_site_did_not_sign(tmp_path, told):
    weak = sum(stands_between(Trusting, tmp_path / f"w{i}", i) for i in range(TRIALS))
    ours = sum(stands_between(SiteMasks, tmp_path / f"o{i}", i) for i in range(TRIALS))
    told(f"{weak} of {TRIALS} updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def invents_sites(
    folder,
    trial,
    *,
    names,
    forget=False,
    rules=lambda order: None,
    named=None,
    **privacy,
):
    """Is every site of the roster but one; shows itself under the names given.

    `rules` are those that the hospital has besides, and raises what they refuse;
    `named` are the sites that it names at the roll call, if others.
    """
    lab = Lab(folder, plan_of(**privacy), FIVE, trial=trial)
    lab.set_up()  # everybody has met once
    victim = FIVE[0]
    site = lab.sites[victim]
    if forget:
        (folder / victim / PEERS).unlink()
    fakes = {n: identity_of(f"fake {n}") for n in names}
    members = {n: public_text(k.public_key()) for n, k in fakes.items()}
    members[victim] = lab.roster[victim]

    try:
        text = plan_toml(lab.plan)
        rules(Hello("run", lab.plan.digest, text, "layout", named or members))
        rules(lab.keys_order(2, members))
        said = site.keys(lab.keys_order(2, members), lab.plan, 1).keys
        terms = lab.terms(2, members)
        made = {n: RoundSecrets() for n in fakes}
        packed = {n: announce(terms, n, made[n], k).pack() for n, k in fakes.items()}
        packed[victim] = said
        order = SharesOrder("run", lab.plan.digest, 2, packed)
        rules(order)
        sealed = site.shares(order).sealed
    except (ContributionError, PolicyError):
        return False

    keys = key_set(terms, packed)
    lab.names = sorted(members)
    back = {s: {victim: deal(keys, s, made[s])[1][victim]} for s in fakes}
    total = lab.masked(victim, back, number=2)
    held = {s: _opened(keys, s, made[s], victim, sealed[s]) for s in fakes}
    # The made-up sites need not even ask the victim: they hold enough shares.
    seed = joined(keys, {s: x.seed for s, x in held.items()})
    known = {s: m.mask_key for s, m in made.items()}
    found = unmask(keys, total, [victim], {victim: seed or b""}, known)
    return is_leaked(found, [victim], trial)


@row(SERVER, "replaces known sites by its own", "keys met before", short=True)
def test_a_known_site_can_not_be_replaced(tmp_path, told):
    def attack(i, **more):
        return invents_sites(tmp_path / f"{i}{more}", i, names=FIVE[1:], **more)

    weak = sum(attack(i, forget=True) for i in range(TRIALS))
    ours = sum(attack(i) for i in range(TRIALS))
    told(f"first contact: {weak} of {TRIALS} updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


TRUE_SITES = {n: public_text(identity_of(n).public_key()) for n in FIVE}


def rules_of(folder, approve):
    """A hospital's rules; an engineer who is asked has confirmed the true sites."""
    write_hospital(folder, Policy(approve=approve), folder)
    plan = plan_of()
    if approve == "ask":
        queue_plan(folder, plan_toml(plan), "run", sites=TRUE_SITES)
        decide(folder, plan.digest, "approved")

    def rules(order):
        with permitted(folder, order, lambda done, steps: None):
            pass

    return rules


@row(SERVER, "invents all other sites at first contact", "confirmed sites", short=True)
@pytest.mark.parametrize("names", [FIVE[1:], ["made-up-1", "made-up-2", "made-up-3"]])
def test_sites_that_nobody_confirmed_get_no_keys(tmp_path, told, names):
    def attack(i, approve, **more):
        folder = tmp_path / f"{i}-{approve}{len(more)}"
        rules = rules_of(folder / FIVE[0], approve)
        return invents_sites(folder, i, names=names, forget=True, rules=rules, **more)

    weak = sum(attack(i, "auto") for i in range(TRIALS))
    ours = sum(
        attack(i, "ask", **more)  # named at the roll call, or only in the round
        for i in range(TRIALS)
        for more in ({}, {"named": TRUE_SITES})
    )
    told(f"first use trusted: {weak} of {TRIALS} updates", f"{ours} of {2 * TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


@row(SERVER, "shows a roster of one or two", "smallest cohort", short=True)
def test_a_roster_below_the_cohort_gets_no_keys(tmp_path, told):
    def attack(i, count, cohort_):
        names = [f"made-up-{k}" for k in range(count)]
        folder = tmp_path / f"{i}-{count}-{cohort_}"
        return invents_sites(folder, i, names=names, min_cohort=cohort_)

    weak = sum(attack(i, 2, 2) for i in range(TRIALS))
    ours = sum(attack(i, n, 4) for i in range(TRIALS) for n in (0, 1, 2))
    told(f"cohort of 2: {weak} of {TRIALS} updates", f"{ours} of {3 * TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


TEN = [f"s{i}" for i in range(10)]


class Credulous(SiteMasks):
    """Releases shares for whatever set it is told first, without asking who agrees."""

    def open(self, order, min_cohort):
        real = client.masking.check_agreement
        client.masking.check_agreement = lambda *a: None
        try:
            return super().open(replace(order, agreed={"-": b"-"}), min_cohort)
        finally:
            client.masking.check_agreement = real


def tells_different_sets(site_class, folder, trial, shape):
    """Opens a sum of fewer sites than the threshold, by telling each another set.

    Ten sites, threshold six. Each set that is told has six sites, and each site is told
    one; yet each of six sites is left out six times, so that their mask keys come out
    and only four are left in the sum.
    """
    lab = Lab(folder, plan_of(min_cohort=6), TEN, site_class, trial=trial)
    keys, sealed = lab.set_up()
    masked = lab.all_masked(sealed)
    inside, outside = TEN[:4], TEN[4:]
    sets, times = {}, dict.fromkeys(outside, 0)
    for name in [*outside, *inside]:  # leave out who was left out least, never itself
        others = sorted((n for n in outside if n != name), key=lambda n: times[n])
        left = others[:4]
        times |= {n: times[n] + 1 for n in left}
        sets[name] = tuple(n for n in TEN if n not in left)
    if shape == "half full":  # the rest is told that nobody is lost
        sets |= dict.fromkeys(TEN[5:], tuple(TEN))
    first = {n: lab.open(n, sets[n]) for n in TEN}
    words = {n: o.agreement for n, o in first.items() if o and o.agreement}
    second = {n: lab.open(n, sets[n], agreed=words) for n in TEN if n in words}
    got = [o for o in (*first.values(), *second.values()) if o and o.shares]
    given = {o.site: (sets[o.site], o.shares) for o in got}
    secret = {
        n: joined(keys, {s: x[n] for s, (told, x) in given.items() if n not in told})
        for n in outside
    }
    seeds = {
        n: joined(keys, {s: x[n] for s, (told, x) in given.items() if n in told})
        for n in inside
    }
    if None in (*secret.values(), *seeds.values()):
        return False
    total = sum(masked[n] for n in inside)
    return is_leaked(unmask(keys, total, inside, seeds, secret), inside, trial)


@row(SERVER, "tells sites different survivors (sum of 4, cohort 6)", MASKS, short=True)
def test_no_sum_smaller_than_the_cohort_is_put_together(tmp_path, told):
    def attack(kind, i, shape="all differ"):
        folder = tmp_path / f"{kind.__name__}{i}{shape}"
        return tells_different_sets(kind, folder, i, shape)

    weak = sum(attack(Credulous, i) for i in range(TRIALS))
    ours = sum(
        attack(SiteMasks, i, shape)
        for i in range(TRIALS)
        for shape in ("all differ", "half full")
    )
    told(f"{weak} of {TRIALS} sums of 4", f"{ours} of {2 * TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def repeats_the_round(folder, trial, *, forget):
    """Opens a round, says it crashed, and opens it again without one site."""
    lab = Lab(folder, plan_of(), FIVE, trial=trial)
    means = []
    for survivors in (FIVE, FIVE[1:]):
        keys, sealed = lab.set_up()
        masked = lab.all_masked(sealed)
        if forget:
            for name in FIVE:
                (folder / name / "state" / "run" / OPENED).unlink(missing_ok=True)
        got = lab.released(survivors)
        total = sum(masked[n] for n in survivors)
        try:
            open_sum(keys, lineage_in(keys), tuple(survivors), got, total)
        except ContributionError:
            return False
        means.append(decode(keys.terms, total, len(survivors)).mean)
    return is_leaked(5 * means[0] - 4 * means[1], FIVE[:1], trial)


@row(SERVER, "repeats a round without one site, and subtracts", MASKS, short=True)
def test_a_round_is_opened_for_one_set_of_sites_only(tmp_path, told):
    weak = sum(
        repeats_the_round(tmp_path / f"w{i}", i, forget=True) for i in range(TRIALS)
    )
    ours = sum(
        repeats_the_round(tmp_path / f"o{i}", i, forget=False) for i in range(TRIALS)
    )
    told(f"{weak} of {TRIALS} updates", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def gives_another_model(bound: bool) -> bool:
    """Does a sum open if one site trained from a model made for it alone?"""
    ready = cohort(5)
    total = np.zeros(40 + TAIL, np.uint32)
    for site in ready.keys.sites:
        numbers = encode(ready.terms, update_of(site, 40), 10, draws(0))
        is_victim = site == ready.keys.sites[0]
        lineage = "00" * 32 if is_victim and bound else LINEAGE
        mask(ready.keys, site, ready.made[site], lineage, numbers)
        total += numbers
    sites = ready.keys.sites
    got = {s: release(ready.keys, sites, ready.held[s]) for s in sites}
    open_sum(ready.keys, LINEAGE, sites, got, total)

    try:
        decode(ready.terms, total, 5)
    except ContributionError:
        return False
    return True


@row(SERVER, "gives one site a crafted model", "model in the masks", short=True)
def test_a_sum_over_different_models_does_not_open(told):
    weak = sum(gives_another_model(False) for _ in range(TRIALS))
    ours = sum(gives_another_model(True) for _ in range(TRIALS))
    told(f"not bound: {weak} of {TRIALS} sums open", f"{ours} of {TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def finds_the_seed(draw) -> bool:
    """Tries 65,536 seeds against what the site committed to."""
    ready = cohort(3)
    site = ready.keys.sites[0]
    guesses = [n.to_bytes(32) for n in range(1 << 16)]
    said = commitment_of(ready.terms, site, draw())
    return any(commitment_of(ready.terms, site, g) == said for g in guesses)


@row(SERVER, "searches for a seed (65,536 tries)", MASKS, short=True)
def test_a_seed_is_not_found_by_trying(told):
    weak = finds_the_seed(lambda: secrets.randbelow(1 << 16).to_bytes(32))
    ours = finds_the_seed(lambda: RoundSecrets().seed)
    told(f"16 random bits: {int(weak)} of 1", f"256 bits: {int(ours)} of 1")
    assert (weak, ours) == (True, False)


def joins_shares(count: int) -> bool:
    """Is a site's seed known from the shares of so many sites?"""
    ready = cohort(5)
    victim, *others = ready.keys.sites
    shares = {s: ready.held[s][victim].seed for s in others[:count]}
    return joined(ready.keys, shares) == ready.made[victim].seed


@row(SERVER, "joins shares of too few sites", "threshold of shares", short=True)
def test_fewer_shares_than_the_threshold_say_nothing(told):
    weak = sum(joins_shares(3) for _ in range(TRIALS))
    ours = sum(joins_shares(n) for _ in range(TRIALS) for n in (1, 2))
    told(f"3 of 3: {weak} of {TRIALS} seeds", f"1 or 2 of 3: {ours} of {2 * TRIALS}")
    assert (weak, ours) == (TRIALS, 0)


def sees_through(bits: int, masked: bool) -> tuple[float, float]:
    """Correlation with the update of what leaves; chi-square per df of its top byte."""

    size = 200_000
    ready = cohort(5, size=size, privacy=Privacy(mask_bits=bits, mask_range=1.0))
    site = ready.keys.sites[2]
    delta = update_of(site, size)
    numbers = encode(ready.terms, delta, 50, draws(1))
    if masked:
        mask(ready.keys, site, ready.made[site], LINEAGE, numbers)
    signed = numbers[:size].view(f"i{bits // 8}").astype(np.float64)
    correlation = abs(float(np.corrcoef(signed, delta)[0, 1]))
    counts = np.bincount(numbers[:size] >> (bits - 8), minlength=256)
    expected = size / 256
    return correlation, float(((counts - expected) ** 2 / expected).sum() / 255)


@pytest.mark.parametrize("bits", [32, 16])
@row(SERVER, "looks for the update in what leaves (statistics)", MASKS, short=True)
def test_a_masked_vector_is_noise(told, bits):
    weak, spread = sees_through(bits, masked=False)
    ours, chi = sees_through(bits, masked=True)
    told(
        f"{bits} bits: correlation {weak:.3f}, chi-square/df {spread:.0f}",
        f"correlation {ours:.4f}, chi-square/df {chi:.2f}",
    )
    assert weak > 0.99
    assert spread > 100
    assert ours < 5 / np.sqrt(200_000)
    assert 0.6 < chi < 1.5  # df = 255: five standard errors are 0.44


def test_masks_of_two_rounds_have_nothing_in_common(tmp_path):
    lab = Lab(tmp_path, plan_of(), FIVE, size=50_000)
    vectors = []
    for number in (1, 2):
        _, sealed = lab.set_up(number)
        vectors.append(lab.masked("mid", sealed, number).view(np.int32).astype(float))
    assert abs(np.corrcoef(*vectors)[0, 1]) < 5 / np.sqrt(50_000)


def test_an_announcement_says_nothing_twice():
    ready = cohort(3)
    packed = [a.pack() for a in ready.keys.announcements.values()]
    assert len(set(packed)) == 3
    assert isinstance(unpack(packed[0]), Announcement)
