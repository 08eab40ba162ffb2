"""A finished run is read back only as its journal bears it out."""

import re
import shutil
import sqlite3
from contextlib import closing

from common.errors import RunError
from common.package import load_package, save_package
from common.plan_file import load_plan
from deploy import inversion_audit
from deploy.privacy_audit import PRIVACY_FILE, audit_run
from deploy.run_folder import read_arm_record
from deploy.simulate import simulate
from tests.deploy.conftest import SEGMENTATION


def test_an_audit_says_nothing_of_a_run_that_its_journal_does_not_bear_out(
    plan_file, tmp_path, fedct, monkeypatch
):
    monkeypatch.setattr(inversion_audit, "STEPS", 2)  # of no matter here
    text = SEGMENTATION + "\n[privacy.dp]\nnoise_multiplier = 3.0\ndelta = 1e-5\n"
    origin, folder = tmp_path / "origin", tmp_path / "run"
    simulate(plan_file(text, ("rounds = 3", "rounds = 2")), origin)
    audit_run(origin)  # the control: as it was written it is audited
    known = (origin / PRIVACY_FILE).read_bytes()
    for change, said in CHANGES.items():
        shutil.copytree(origin, folder)
        change(folder)
        got = fedct("privacy", "audit", folder)
        assert got.code == RunError.exit_code, change.__name__
        assert said in got.err, change.__name__
        assert "put" in got.err or "nothing was trained" in got.err
        for path in (folder, folder / "model"):
            assert (path / PRIVACY_FILE).read_bytes() == known, change.__name__
        shutil.rmtree(folder)


def smaller_delta(folder):
    path = folder / "plan.toml"
    text, count = re.subn(r"delta = 1e-0?5", "delta = 1e-12", path.read_text())
    assert count == 1
    path.write_text(text)


def half_a_plan(folder):
    """As a cut may leave it: still a plan, but without DP."""
    path = folder / "plan.toml"
    text = path.read_text()
    path.write_text(text[: text.index("[privacy.dp]")])
    assert load_plan(path).privacy.dp is None


def unread_plan(folder):
    (folder / "plan.toml").write_bytes(b"\x00\xff{")


def other_costs(folder):
    path = folder / "arm.json"
    path.write_text(
        re.sub(r'"epsilon_pld": ?[0-9.]+', '"epsilon_pld":0.1', path.read_text())
    )


def all_void(folder):
    with closing(sqlite3.connect(folder / "journal.sqlite")) as journal, journal:
        journal.execute("UPDATE round SET record = replace(record, 'closed', 'void')")
    path = folder / "arm.json"
    path.write_text(path.read_text().replace('"closed"', '"void"'))


def other_round(folder):
    """The other round's model in place of the final one."""
    final = read_arm_record(folder).final_round
    checkpoint = f"checkpoints/round-{3 - final:06}.safetensors"
    shutil.copy(folder / checkpoint, folder / "final.safetensors")


def other_round_and_record(folder):
    other_round(folder)
    arm = read_arm_record(folder)
    arm = arm.model_copy(update={"final_round": 3 - arm.final_round})
    (folder / "arm.json").write_text(arm.model_dump_json())


def another_model(folder):
    """Handed out under this run's name; the package itself is whole."""
    package = load_package(folder / "model")
    state = {name: 2 * tensor for name, tensor in package.state.items()}
    record = (folder / "model" / PRIVACY_FILE).read_bytes()
    save_package(folder / "model", package.plan, state, facts=package.facts)
    (folder / "model" / PRIVACY_FILE).write_bytes(record)


def no_journal(folder):
    for path in folder.glob("journal.sqlite*"):
        path.unlink()


CHANGES = {
    smaller_delta: "run 'run' has another plan.toml than it wrote",
    half_a_plan: "run 'run' has another plan.toml than it wrote",
    unread_plan: "holds no finished run",
    other_costs: "run 'run' has another arm.json than it wrote",
    all_void: "run 'run' has no round that counted in 2, expected one",
    other_round: "run 'run' has another final.safetensors than it wrote",
    other_round_and_record: "run 'run' has another arm.json than it wrote (a model of",
    another_model: "run 'run' has another model than it wrote",
    no_journal: "holds no finished run",
}
