"""Under masks a site goes on from what all sites remember alike, or from nothing."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import client.masking
from client.lineage import lineage_of
from common.errors import ContributionError, StoreError
from common.exchange import JudgeOrder, TrainOrder, Update
from common.parameters import digest_of
from common.secagg.lineage import FRESH, lineage_after
from tests.attacks.masked_lab import MODEL, Lab, plan_of, update_of
from tests.client.conftest import order, quiet, slices

NAMES = ["east", "mid", "west"]
SEALED = {"south": b"share"}


def masked(plan, number, since, lineage=FRESH):
    return order(plan, number, since, sealed=SEALED, lineage=lineage)


def first_rounds(service, plan, rounds):
    """The order of each round, all of one chain."""
    done, lineage = [], FRESH
    for number in range(1, rounds + 1):
        one = masked(plan, number, number - 1, lineage)
        service.train(one, quiet)
        lineage = lineage_of(one)
        done.append(one)
    return done


chains = st.lists(st.tuples(st.integers(1, 10**6), st.text("0123456789abcdef")))


@given(chains, chains)
def test_two_chains_have_one_lineage_only_if_they_are_the_same(one, other):
    def end(chain):
        lineage = FRESH
        for number, model in chain:
            lineage = lineage_after(lineage, number, model)
        return lineage

    assert (end(one) == end(other)) == (one == other)


def test_in_the_clear_there_is_no_lineage(make_service):
    plan = slices()
    service = make_service(plan)
    assert lineage_of(order(plan, 1, 0)) == FRESH
    service.train(order(plan, 1, 0), quiet)
    service.train(replace(order(plan, 2, 1), lineage="ab"), quiet)  # nobody looks


def test_the_right_chain_trains_as_in_the_clear(make_service, tmp_path):
    plan = slices()
    clear, hidden = (
        make_service(plan, tmp_path / "c"),
        make_service(plan, tmp_path / "m"),
    )
    orders = first_rounds(hidden, plan, 2)
    for one in orders:
        clear.train(replace(one, sealed={}), quiet)
    last = masked(plan, 3, 2, lineage_of(orders[-1]))
    wanted = clear.train(replace(last, sealed={}), quiet).delta
    assert np.array_equal(hidden.train(last, quiet).delta, wanted)
    again = make_service(plan, tmp_path / "m")  # from its disk
    assert np.array_equal(again.train(last, quiet).delta, wanted)


def test_another_chain_is_refused_and_nothing_changes(make_service, tmp_path):
    plan = slices()
    service = make_service(plan)
    orders = first_rounds(service, plan, 2)
    right = lineage_of(orders[-1])
    kept = {p: p.read_bytes() for p in (tmp_path / "site").rglob("*.state")}
    for since, lineage in [
        (2, lineage_of(orders[0])),  # a round further than it was told
        (1, right),  # a round less
        (2, lineage_after(lineage_of(orders[0]), 2, "00" * 32)),  # another model
        (0, right),  # a site without memory, as if it had some
    ]:
        wrong = masked(plan, 3, since, lineage)
        with pytest.raises(ContributionError) as caught:
            service.train(wrong, quiet)
        assert caught.value.code == "lineage"
        there = {p: p.read_bytes() for p in (tmp_path / "site").rglob("*.state")}
        assert there == kept


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fresh_optimiser_is_one_that_never_saw_another_model(
    make_service, tmp_path, optimizer
):
    plan = slices(training__optimizer=optimizer)
    old, new = (
        make_service(plan, tmp_path / "old"),
        make_service(plan, tmp_path / "new"),
    )
    orders = first_rounds(old, plan, 2)
    kept = make_service(plan, tmp_path / "kept")
    first_rounds(kept, plan, 2)
    fresh = old.train(masked(plan, 3, 2), quiet).delta
    assert np.array_equal(fresh, new.train(masked(plan, 3, 0), quiet).delta)
    going_on = kept.train(masked(plan, 3, 2, lineage_of(orders[-1])), quiet).delta
    assert not np.array_equal(fresh, going_on)


def test_a_site_that_lost_its_state_takes_part_where_all_begin_anew(
    make_service, tmp_path
):
    plan = slices()
    orders = first_rounds(make_service(plan), plan, 2)
    for path in (tmp_path / "site").rglob("*.state"):
        path.unlink()
    again = make_service(plan)
    with pytest.raises(StoreError, match="lost its training state of round 2"):
        again.train(masked(plan, 3, 2, lineage_of(orders[-1])), quiet)
    whole = make_service(plan, tmp_path / "whole")
    wanted = whole.train(masked(plan, 3, 0), quiet).delta
    assert np.array_equal(again.train(masked(plan, 3, 2), quiet).delta, wanted)
    model = orders[-1].model
    asked = "run", plan.digest, 2, 2, "validation", model, digest_of(model)
    judged = again.judge(JudgeOrder(*asked)).sums
    assert judged["cases"] > 0
    expected = whole.judge(JudgeOrder(*asked)).sums
    assert all(np.array_equal(judged[name], expected[name]) for name in expected)


def test_norm_layers_stay_a_sites_own_where_optimisers_begin_anew(
    make_service, tmp_path
):
    plan = slices("fedbn")
    service = make_service(plan)
    first_rounds(service, plan, 2)
    fresh = service.train(masked(plan, 3, 2), quiet).delta
    other = make_service(plan, tmp_path / "other")
    begun = other.train(masked(plan, 3, 0), quiet).delta
    assert not np.array_equal(fresh, begun)


def carried_into(folder, monkeypatch, since, lineage):
    """What a site of 16 bits adds to its update of round 2."""
    lab, seen = Lab(folder, plan_of(mask_bits=16), NAMES), []
    _, sealed = lab.set_up(1)
    lab.masked("mid", sealed, 1)
    _, sealed = lab.set_up(2)
    mine = {s: sealed[s]["mid"] for s in NAMES if s != "mid"}
    given = "run", lab.plan.digest, 2, since, MODEL, digest_of(MODEL)
    one = TrainOrder(*given, sealed=mine, lineage=lineage)
    real = client.masking.encode

    def watched(terms, delta, weight, rounding, carried):
        seen.append(carried.copy())
        return real(terms, delta, weight, rounding, carried)

    with monkeypatch.context() as patched:
        patched.setattr(client.masking, "encode", watched)
        assert lab.sites["mid"].answered(one) is None
        delta = update_of("mid")
        update = Update("mid", 2, lab.plan.digest, delta, 10, 0.1, 1, 0.1, 10, 10)
        lab.sites["mid"].mask(one, update, lab.plan)
    return seen[0]


def test_what_16_bits_lost_is_forgotten_with_the_optimiser(tmp_path, monkeypatch):
    """Else a site could be full of what a made-up model left in it."""
    chain = lineage_after(FRESH, 1, digest_of(MODEL))
    assert carried_into(tmp_path / "on", monkeypatch, 1, chain).any()
    assert not carried_into(tmp_path / "anew", monkeypatch, 1, FRESH).any()
