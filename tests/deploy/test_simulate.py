import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import client.app
from common.errors import PlanError, RunError, UsageError
from common.package import load_package
from deploy.run_folder import begin
from deploy.simulate import parse_baselines, simulate
from server.report import read_record
from server.run_files import FINAL_FILE
from tests.deploy.conftest import CLASSIFICATION, SEGMENTATION


def model_bytes(run: Path) -> bytes:
    return np.ascontiguousarray(load_file(run / FINAL_FILE)["model"]).tobytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tmp_path_factory.mktemp("undisturbed") / "run"


def test_a_rehearsal_leaves_the_whole_run_folder(plan_file, undisturbed):
    record = simulate(plan_file(), undisturbed, baselines=("pooled", "local"))
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "plan.toml",
        "journal.sqlite",
        "checkpoints",
        "model",
        "report.json",
        "report.html",
    }
    assert [arm.name for arm in record.arms] == [
        "federated",
        "pooled",
        "local-north",
        "local-south",
    ]
    assert read_record(undisturbed) == record
    assert load_package(undisturbed).facts.round == record.arms[0].final_round
    for site in record.sites:
        assert 0 < site.accepted == site.found
        assert min(site.train, site.validation, site.test) > 0


def test_pooled_takes_as_many_steps_as_all_sites_together(plan_file, tmp_path):
    record = simulate(plan_file(), tmp_path / "run", baselines=("pooled", "local"))
    steps = {arm.name: arm.steps for arm in record.arms}
    assert steps == {
        "federated": 3 * 3 * 2,
        "pooled": 3 * 3 * 2,
        "local-north": 3 * 3,
        "local-south": 3 * 3,
    }


def test_the_same_plan_gives_the_same_model_to_the_bit(plan_file, tmp_path):
    simulate(plan_file(), tmp_path / "a")
    simulate(plan_file(), tmp_path / "b")
    assert model_bytes(tmp_path / "a") == model_bytes(tmp_path / "b")
    held = {**client.app._services, **client.app._masks}
    assert not [folder for folder in held if folder.is_relative_to(tmp_path)]


KILLED = """
import logging, os, signal, sys
from pathlib import Path
from deploy.simulate import simulate
import client.state, server.journal, server.rounds, client.service
where, count = sys.argv[3], int(sys.argv[4])
calls = 0
def deadly(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
module, name = where.rsplit(".", 1)
setattr(sys.modules[module], name, deadly(getattr(sys.modules[module], name)))
simulate(Path(sys.argv[1]), Path(sys.argv[2]), threads=2)
"""


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("client.service.save_state", 3),  # a site trained, its memory not written
        ("server.rounds.write_checkpoint", 2),  # replies folded, nothing on disk
        ("server.rounds.append", 2),  # checkpoint on disk, round not committed
        ("server.rounds.prune", 2),  # committed, old checkpoints still there
    ],
)
def test_a_killed_run_resumes_to_a_bit_equal_model(plan_file, tmp_path, where, count):
    plan = plan_file()
    simulate(plan, tmp_path / "whole", threads=2)
    run = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(plan), str(run), where, str(count)],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    record = simulate(plan, run, resume=True, threads=1)  # keeps its two
    assert model_bytes(run) == model_bytes(tmp_path / "whole")
    assert [r.number for r in record.arms[0].rounds] == [1, 2, 3]


def test_a_finished_run_resumes_to_the_same_report(plan_file, tmp_path):
    first = simulate(plan_file(), tmp_path / "run")
    again = simulate(plan_file(), tmp_path / "run", resume=True)
    assert again.arms == first.arms
    assert again.started == first.started


def test_baselines_can_be_added_to_a_finished_run(plan_file, tmp_path):
    simulate(plan_file(), tmp_path / "run")
    before = model_bytes(tmp_path / "run")
    record = simulate(plan_file(), tmp_path / "run", resume=True, baselines=("pooled",))
    assert [arm.name for arm in record.arms] == ["federated", "pooled"]
    assert model_bytes(tmp_path / "run") == before


def test_a_resumed_run_keeps_its_baselines_whether_finished_or_not(plan_file, tmp_path):
    run = tmp_path / "run"
    first = simulate(plan_file(), run, baselines=("pooled", "local"))
    (run / "baselines" / "local-south" / "arm.json").unlink()  # as if killed before
    again = simulate(plan_file(), run, resume=True)
    assert [a.name for a in again.arms] == [a.name for a in first.arms]
    assert [a.test for a in again.arms] == [a.test for a in first.arms]


def test_a_damaged_note_of_the_start_is_named(tmp_path):
    begin(tmp_path, 2, ("local",))
    assert begin(tmp_path, 9, ("pooled",)).model_dump(exclude={"at"}) == {
        "threads": 2,
        "baselines": ("pooled", "local"),
    }
    (tmp_path / "started.json").write_text('{"at": 3}')
    with pytest.raises(RunError, match=r"damaged started\.json"):
        begin(tmp_path, 2)


def test_classification_runs_on_the_same_road(plan_file, tmp_path):
    record = simulate(plan_file(CLASSIFICATION), tmp_path / "run")
    assert record.task == "classification"
    assert record.class_names == ["benign", "malignant"]
    metrics = record.arms[0].test_pooled
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.parametrize(
    "change",
    [
        ('algorithm = "fedprox"',),
        ('algorithm = "fedavgm"',),
        ('algorithm = "fedadam"\nserver_learning_rate = 0.01',),
        ('algorithm = "fedbn"', 'dimensions = 2\nnorm = "batch"'),
        ('algorithm = "scaffold"', 'optimizer = "sgd"\nmomentum = 0.0'),
    ],
)
def test_every_algorithm_runs_and_moves_the_model(plan_file, tmp_path, change):
    changes = [("min_sites = 2", "min_sites = 2\n" + change[0])]
    if "fedbn" in change[0]:
        changes.append(("dimensions = 2", change[1]))
    if "scaffold" in change[0]:
        changes.append(("steps = 3", "steps = 3\n" + change[1]))
    record = simulate(plan_file(SEGMENTATION, *changes), tmp_path / "run")
    digests = [r.model_digest for r in record.arms[0].rounds]
    assert len(set(digests)) == 3
    assert all(r.outcome == "closed" for r in record.arms[0].rounds)
    has_model = (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert has_model == ("fedbn" not in change[0]) == (not record.no_model)


def test_ray_runs_the_same_apps_to_the_same_model(plan_file, tmp_path):
    plan = plan_file()
    simulate(plan, tmp_path / "here", threads=1)
    script = (
        "import sys; from pathlib import Path; from deploy.simulate import simulate\n"
        "simulate(Path(sys.argv[1]), Path(sys.argv[2]), engine='ray', threads=1)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(plan), str(tmp_path / "ray")],
        env=environment,
        capture_output=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "here")


def test_a_folder_in_use_is_not_overwritten(plan_file, tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(RunError, match="is not empty"):
        simulate(plan_file(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


def test_there_must_be_something_to_resume(plan_file, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        simulate(plan_file(), tmp_path / "run", resume=True)


def test_another_plan_does_not_resume_a_run(plan_file, tmp_path):
    simulate(plan_file(), tmp_path / "run")
    other = plan_file(SEGMENTATION, ("rounds = 3", "rounds = 4"))
    with pytest.raises(RunError, match="run of another plan"):
        simulate(other, tmp_path / "run", resume=True)


def test_a_site_without_accepted_cases_stops_the_run_before_training(
    plan_file, tmp_path
):
    plan = plan_file(SEGMENTATION, ("patch = [32, 32]", "patch = [512, 512]"))
    with pytest.raises(PlanError):
        simulate(plan, tmp_path / "run")
    assert not (tmp_path / "run" / "journal.sqlite").exists()


def test_every_public_case_is_judged_and_shown_and_none_trains(plan_file, tmp_path):
    plan = plan_file()
    manifest = plan.parent / "data" / "pictures" / "manifest.csv"
    rows = [line.split(",") for line in manifest.read_text().splitlines()[1:]]
    patient = rows[0][2]
    nodules = {row[3] for row in rows if row[2] == patient}
    public = (
        'public = { source = "pictures", format = "images", '
        f'where = {{ patient = "{patient}" }} }}'
    )
    with_public = plan_file(
        SEGMENTATION, ('data_root = "data"', f'data_root = "data"\n{public}')
    )
    record = simulate(with_public, tmp_path / "run", threads=1)
    assert len(record.pictures) == len(nodules)
    assert 0 <= record.arms[0].public["dice"] <= 1
    assert [site.name for site in record.sites] == ["north", "south"]


def test_an_unknown_baseline_is_a_usage_error():
    assert parse_baselines("pooled, local") == ("pooled", "local")
    with pytest.raises(UsageError, match="'global'"):
        parse_baselines("pooled,global")


def test_nothing_of_a_patient_is_in_what_the_server_keeps(plan_file, undisturbed):
    manifest = plan_file().parent / "data" / "pictures" / "manifest.csv"
    patients = {line.split(",")[2] for line in manifest.read_text().splitlines()[1:]}
    assert len(patients) == 12
    if not undisturbed.exists():
        simulate(plan_file(), undisturbed)
    server_files = [
        path
        for path in undisturbed.rglob("*")
        if path.is_file() and "sites" not in path.relative_to(undisturbed).parts
    ]
    assert len(server_files) > 5
    for path in server_files:
        content = path.read_bytes()
        assert not any(patient.encode() in content for patient in patients), path


def test_ctrl_c_exits_with_130_and_the_run_resumes(plan_file, tmp_path):
    plan = plan_file(SEGMENTATION, ("rounds = 3", "rounds = 2000"))
    command = [sys.executable, "-c", "from deploy.cli import main; main()", "simulate"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = tmp_path / "run"
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*command, str(plan), "--out", str(run)], env=environment, stderr=err
        )
        until = time.monotonic() + 120
        while "round 3/2000" not in (tmp_path / "err").read_text():
            assert time.monotonic() < until
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "--resume" in (tmp_path / "err").read_text()
    assert json.loads((run / "started.json").read_text())
    assert (run / "checkpoints").exists()
