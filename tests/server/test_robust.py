"""The robust rules: their definitions written slowly, and the laws that make them."""

import itertools
import os
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from scipy.stats import trim_mean

from common.errors import ContributionError, PlanError, QuorumError, RunError
from common.plan_federation import Federation, replies_needed
from common.plan_file import parse_plan
from server.aggregate import WeightedMean
from server.federation import open_federation
from server.robust import HeldUpdates, open_aggregate
from server.robust_rules import coordinate_median
from server.rounds import run_arm
from tests.plans import SEGMENTATION, plan
from tests.server.scripted import ScriptedGrid, arm_of

VALUES = st.floats(-100, 100, width=32)
RULES = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")
SELECTING = ("krum", "multi_krum")
DELTAS = hnp.arrays(
    np.float32, st.tuples(st.integers(5, 9), st.just(6)), elements=VALUES
)


def settings(rule: str, faulty: int = 1, **more) -> Federation:
    return Federation(
        rounds=1, aggregation=rule, faulty_sites=faulty, min_sites=9, **more
    )


def apply(federation, deltas, tmp_path, weights=None, last_norm=None):
    """The result, and each site's share, of a round with these updates."""
    federation = federation.model_copy(update={"min_sites": 1})
    held = open_aggregate(
        federation,
        deltas.shape[1],
        min_sites=1,
        folder=tmp_path,
        usual_norm=None,
        last_norm=last_norm,
    )
    for n, delta in enumerate(deltas):
        held.add(f"s{n}", delta, 1 if weights is None else weights[n])
    shares = held.weights
    return held.mean(), np.array(list(shares.values()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("held")


# ---- definitions, slowly -------------------------------------------------------------


def slow_krum(deltas, faulty, keep):
    """Blanchard 2017 in plain loops over Python floats."""
    sites = [list(map(float, delta)) for delta in deltas]
    scores = []
    for i, mine in enumerate(sites):
        apart = [
            sum((a - b) ** 2 for a, b in zip(mine, other, strict=True))
            for j, other in enumerate(sites)
            if j != i
        ]
        scores.append(sum(sorted(apart)[: len(sites) - faulty - 2]))
    best = sorted(range(len(sites)), key=lambda i: (scores[i], i))[:keep]
    return best, scores


@given(DELTAS)
def test_the_median_is_that_of_numpy(folder, deltas):
    result, shares = apply(settings("median"), deltas, folder)
    assert np.allclose(result, np.median(deltas.astype(np.float64), axis=0), atol=1e-5)
    assert np.allclose(shares, 1 / len(deltas))


@given(DELTAS, st.integers(0, 2))
def test_the_trimmed_mean_is_that_of_scipy(folder, deltas, faulty):
    result, _ = apply(settings("trimmed_mean", faulty), deltas, folder)
    share = (faulty + 0.5) / len(deltas)  # scipy rounds the number down
    expected = trim_mean(deltas.astype(np.float64), share, axis=0)
    assert np.allclose(result, expected, rtol=1e-6, atol=1e-5)


@given(DELTAS, st.integers(0, 1), st.integers(1, 9))
def test_krum_is_blanchards(folder, deltas, faulty, keep):
    most = len(deltas) - faulty - 2
    result, shares = apply(settings("krum", faulty), deltas, folder)
    _, scores = slow_krum(deltas, faulty, 1)
    assert scores[int(np.argmax(shares))] <= min(scores) * (1 + 1e-9)
    assert np.array_equal(result, deltas[np.argmax(shares)])
    many = settings("multi_krum", faulty, krum_keep=keep)
    result, shares = apply(many, deltas, folder)
    assert np.count_nonzero(shares) == min(keep, most)
    kept = [scores[i] for i in np.flatnonzero(shares)]
    best = sorted(scores)[: min(keep, most)]
    assert np.allclose(sorted(kept), best, rtol=1e-9)
    average = deltas[np.flatnonzero(shares)].astype(np.float64).mean(axis=0)
    assert np.allclose(result, average, rtol=1e-6, atol=1e-6)


def test_of_equal_scores_the_first_of_the_roster_is_krums(folder):
    deltas = np.array([[0], [1], [2], [4], [5], [6]], np.float32)
    assert slow_krum(deltas, 1, 1)[1] == [21, 11, 9, 9, 11, 21]
    _, shares = apply(settings("krum"), deltas, folder)
    assert shares.tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_is_the_least_sum_of_distances(folder, seed):
    rng = np.random.default_rng(seed)
    deltas = rng.normal(size=(7, 4)).astype(np.float32)
    deltas[0] *= 30
    weights = rng.integers(1, 30, size=7).tolist()

    def cost(point):
        return weights @ np.linalg.norm(deltas - point, axis=1)

    result, shares = apply(settings("geometric_median"), deltas, folder, weights)
    start = deltas.mean(axis=0, dtype=np.float64)
    found = minimize(cost, start, method="Nelder-Mead", tol=1e-12)
    assert cost(result.astype(np.float64)) <= found.fun * (1 + 1e-7)
    assert shares.sum() == pytest.approx(1)
    assert np.allclose(shares @ deltas, result, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_geometric_median_knows_no_scale(folder, scale):
    deltas = np.random.default_rng(0).normal(size=(6, 9)).astype(np.float32)
    one, shares = apply(settings("geometric_median"), deltas, folder)
    other, again = apply(
        settings("geometric_median"), (deltas * scale).astype(np.float32), folder
    )
    assert np.allclose(other, one * scale, rtol=1e-4, atol=1e-6 * scale)
    assert np.allclose(shares, again, atol=1e-5)


@pytest.mark.parametrize("sites", [*range(1, 10), 16, 17, 40])
def test_few_and_many_sites_are_sorted_alike(sites):
    block = np.random.default_rng(sites).normal(size=(sites, 50)).astype(np.float32)
    expected = np.sort(block, axis=0)[(sites - 1) // 2 : sites // 2 + 1]
    expected = expected.mean(axis=0, dtype=np.float64).astype(np.float32)
    assert np.array_equal(coordinate_median(block), expected)


# ---- laws ----------------------------------------------------------------------------


@given(DELTAS, st.data())
def test_hostile_sites_below_half_cannot_move_a_coordinate_out_of_the_honest_range(
    folder, deltas, data
):
    sites = len(deltas)
    hostile = data.draw(st.integers(1, (sites - 1) // 2))
    values = st.floats(-1e4, 1e4, width=32)
    lies = data.draw(hnp.arrays(np.float32, (hostile, 6), elements=values))
    honest = deltas[hostile:]
    low, high = honest.min(axis=0), honest.max(axis=0)
    both = np.concatenate([lies, honest])
    for rule in ("median", "trimmed_mean"):
        result, _ = apply(settings(rule, hostile), both, folder)
        assert (low <= result).all()
        assert (result <= high).all()


def test_at_half_the_median_gives_way(folder):
    """The bound is sharp: with as many liars as honest sites it follows the liars."""
    honest = np.zeros((3, 2), np.float32)
    for liars, moved in ((2, False), (4, True)):
        lies = np.full((liars, 2), 1e4, np.float32)
        result, _ = apply(settings("median"), np.concatenate([lies, honest]), folder)
        assert (result > 1).all() == moved


@pytest.mark.parametrize("far", [1e1, 1e3, 1e5])
@pytest.mark.parametrize("rule", ["krum", "multi_krum", "geometric_median"])
def test_far_liars_are_bounded_however_far(folder, rule, far):
    rng = np.random.default_rng(1)
    honest = rng.normal(size=(5, 50)).astype(np.float32)
    lies = np.full((2, 50), far, np.float32)
    federation = settings(rule, faulty=2)
    result, shares = apply(federation, np.concatenate([lies, honest]), folder)
    assert np.linalg.norm(result) < 2 * np.linalg.norm(honest, axis=1).max()
    if rule in SELECTING:
        assert shares[:2].tolist() == [0, 0]


@pytest.mark.parametrize("rule", [*RULES, "clipped_mean"])
@given(deltas=DELTAS, data=st.data())
def test_the_order_of_the_sites_does_not_matter(folder, rule, deltas, data):
    order = data.draw(st.permutations(range(len(deltas))))
    scores = sorted(slow_krum(deltas, 1, 1)[1])
    if rule in SELECTING and any(
        b <= a * (1 + 1e-9) for a, b in itertools.pairwise(scores)
    ):
        return  # of equally good ones the first counts
    one, _ = apply(settings(rule), deltas, folder)
    other, _ = apply(settings(rule), deltas[list(order)], folder)
    if rule in ("median", "trimmed_mean", "krum"):
        assert np.array_equal(one, other)
    assert np.allclose(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("rule", [*RULES, "clipped_mean"])
@given(delta=hnp.arrays(np.float32, 6, elements=VALUES), sites=st.integers(5, 9))
def test_of_equal_updates_every_rule_makes_that_update(folder, rule, delta, sites):
    result, _ = apply(settings(rule), np.tile(delta, (sites, 1)), folder)
    assert np.allclose(result, delta, rtol=1e-6, atol=1e-30)


@given(DELTAS, st.lists(st.integers(1, 1000), min_size=9, max_size=9))
def test_a_loose_bound_clips_nothing_to_the_bit(folder, deltas, weights):
    mean = WeightedMean(6, min_sites=1)
    for n, delta in enumerate(deltas):
        mean.add(f"s{n}", delta, weights[n])
    federation = settings("clipped_mean", clip_norm=1e4)
    result, _ = apply(federation, deltas, folder, weights)
    assert result.tobytes() == mean.mean().tobytes()


@given(DELTAS, st.floats(0.1, 50))
def test_a_clipped_mean_is_no_longer_than_the_bound(folder, deltas, bound):
    result, _ = apply(settings("clipped_mean", clip_norm=bound), deltas, folder)
    assert np.linalg.norm(result) <= bound * (1 + 1e-5)
    norms = np.linalg.norm(deltas.astype(np.float64), axis=1, keepdims=True)
    short = deltas * np.minimum(1, bound / np.maximum(norms, 1e-30))
    assert np.allclose(result, short.mean(axis=0), rtol=1e-4, atol=1e-4)


def test_without_a_bound_the_last_rounds_median_norm_is_it(folder):
    deltas = np.diag([1, 2, 3, 4, 1000]).astype(np.float32)
    first, shares = apply(settings("clipped_mean"), deltas, folder)
    assert np.allclose(first * 5, [1, 2, 3, 3, 3])  # of the round itself: 3
    assert np.allclose(shares * 5, [1, 1, 1, 0.75, 0.003])
    later, _ = apply(settings("clipped_mean"), deltas, folder, last_norm=2.0)
    assert np.allclose(later * 5, [1, 2, 2, 2, 2])


# ---- held on disk --------------------------------------------------------------------


def test_refused_updates_leave_no_trace(folder):
    deltas = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    held = open_aggregate(
        settings("median"),
        6,
        min_sites=9,
        folder=folder,
        usual_norm=None,
        last_norm=None,
    )
    assert isinstance(held, HeldUpdates)
    bad = np.full(6, np.nan, np.float32)
    for n, delta in enumerate(deltas):
        held.add(f"s{n}", delta, 1)
        for site, lie in ((f"s{n}", delta), ("x", bad), ("x", delta[:-1])):
            with pytest.raises(ContributionError):
                held.add(site, lie, 1)
    assert set(held.weights) == {"s0", "s1", "s2"}
    with pytest.raises(QuorumError, match="3 accepted sites, expected at least 9"):
        held.mean()


def test_no_file_of_an_update_has_a_name(tmp_path):
    """What a killed process leaves: nothing."""
    held = HeldUpdates(settings("median"), 6, _gate(6), tmp_path)
    held.add("a", np.ones(6, np.float32), 1)
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(held._file.fileno()).st_size == 24
    with pytest.raises(QuorumError):
        held.mean()


def _gate(size):
    from server.aggregate import Gate

    return Gate(size, min_sites=5)


@pytest.mark.parametrize("rule", RULES)
def test_memory_does_not_hold_a_model_per_site(tmp_path, rule):
    size = 500_000

    def peak(sites: int) -> int:
        tracemalloc.start()
        federation = settings(rule)
        held = HeldUpdates(federation, size, _gate(size), tmp_path)
        for n in range(sites):
            held.add(f"s{n}", np.full(size, n, np.float32), 1)
        held.mean()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    few, many = peak(5), peak(15)
    model = 4 * size
    assert many - few < 10 * 2**18  # a quarter of a megabyte a site, not two
    assert many < 2.5 * model + 15 * 2**18


# ---- the plan, and whole rounds ------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ('aggregation = "krum"', r"line \d+: federation.min_sites 2 .* at least 5"),
        ('aggregation = "multi_krum"\nfaulty_sites = 2', "expected at least 7"),
        ('aggregation = "trimmed_mean"', "expected at least 3"),
        ('aggregation = "median"', "expected at least 3"),
        ('aggregation = "geometric_median"', "expected at least 3"),
        ('aggregation = "mode"', "federation.aggregation"),
        ("clip_norm = 1.0", "clip_norm is for aggregation 'clipped_mean', not 'mean'"),
        ("krum_keep = 2", "krum_keep is for aggregation 'multi_krum', not 'mean'"),
        ('aggregation = "clipped_mean"\nalgorithm = "scaffold"', "'scaffold'"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_by_key(keys, named):
    text = SEGMENTATION.replace("min_sites = 2", f"min_sites = 2\n{keys}")
    with pytest.raises(PlanError, match=named):
        parse_plan(text)


def test_the_least_number_of_replies_is_that_of_the_papers():
    needed = {
        (rule, f): replies_needed(settings(rule, f))
        for rule in ("mean", "clipped_mean", *RULES)
        for f in (1, 2)
    }
    assert needed == {
        **{(rule, f): 1 for rule in ("mean", "clipped_mean") for f in (1, 2)},
        **{(r, f): 3 for r in ("median", "geometric_median") for f in (1, 2)},
        **{("trimmed_mean", f): 2 * f + 1 for f in (1, 2)},
        **{(rule, f): 2 * f + 3 for rule in SELECTING for f in (1, 2)},
    }


CASES = {"a": 10, "b": 10, "c": 10, "d": 10, "e": 10}


def run(folder, grid, rule, rounds=2):
    the_plan = plan(
        federation__aggregation=rule,
        federation__min_sites=5,
        federation__rounds=rounds,
        federation__deadline_s=0.2,
        federation__max_void_rounds=2,
    )
    arm = arm_of(the_plan, folder, CASES)
    return run_arm(open_federation(grid, arm), arm)


@pytest.mark.parametrize("rule", [*RULES, "clipped_mean"])
def test_a_run_resists_one_liar_and_is_the_same_when_repeated(tmp_path, rule):
    def liar(update):
        return replace(update, delta=update.delta * np.float32(-20))

    lies = {("c", 1): liar, ("c", 2): liar}
    honest, _ = run(tmp_path / "honest", ScriptedGrid(CASES), rule)
    lied, _ = run(tmp_path / "lied", ScriptedGrid(CASES, lies), rule)
    again, _ = run(tmp_path / "again", ScriptedGrid(CASES, lies), rule)
    digests = [r.model_digest for r in lied.rounds]
    assert digests == [r.model_digest for r in again.rounds]
    same = digests == [r.model_digest for r in honest.rounds]
    assert same == (rule == "krum")  # which would not have picked it anyway
    shares = {row.site: row.weight for row in lied.rounds[0].sites}
    if rule in SELECTING:
        assert shares["c"] == 0
    if rule in ("clipped_mean", "geometric_median"):
        assert shares["c"] < min(v for k, v in shares.items() if k != "c")
    mean, _ = run(tmp_path / "mean", ScriptedGrid(CASES, lies), "mean")
    assert mean.rounds[0].sites[2].weight == 0.2  # the control: it counts in full


def test_a_round_with_too_few_replies_for_the_rule_is_void(tmp_path):
    silent = {("e", 1): lambda update: None}
    record, _ = run(tmp_path, ScriptedGrid(CASES, silent), "krum", rounds=2)
    assert [r.outcome for r in record.rounds] == ["void", "closed"]


def test_a_run_of_too_few_sites_does_not_fall_back_to_the_mean(tmp_path):
    two = {"a": 10, "b": 10}
    the_plan = plan(
        federation__aggregation="median",
        federation__min_sites=3,
        federation__max_void_rounds=1,
    )
    grid = ScriptedGrid(two)
    arm = arm_of(the_plan, tmp_path / "federated", two)
    with pytest.raises(RunError, match="closed no round"):
        run_arm(open_federation(grid, arm), arm)
    alone = replace(arm, name="local-a", train=("a",), folder=tmp_path / "alone")
    record, _ = run_arm(open_federation(grid, alone), alone)
    assert {r.outcome for r in record.rounds} == {"closed"}
