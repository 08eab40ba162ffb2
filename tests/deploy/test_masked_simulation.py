"""A rehearsal under masks: the same model to the bit, whatever dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import client.app
import deploy
from client.masking import SiteMasks
from common.errors import ContributionError, PlanError, UsageError
from common.exchange import MaskedUpdate, OpenOrder, TrainOrder
from common.plan_file import load_plan
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from deploy.simulate import simulate
from server.report import read_record
from tests.deploy.conftest import SEGMENTATION
from tests.deploy.test_simulate import KILLED, model_bytes

PLANS = Path(deploy.__file__).parent / "plans"
SITE = """
[[simulation.sites]]
name = "{name}"
source = "pictures"
format = "images"
where = {{ vendor = "{vendor}" }}
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """A folder with `data/pictures` of four hospitals."""
    root = tmp_path_factory.mktemp("four")
    write_images(root / "data" / "pictures", patients=5, seed=2)
    return root


def masked_plan(root, *changes, privacy='secure_aggregation = "on"'):
    text = SEGMENTATION + f'[privacy]\n{privacy}\n[simulation]\ndata_root = "data"\n'
    for hospital in HOSPITALS:
        text += SITE.format(name=hospital.name, vendor=hospital.scanner.vendor)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = root / "masked.toml"
    path.write_text(text)
    return path


def test_a_masked_rehearsal_closes_every_round_and_says_so(four, tmp_path):
    plan = masked_plan(four)
    record = simulate(plan, tmp_path / "run", baselines=("pooled", "local"))
    federated, *baselines = record.arms
    assert [r.outcome for r in federated.rounds] == ["closed"] * 3
    assert {r.updates for r in federated.rounds} == {"under masks"}
    assert {r.updates for arm in baselines for r in arm.rounds} == {"in the clear"}
    assert all(row.update_norm is None for r in federated.rounds for row in r.sites)
    assert read_record(tmp_path / "run") == record


def test_masks_change_the_model_by_rounding_alone(four, tmp_path):
    clear = masked_plan(four, ('secure_aggregation = "on"', ""))
    simulate(clear, tmp_path / "clear")
    simulate(masked_plan(four), tmp_path / "masked")
    models = [
        np.frombuffer(model_bytes(tmp_path / name), np.float32)
        for name in ("clear", "masked")
    ]
    assert models[0].tobytes() != models[1].tobytes()
    assert np.abs(models[0] - models[1]).max() < 1e-4


@pytest.mark.parametrize("bits", [32, 16])
def test_the_same_masked_plan_gives_the_same_model_to_the_bit(four, tmp_path, bits):
    privacy = f'secure_aggregation = "auto"\nmask_bits = {bits}'
    plan = masked_plan(four, privacy=privacy)
    for name in ("a", "b"):
        record = simulate(plan, tmp_path / name)
        assert {r.updates for r in record.arms[0].rounds} == {"under masks"}
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")


def test_a_site_that_fails_before_its_masked_vector_is_recovered(
    four, tmp_path, monkeypatch
):
    """Fault 3: the round closes with the others' exact mean, and the site is back."""
    real = client.app.SiteMasks.mask

    def fails(self, order, update, plan):
        if self._site == "south" and order.round == 2:
            self._rounds.clear()  # its process died
            raise ContributionError("lost", code="keys")
        return real(self, order, update, plan)

    monkeypatch.setattr(SiteMasks, "mask", fails)
    record = simulate(masked_plan(four), tmp_path / "run")
    rounds = record.arms[0].rounds
    assert [r.outcome for r in rounds] == ["closed"] * 3
    outcomes = [{w.site: w.outcome for w in r.sites}["south"] for r in rounds]
    assert outcomes == ["accepted", "failed", "accepted"]
    assert "error 40.14" in next(w for w in rounds[1].sites if w.site == "south").reason


def test_below_the_threshold_a_round_is_void_and_the_model_unchanged(
    four, tmp_path, monkeypatch
):
    """Fault 4: nothing is unmasked."""
    real_mask, real_open, opened = SiteMasks.mask, SiteMasks.open, []

    def fails(self, order, update, plan):
        if self._site in ("south", "west") and order.round == 2:
            raise ContributionError("lost", code="keys")
        return real_mask(self, order, update, plan)

    def noted(self, order, min_cohort):
        opened.append(order.round)
        return real_open(self, order, min_cohort)

    monkeypatch.setattr(SiteMasks, "mask", fails)
    monkeypatch.setattr(SiteMasks, "open", noted)
    record = simulate(masked_plan(four), tmp_path / "run")
    rounds = record.arms[0].rounds
    assert [r.outcome for r in rounds] == ["closed", "void", "closed"]
    assert rounds[0].model_digest == rounds[1].model_digest
    assert "nothing was opened" in rounds[1].reason
    assert 2 not in opened


def test_no_update_leaves_a_site_in_the_clear(four, tmp_path, monkeypatch):
    left = []
    real = client.app.put_seal

    def noted(content, seal):
        left.append(content["facts"]["kind"])
        return real(content, seal)

    monkeypatch.setattr(client.app, "put_seal", noted)
    simulate(masked_plan(four), tmp_path / "run")
    assert left.count(MaskedUpdate.__name__) == 12
    assert "Update" not in left


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("client.service.save_state", 7),  # round 2: some masked, some not
        ("client.masking.note_opening", 6),  # round 2: some have released shares
        ("server.rounds.write_checkpoint", 2),  # opened, nothing on disk
        ("server.rounds.append", 2),  # not committed
    ],
)
def test_a_killed_masked_run_resumes_to_a_bit_equal_model(four, tmp_path, where, count):
    plan = masked_plan(four, privacy='secure_aggregation = "on"\nmask_bits = 16')
    simulate(plan, tmp_path / "whole", threads=1)
    run = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = KILLED.replace("import client.state", "import client.masking, client.state")
    code = code.replace("threads=2", "threads=1")
    killed = subprocess.run(
        [sys.executable, "-c", code, str(plan), str(run), where, str(count)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    record = simulate(plan, run, resume=True)
    assert [r.outcome for r in record.arms[0].rounds] == ["closed"] * 3
    assert model_bytes(run) == model_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("rounds = 3", 'rounds = 3\naggregation = "median"'), "'median'"),
        (
            (
                "rounds = 3",
                'rounds = 3\nalgorithm = "scaffold"\n[training]\noptimizer = "sgd"',
            ),
            "scaffold",
        ),
        (('"on"', '"on"\nmin_cohort = 5'), "privacy.min_cohort 5"),
    ],
)
def test_a_plan_that_can_not_be_masked_is_refused_by_name(four, change, named):
    if "scaffold" in named:
        sgd = ("learning_rate = 1e-2", 'optimizer = "sgd"\nmomentum = 0.0')
        change = ("rounds = 3", 'rounds = 3\nalgorithm = "scaffold"')
        path = masked_plan(four, sgd, change)
    else:
        more = [("min_sites = 2", "min_sites = 3")] if "median" in named else []
        path = masked_plan(four, change, *more)
    with pytest.raises(PlanError, match=named):
        load_plan(path)


def test_ray_is_refused_for_masks(four, tmp_path):
    with pytest.raises(UsageError, match="in-process"):
        simulate(masked_plan(four), tmp_path / "run", engine="ray")


def test_the_orders_to_open_name_every_site_when_none_is_lost(
    four, tmp_path, monkeypatch
):
    told, real = [], SiteMasks.open

    def noted(self, order, min_cohort):
        assert isinstance(order, OpenOrder | TrainOrder)
        told.append((order.round, order.survivors, len(order.agreed)))
        return real(self, order, min_cohort)

    monkeypatch.setattr(SiteMasks, "open", noted)
    simulate(masked_plan(four), tmp_path / "run")
    everyone = tuple(sorted(h.name for h in HOSPITALS))
    assert told == [(n, everyone, 0) for n in (1, 2, 3) for _ in range(4)]


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.toml")), ids=lambda p: p.stem)
def test_every_shipped_plan_has_masks(path):
    assert load_plan(path).privacy.secure_aggregation == "on"
