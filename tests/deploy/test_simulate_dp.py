"""A whole rehearsal with differential privacy, and the ledgers that it leaves."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from client.ledger import read_ledger
from common.accounting import NoisySteps, cost_of
from deploy.simulate import simulate
from server.report import read_record
from server.run_files import FINAL_FILE
from tests.deploy.conftest import SEGMENTATION

NOISE = """
[privacy.dp]
noise_multiplier = 1.5
delta = 1e-2
[simulation]
"""
PRIVATE = ("[simulation]", NOISE)
MASKS = '[privacy]\nsecure_aggregation = "on"\nmin_cohort = 2\n[privacy.dp]'
MASKED = ("[privacy.dp]", MASKS)
TARGET = ("noise_multiplier = 1.5", "epsilon = 3.0")


@pytest.mark.parametrize("changes", [(), (MASKED,)], ids=["in the clear", "masked"])
def test_every_site_pays_and_the_report_says_what(fedct, plan_file, tmp_path, changes):
    out = tmp_path / "run"
    record = simulate(plan_file(*_plan(*changes)), out)
    rows = {
        site: [
            row for r in record.arms[0].rounds for row in r.sites if row.site == site
        ]
        for site in ("north", "south")
    }
    for site, own in rows.items():
        assert [row.outcome for row in own] == ["accepted"] * 3
        assert [row.loss for row in own] == [None] * 3
        lines = read_ledger(out / "sites" / site)
        assert [(line.round, line.steps) for line in lines] == [(1, 3), (2, 3), (3, 3)]
        for done, row in enumerate(own, start=1):
            exact = cost_of([NoisySteps(lines[0].rate, 1.5, 3 * done)], 1e-2)
            assert exact.pld <= row.epsilon_pld <= exact.pld + 0.1
            assert exact.prv <= row.epsilon_prv <= exact.prv + 0.1
        said = fedct("client", "ledger", out / "sites" / site, "--format", "json")
        assert json.loads(said.out)["runs"][0]["rounds"] == 3
    assert read_record(out) == record


def test_without_dp_nothing_is_paid_and_the_loss_is_told(plan_file, tmp_path):
    record = simulate(plan_file(), tmp_path / "run")
    (row, _) = record.arms[0].rounds[0].sites
    assert (row.epsilon_pld, row.epsilon_prv) == (None, None)
    assert row.loss is not None
    assert read_ledger(tmp_path / "run" / "sites" / "north") == ()


def test_a_wanted_epsilon_is_kept_by_each_site(plan_file, tmp_path):
    record = simulate(plan_file(*_plan(TARGET)), tmp_path / "run")
    for row in record.arms[0].rounds[-1].sites:
        assert 2.5 < max(row.epsilon_pld, row.epsilon_prv) <= 3.0


def test_two_runs_of_one_private_plan_are_not_alike(plan_file, tmp_path):
    """Whoever knows the plan, its seed too, must not know the noise."""
    models = []
    for name in ("a", "b"):
        simulate(plan_file(*_plan()), tmp_path / name)
        models.append(load_file(tmp_path / name / FINAL_FILE)["model"])
    assert not np.array_equal(*models)


def _plan(*changes):
    return SEGMENTATION, PRIVATE, *changes
