import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error

from common.errors import RunError
from common.exchange import Hello, Roster
from common.metrics.overlap import COUNT
from common.parameters import digest_of
from server.asking import Line, roll_call
from server.federation import Federation, first_model, open_federation
from server.journal import entries, open_journal
from server.presence import Presence
from server.rounds import run_arm
from server.verifying import Verifier
from tests.plans import plan
from tests.server.scripted import ScriptedGrid, arm_of, honest

CASES = {"east": 10, "north": 30, "west": 20}


def run(folder, grid, the_plan=None):
    the_plan = the_plan or plan(federation__deadline_s=0.2)
    arm = arm_of(the_plan, folder, CASES)
    return run_arm(open_federation(grid, arm), arm)


def by_hand(rounds: int, cases=CASES) -> np.ndarray:
    """FedAvg in float64 over the same scripted updates."""
    grid = ScriptedGrid(cases)
    federation = open_federation(grid, arm_of(plan(), Path(), cases))
    assert isinstance(federation, Federation)
    network, layout = first_model(plan())
    from common.parameters import to_vector

    model = to_vector(network, layout)
    for number in range(1, rounds + 1):
        order = type("O", (), {})()
        order.round, order.state_round = number, number - 1
        order.model, order.plan_digest, order.control = model, "", None
        updates = [honest(site, n, order) for site, n in sorted(cases.items())]
        weights = [u.cases for u in updates]
        deltas = np.stack([u.delta for u in updates]).astype(np.float64)
        model = (model + np.average(deltas, axis=0, weights=weights)).astype(np.float32)
    return model


def test_three_rounds_equal_fedavg_by_hand(tmp_path):
    record, _ = run(tmp_path, ScriptedGrid(CASES, scores={1: 0.1, 2: 0.2, 3: 0.3}))
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert record.final_round == 3
    assert record.steps == 3 * 3 * 2
    _, model = run(tmp_path, ScriptedGrid(CASES))
    assert np.allclose(model, by_hand(3), atol=1e-6)


def test_weights_are_shares_of_the_training_cases(tmp_path):
    record, _ = run(tmp_path, ScriptedGrid(CASES))
    shares = {row.site: row.weight for row in record.rounds[0].sites}
    assert shares == {"east": 10 / 60, "north": 0.5, "west": 20 / 60}


def test_n_of_m_stands_in_every_round(tmp_path):
    record, _ = run(tmp_path, ScriptedGrid(CASES))
    for r in record.rounds:
        rows = {row.site: (row.accepted, row.found) for row in r.sites}
        assert rows == {s: (n, n + 1) for s, n in CASES.items()}


@pytest.mark.parametrize(
    ("twist", "outcome", "named"),
    [
        (lambda u: replace(u, delta=u.delta * np.nan), "refused", "norm nan"),
        (
            lambda u: replace(u, delta=u.delta[:-1].copy()),
            "refused",
            "expected float32",
        ),
        (lambda u: replace(u, delta=u.delta * 1000), "refused", "diverged"),
        (lambda u: replace(u, cases=10**9), "refused", "1000000000 cases"),
        (lambda u: replace(u, cases=-1), "refused", "-1 cases"),
        (lambda u: replace(u, round=u.round - 1), "refused", "answered for round 1"),
        (lambda u: replace(u, plan_digest="x"), "refused", "plan x"),
        (lambda u: replace(u, site="north"), "refused", "answered as another site"),
        (lambda u: replace(u, control_delta=u.delta), "refused", "control variate"),
        (lambda u: Error(1032), "failed", "site ran out of memory"),
        (lambda u: Error(105302, "no\n\x1b[2Jround"), "failed", "(error 53.2)"),
        (lambda u: Error(9999, "no"), "failed", "that this hub does not know"),
        (lambda u: None, "late", "no answer by the deadline"),
    ],
)
def test_a_bad_reply_is_refused_by_name_and_leaves_no_trace(
    tmp_path, twist, outcome, named
):
    bad = ScriptedGrid(CASES, {("west", 2): twist})
    record, model = run(tmp_path / "bad", bad)
    row = next(r for r in record.rounds[1].sites if r.site == "west")
    assert row.outcome == outcome
    assert named in row.reason
    assert row.reason.isprintable()
    assert "2Jround" not in row.reason
    assert row.weight == 0
    gone = ScriptedGrid(CASES, {("west", 2): lambda u: Error(1001)})
    _, without = run(tmp_path / "gone", gone)
    assert model.tobytes() == without.tobytes()


@pytest.mark.parametrize("nonsense", [np.nan, np.inf, -np.inf, -1.0])
@pytest.mark.parametrize("field", ["epsilon_pld", "epsilon_prv"])
@pytest.mark.parametrize("is_private", [True, False])
def test_a_cost_that_is_none_refuses_its_update_by_name(
    tmp_path, nonsense, field, is_private
):
    twists = {("west", 1): lambda u: replace(u, **{field: nonsense})}
    record = private_run(tmp_path, twists, is_private)
    assert outcomes(record) == {
        "east": "accepted",
        "north": "accepted",
        "west": "refused",
    }
    reason = record.rounds[0].sites[2].reason
    assert "site 'west' told" in reason
    assert "expected a finite number of at least 0" in reason


@pytest.mark.parametrize("field", ["epsilon_pld", "epsilon_prv"])
def test_by_a_plan_with_dp_an_update_without_its_cost_is_refused(tmp_path, field):
    twists = {("west", 1): lambda u: replace(u, **{field: None})}
    record = private_run(tmp_path, twists)
    assert outcomes(record)["west"] == "refused"
    assert "site 'west' told nothing as its epsilon" in record.rounds[0].sites[2].reason


def private_run(folder, twists, is_private=True):
    """A round of a plan with DP, in which all others tell what it cost."""
    dp = {"privacy__dp": {"noise_multiplier": 1.0}} if is_private else {}
    the_plan = plan(federation__deadline_s=0.2, federation__rounds=1, **dp)
    told = {"epsilon_pld": 1.0, "epsilon_prv": 1.1}
    grid = ScriptedGrid(
        CASES,
        {
            (site, 1): lambda u, s=site: twists.get((s, 1), lambda one: one)(
                replace(u, **told)
            )
            for site in CASES
        },
    )
    return run(folder, grid, the_plan)[0]


def outcomes(record):
    return {row.site: row.outcome for row in record.rounds[0].sites}


@pytest.mark.parametrize(
    "sums",
    [
        {"dice": np.ones(7), "dice" + COUNT: np.ones(7)},  # of seven classes
        {"dice": np.ones(1)},  # a name is missing
        {"dice": np.ones(0), "dice" + COUNT: np.ones(0)},
        {"loss": np.ones(1), "cases": np.ones(0)},
        {"tp": np.ones(2), "fp": np.ones(3), "fn": np.ones(2)},
    ],
)
def test_sums_that_the_task_cannot_read_are_left_out_and_the_run_goes_on(
    tmp_path, sums
):
    record, _ = run(tmp_path, ScriptedGrid(CASES, sums={"north": sums}))
    assert [r.outcome for r in record.rounds] == ["closed"] * 3
    assert set(record.rounds[0].validation) == {"east", "west"} == set(record.test)
    assert record.test_pooled["dice"] == 0.5


def test_a_site_that_was_left_out_goes_on_from_its_last_round_that_counted(tmp_path):
    grid = ScriptedGrid(CASES, {("west", 2): lambda u: None})
    run(tmp_path, grid)
    begun = {(s, o.round): o.state_round for s, o in grid.orders}
    assert begun["west", 3] == 1
    assert begun["east", 3] == 2


def test_below_quorum_the_round_is_void_and_the_model_unchanged(tmp_path):
    twists = {(s, 2): lambda u: None for s in ("west", "east")}
    grid = ScriptedGrid(CASES, twists)
    record, _ = run(tmp_path, grid)
    assert [r.outcome for r in record.rounds] == ["closed", "void", "closed"]
    assert record.rounds[1].model_digest == record.rounds[0].model_digest
    begun = {(s, o.round): o.state_round for s, o in grid.orders}
    assert begun["north", 3] == 1  # its update of the void round did not count


def test_a_run_without_any_closed_round_says_what_the_sites_said(tmp_path):
    twists = {(s, r): lambda u: Error(1024) for s in CASES for r in (1, 2, 3)}
    with pytest.raises(RunError, match="site's disk is full"):
        run(tmp_path, ScriptedGrid(CASES, twists))


def test_early_stop_and_best_round_follow_the_validation_metric(tmp_path):
    scores = {1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.8}
    the_plan = plan(federation__rounds=9, federation__early_stop_rounds=2)
    record, _ = run(tmp_path, ScriptedGrid(CASES, scores=scores), the_plan)
    assert (record.final_round, record.stopped, len(record.rounds)) == (
        2,
        "early stop",
        4,
    )


@pytest.mark.parametrize(("final", "expected"), [("best", 2), ("last", 3)])
def test_the_plan_says_which_model_is_handed_out(tmp_path, final, expected):
    """The last round that closed, or the best."""
    scores = {1: 0.5, 2: 0.9, 3: 0.6}
    grid = ScriptedGrid(CASES, scores=scores)
    record, model = run(tmp_path, grid, plan(evaluation__final=final))
    assert record.final_round == expected
    assert digest_of(model) == record.rounds[expected - 1].model_digest


class DiesAt(ScriptedGrid):
    """Kills the server while it waits for one site in one round."""

    def __init__(self, site, number, **script):
        super().__init__(CASES, **script)
        self.death = (site, number)

    def _answer(self, message):
        answer = super()._answer(message)
        if self.orders and (self.orders[-1][0], self.orders[-1][1].round) == self.death:
            self.death = None
            raise KeyboardInterrupt
        return answer


@pytest.mark.parametrize("site", sorted(CASES))
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_resumed_run_ends_in_a_bit_equal_model(tmp_path, site, number):
    _, undisturbed = run(tmp_path / "a", ScriptedGrid(CASES))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", DiesAt(site, number))
    record, resumed = run(tmp_path / "b", ScriptedGrid(CASES))
    assert resumed.tobytes() == undisturbed.tobytes()
    assert [r.number for r in record.rounds] == [1, 2, 3]


@pytest.mark.parametrize("algorithm", ["fedavgm", "fedadam", "scaffold"])
def test_resume_keeps_the_servers_own_state(tmp_path, algorithm):
    changes = {"federation__algorithm": algorithm, "federation__deadline_s": 0.2}
    if algorithm == "scaffold":
        changes |= {"training__optimizer": "sgd", "training__momentum": 0.0}
    the_plan = plan(**changes)
    _, undisturbed = run(tmp_path / "a", ScriptedGrid(CASES), the_plan)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", DiesAt("north", 3), the_plan)
    _, resumed = run(tmp_path / "b", ScriptedGrid(CASES), the_plan)
    assert resumed.tobytes() == undisturbed.tobytes()


def damage(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_costs_a_round_and_changes_nothing(tmp_path, caplog):
    undisturbed, _ = run(tmp_path / "a", ScriptedGrid(CASES))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", DiesAt("north", 3))
    damage(tmp_path / "b" / "checkpoints" / "round-000002.safetensors")
    grid = ScriptedGrid(CASES)
    record, _ = run(tmp_path / "b", grid)
    assert "lost its checkpoint of round 2" in caplog.text
    assert "going back to round 1" in caplog.text
    assert [(o.round, o.state_round) for _, o in grid.orders[::3]] == [(2, 1), (3, 2)]
    assert [r.model_digest for r in record.rounds] == [
        r.model_digest for r in undisturbed.rounds
    ]


def test_a_damaged_checkpoint_takes_the_void_rounds_after_it_along(tmp_path):
    void = {(site, 2): lambda update: Error(0, "no") for site in CASES}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, DiesAt("north", 3, twists=void))
    damage(tmp_path / "checkpoints" / "round-000001.safetensors")
    grid = ScriptedGrid(CASES)
    record, _ = run(tmp_path, grid)
    assert [(o.round, o.state_round) for _, o in grid.orders[::3]] == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]
    assert [r.outcome for r in record.rounds] == ["closed"] * 3


def test_two_damaged_checkpoints_are_noticed_and_nothing_is_taken_back(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, DiesAt("north", 3))
    for path in (tmp_path / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(RunError, match="lost its checkpoint of round 1"):
        run(tmp_path, ScriptedGrid(CASES))
    with open_journal(tmp_path / "journal.sqlite", {}) as journal:
        assert len(entries(journal)) == 2


def test_a_folder_of_another_plan_is_refused(tmp_path):
    run(tmp_path, ScriptedGrid(CASES))
    with pytest.raises(RunError, match="belongs to another run: its plan"):
        run(tmp_path, ScriptedGrid(CASES), plan(plan__seed=9))


def test_a_torn_journal_row_does_not_exist(tmp_path):
    run(tmp_path, ScriptedGrid(CASES))
    path = tmp_path / "journal.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("BEGIN")
    connection.execute("INSERT INTO round VALUES (4, 4, 'x', '{}')")
    connection.close()  # killed before commit
    with open_journal(path, {}) as journal:
        assert [e.record.number for e in entries(journal)] == [1, 2, 3]


def test_only_the_last_two_and_the_best_checkpoints_are_kept(tmp_path):
    scores = {1: 0.9, 2: 0.5, 3: 0.6, 4: 0.6}
    longer = plan(federation__rounds=4)
    run(tmp_path, ScriptedGrid(CASES, scores=scores), longer)
    kept = sorted(p.stem for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["round-000001", "round-000003", "round-000004"]


def test_the_roll_call_sorts_sites_by_name():
    grid = ScriptedGrid({"west": 1, "east": 2})
    line = Line(grid, Verifier(), Presence(grid))
    node_of, rosters = roll_call(line, Hello("r", "p", "t", "l"), 1.0)
    assert list(node_of.items()) == [("east", 3), ("west", 2)]
    assert isinstance(rosters["east"], Roster)


def overfill(path) -> None:
    with open_journal(path, {}) as journal:
        journal.execute("PRAGMA max_page_count = 1")
        journal.execute("INSERT INTO run VALUES ('big', ?)", ("x" * 1_000_000,))


def test_a_disk_that_is_full_is_no_broken_journal(tmp_path):
    run(tmp_path, ScriptedGrid(CASES))
    path = tmp_path / "journal.sqlite"
    with pytest.raises(OSError, match="No space left"):
        overfill(path)
    with open_journal(path, {}) as journal:
        assert [e.record.number for e in entries(journal)] == [1, 2, 3]
