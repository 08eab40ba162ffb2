"""The command as a hurried person, a script and a failing machine use it."""

import inspect
import io
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import common.errors
from common.errors import (
    EngineError,
    FedctError,
    IntakeError,
    ModelError,
    PlanError,
    RunError,
    StoppedError,
    StoreError,
    UsageError,
)
from common.plan_file import load_plan
from deploy.phantom.scanner import HOSPITALS
from deploy.simulate import simulate
from server.record import RunRecord
from tests.deploy.conftest import SEGMENTATION, SITES, environment
from tests.joining import a_hub, joined

VERBS = (
    ["simulate"],
    ["demo"],
    ["intake"],
    ["phantom"],
    ["purge"],
    ["report"],
    ["predict"],
    ["evaluate"],
    ["plan", "new"],
    ["plan", "check"],
    ["plan", "show"],
    ["plan", "schema"],
)


def refused(said, kind: type[FedctError] | int, *words: str) -> None:
    """One sentence on standard error, the right number, nothing else."""
    code = kind if isinstance(kind, int) else kind.exit_code
    assert said.code == code, said
    assert said.out == ""
    assert "Traceback" not in said.err
    assert "fedct: " in said.err
    for word in words:
        assert word in said.err


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory):
    """A finished run, and its plan; copy it before harming it."""
    plan = pictures / "finished.toml"
    vendors = tuple(hospital.scanner.vendor for hospital in HOSPITALS[:2])
    plan.write_text(SEGMENTATION + SITES % vendors)
    run = tmp_path_factory.mktemp("finished") / "run"
    simulate(plan, run, threads=1)
    return plan, run


@pytest.fixture
def harmed(finished, tmp_path):
    """A copy of the finished run, to harm; `half` takes the arm's outcome away."""

    def copy(*, half: bool = False) -> tuple[Path, Path]:
        plan, run = finished
        shutil.copytree(run, tmp_path / "harmed")
        if half:
            (tmp_path / "harmed" / "arm.json").unlink()
            (tmp_path / "harmed" / "final.safetensors").unlink()
        return plan, tmp_path / "harmed"

    return copy


def test_every_error_has_a_number_of_its_own():
    classes = [k for _, k in inspect.getmembers(common.errors, inspect.isclass)]
    codes = [kind.exit_code for kind in classes if issubclass(kind, FedctError)]
    assert len(codes) == len(set(codes)) > 10
    assert all(0 < code < 256 for code in codes)


# --- help and output ----------------------------------------------------------


@pytest.mark.parametrize("verb", [*VERBS, ["plan"], []], ids=" ".join)
def test_help_has_an_example_and_exits_0(fedct, verb):
    said = fedct(*verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert "Example: fedct" in " ".join(said.out.replace("│", " ").split())


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", "check", "nope.toml"],
        ["simulate", "nope.toml"],
        ["client", "approve", "site"],
        ["client", "work", "site", "nope.order"],
        ["server", "run", "hub", "nope.toml"],
    ],
    ids=" ".join,
)
def test_what_can_be_said_at_once_waits_for_no_network_to_be_imported(tmp_path, argv):
    text = "\n".join(
        (
            "import sys",
            "from deploy.cli import main",
            f"sys.argv = ['fedct', *{argv!r}]",
            "try: main()",
            "except SystemExit as end: print(end.code, 'torch' in sys.modules)",
        )
    )
    now = datetime.now(UTC)
    joined(a_hub(tmp_path / "hub", now=now), tmp_path / "site", now=now)
    said = subprocess.run(
        [sys.executable, "-c", text],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    code, has_torch = said.stdout.split()[-2:]
    assert has_torch == "False"
    assert (code == "0") == (argv[1] == "approve"), said.stderr


def test_help_lists_every_verb(fedct):
    said = fedct("--help").out + fedct("plan", "--help").out
    assert all(f" {verb[-1]} " in said for verb in VERBS)


def test_json_is_all_that_stands_on_standard_output(fedct, plan_file, tmp_path):
    plan, run = plan_file(), tmp_path / "run"
    said = fedct("simulate", plan, "--out", run, "--format", "json", "--threads", 1)
    assert said.code == 0
    assert RunRecord.model_validate_json(said.out).plan_digest == load_plan(plan).digest
    assert "federated round 3/3 closed: 2/2 sites" in said.err

    again = fedct("report", run, "--format", "json")
    assert json.loads(again.out) == json.loads(said.out)
    assert again.err == ""
    assert json.loads(fedct("plan", "check", plan, "--format", "json").out) == {
        "name": "pictures",
        "digest": load_plan(plan).digest,
    }
    shown = json.loads(fedct("plan", "show", plan, "--format", "json").out)
    assert shown["training"]["steps"] == 3
    assert json.loads(fedct("plan", "schema").out)["title"] == "Plan"
    assert json.loads(fedct("report", "--schema").out)["title"] == "RunRecord"
    source = plan.parent / "data" / "pictures"
    words = ("--source-format", "images", "--format", "json")
    taken = fedct("intake", source, "--store", tmp_path / "store", *words)
    rows = json.loads(taken.out)
    assert rows["accepted"] == rows["found"] == len(rows["series"]) > 20


def test_the_summary_names_where_report_and_model_lie(fedct, harmed):
    plan, run = harmed()
    said = fedct("simulate", plan, "--out", run, "--resume")
    assert said.code == 0
    flat = said.out.replace("\n", "")
    assert str(run / "report.html") in flat
    assert str(run / "model") in flat


def test_a_fresh_process_without_a_home_prints_json_alone(plan_file, tmp_path):
    run = [sys.executable, "-c", "from deploy.cli import main; main()"]
    words = ["simulate", str(plan_file()), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*run, *words, "--format", "json"],
        env=environment(HOME="/proc/nowhere", XDG_CONFIG_HOME="/proc/nowhere"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert RunRecord.model_validate_json(done.stdout).arms[0].rounds
    assert "Traceback" not in done.stderr


# --- plans that can't work ----------------------------------------------------


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (("steps = 3", "steps = 3\nstepz = 4"), PlanError, ["line 16", "unknown key"]),
        (('"UNet"', '"Unet"'), PlanError, ["line 8: model.name", "'UNet'", "'Unet'"]),
        (("min_sites = 2", "min_sites = 3"), PlanError, ["above the number of sites"]),
        (("[simulation]", "["), PlanError, ["is not valid TOML"]),
        (("[32, 32]", "[31, 32]"), ModelError, ["multiples of 2"]),
        (("[32, 32]", "[512, 512]"), PlanError, ["site 'north'", "smaller patch"]),
        (('["nodule"]', '["heart"]'), PlanError, ["site 'north'", "LABEL_MISSING"]),
        (("[data]", "[data]\nmin_cases = 99"), PlanError, ["data.min_cases"]),
        (
            ('name = "south"', 'name = "pooled"'),
            PlanError,
            ["is that of a rehearsal's own node"],
        ),
        (
            ('name = "south"', 'name = "public"'),
            PlanError,
            ["is that of a rehearsal's own node"],
        ),
        (('name = "south"', 'name = "north"'), PlanError, ["used twice"]),
        (('data_root = "data"', 'data_root = "dada"'), IntakeError, ["site 'north'"]),
    ],
)
def test_a_plan_that_can_t_work_is_refused_before_any_training(
    fedct, plan_file, tmp_path, change, kind, words
):
    run = tmp_path / "run"
    refused(
        fedct("simulate", plan_file(SEGMENTATION, change), "--out", run), kind, *words
    )
    assert not (run / "journal.sqlite").exists()
    assert not (run / "report.json").exists()


def test_a_plan_must_be_there_and_have_sites(fedct, tmp_path):
    run = tmp_path / "run"
    absent = fedct("simulate", tmp_path / "no.toml", "--out", run)
    refused(absent, PlanError, "'no.toml'", "fedct plan new")
    refused(fedct("simulate", tmp_path, "--out", run), PlanError, "can't be read")
    (tmp_path / "alone.toml").write_text(SEGMENTATION)
    alone = fedct("simulate", tmp_path / "alone.toml", "--out", run)
    refused(alone, PlanError, "no [simulation]", "fedct plan new")
    assert not run.exists()


@pytest.mark.parametrize("form", ["dicom", "nifti", "metaimage", "images"])
@pytest.mark.parametrize("source", ["absent", "a file", "empty", "text"])
def test_a_source_without_images_is_refused_by_site(
    fedct, plan_file, tmp_path, form, source
):
    folder = tmp_path / "source"
    if source == "a file":
        folder.write_text("x")
    elif source != "absent":
        folder.mkdir()
    if source == "text":
        (folder / "notes.txt").write_text("no image")
    change = ('"pictures"\nformat = "images"', f'"{folder}"\nformat = "{form}"')
    said = fedct("simulate", plan_file(SEGMENTATION, change), "--out", tmp_path / "run")
    refused(said, IntakeError, "site 'north'")
    assert not (tmp_path / "run" / "journal.sqlite").exists()
    if source == "text":
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]


# --- options ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "kind", "words"),
    [
        (["--baselines", "global"], UsageError, ["'global'"]),
        (["--engine", "slurm"], 2, []),
        (["--threads", "0"], 2, []),
        (["--nonsense"], 2, []),
        (["--device", "banana"], EngineError, ["'banana'", "cuda:N"]),
        (["--device", "cuda:77"], EngineError, ["usable GPUs"]),
        (["--resume"], RunError, ["holds no run"]),
    ],
)
def test_an_impossible_option_starts_nothing(
    fedct, plan_file, tmp_path, option, kind, words
):
    said = fedct("simulate", plan_file(), "--out", tmp_path / "run", *option)
    if kind == 2:
        assert (said.code, said.out) == (2, "")
        assert "Traceback" not in said.err
    else:
        refused(said, kind, *words)
    assert not (tmp_path / "run").exists()


def test_a_place_that_can_t_be_a_run_folder_is_refused(fedct, plan_file, tmp_path):
    file = tmp_path / "file"
    file.write_text("precious")
    plan = plan_file()
    refused(fedct("simulate", plan, "--out", file), RunError, "is a file")
    below = fedct("simulate", plan, "--out", file / "run")
    refused(below, RunError, "Not a directory", "choose another --out")
    refused(fedct("simulate", plan, "--out", "/proc/run"), RunError, "another --out")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "theirs").write_text("x")
    refused(fedct("simulate", plan, "--out", shared), RunError, "is not empty")
    assert file.read_text() == "precious"
    assert [path.name for path in shared.iterdir()] == ["theirs"]


def test_a_run_folder_that_others_may_enter_is_not_resumed(fedct, harmed):
    plan, run = harmed()
    run.chmod(0o755)
    said = fedct("simulate", plan, "--out", run, "--resume")
    refused(said, RunError, "others may enter it", "0700")


@pytest.mark.parametrize(
    ("argv", "kind", "words"),
    [
        (["intake", "{file}", "--store", "{new}"], IntakeError, ["source"]),
        (["intake", "{here}", "--store", "/proc/store"], StoreError, ["--store"]),
        (
            ["intake", "{here}", "--store", "{new}"],
            IntakeError,
            ["holds no CT series (dicom)", "check path and format"],
        ),
        (
            ["intake", "{here}", "--store", "{new}", "--where", "vendor"],
            UsageError,
            ["'vendor'", "COLUMN=VALUE"],
        ),
        (["phantom", "{file}", "--size", "tiny"], 1, ["Not a directory"]),
        (["phantom", "{new}", "--size", "huge"], UsageError, ["'huge'"]),
        (["purge", "{here}", "--yes"], StoreError, ["no such store"]),
        (["purge", "{new}", "--yes"], StoreError, ["no such store"]),
        (["report"], UsageError, ["--schema"]),
        (["report", "{here}"], RunError, ["--resume"]),
        (["plan", "check", "{new}"], PlanError, ["can't be read"]),
        (["plan", "show", "{file}"], PlanError, ["not valid TOML"]),
        (["demo", "--out", "{file}"], RunError, ["a file"]),
        (["demo", "--out", "{here}"], RunError, ["not empty"]),
        (["demo", "--out", "/proc/demo"], 1, ["expected a place with room"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_every_verb_refuses_what_it_can_t_do(fedct, tmp_path, argv, kind, words):
    here = tmp_path / "here"
    here.mkdir()
    here.chmod(0o700)
    (here / "file").write_text("not = [toml")
    places = {"here": here, "file": here / "file", "new": tmp_path / "new"}
    said = fedct(*(word.format_map(places) for word in argv))
    refused(said, kind, *words)
    assert [path.name for path in here.iterdir()] == ["file"]


def test_purge_asks_first_and_a_no_changes_nothing(
    fedct, finished, tmp_path, monkeypatch
):
    store = tmp_path / "store"
    shutil.copytree(finished[1] / "sites" / "north" / "store", store)
    cases = len(list((store / "cases").iterdir()))
    for answer in ("", "n\n"):
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        said = fedct("purge", store)
        assert said.code == StoppedError.exit_code
        assert "nothing was changed" in said.err
    assert len(list((store / "cases").iterdir())) == cases > 5
    assert fedct("purge", store, "--yes").out == f"removed {cases} prepared cases\n"
    assert list((store / "cases").iterdir()) == []


# --- run folders with damage --------------------------------------------------


def test_a_finished_arm_is_made_again_from_its_journal(fedct, harmed):
    plan, run = harmed()
    before = (run / "final.safetensors").read_bytes()
    shutil.rmtree(run / "model")
    (run / "arms.json").write_text("{")
    (run / "sites" / "north" / "site.json").write_text("{")
    for harm in (
        lambda: (run / "arm.json").write_text("{"),
        lambda: (run / "final.safetensors").write_bytes(b"junk"),
        (run / "final.safetensors").unlink,
        (run / "report.json").unlink,
    ):
        harm()
        assert fedct("simulate", plan, "--out", run, "--resume").code == 0
        assert (run / "final.safetensors").read_bytes() == before
        assert (run / "model" / "model.json").exists()


def _junk_journal(run: Path) -> None:
    for path in run.glob("journal.sqlite-*"):
        path.unlink()
    (run / "journal.sqlite").write_bytes(b"junk" * 2000)


def _short_checkpoints(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])


def _another_plan(run: Path) -> None:
    text = (run / "plan.toml").read_text()
    (run / "plan.toml").write_text(text.replace("rounds = 3", "rounds = 4"))


def _junk_started(run: Path) -> None:
    (run / "started.json").write_text("{")


def _junk_secret(run: Path) -> None:
    (run / "sites" / "north" / "store" / "secret").write_bytes(b"short")


@pytest.mark.parametrize(
    ("harm", "kind", "words"),
    [
        (_junk_journal, RunError, ["file is not a database", "backup"]),
        (_short_checkpoints, RunError, ["lost its checkpoint of round"]),
        (_another_plan, RunError, ["run of another plan"]),
        (_junk_started, RunError, ["damaged started.json"]),
        (_junk_secret, StoreError, ["site 'north'", "expected 32"]),
    ],
)
def test_a_damaged_run_folder_is_named_and_left_as_it_is(
    fedct, harmed, harm, kind, words
):
    plan, run = harmed(half=True)
    harm(run)
    before = {p: p.read_bytes() for p in run.iterdir() if p.suffix == ".sqlite"}
    refused(fedct("simulate", plan, "--out", run, "--resume"), kind, *words)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not (run / "arm.json").exists()


# --- two processes, signals, a full disk --------------------------------------


LONG = (("rounds = 3", "rounds = 2000"), ("steps = 3", "steps = 1"))


def rounds_of(run: Path) -> list[tuple[int, str]]:
    """Number and record of every round that counts."""
    with sqlite3.connect(run / "journal.sqlite") as journal:
        rows = journal.execute("SELECT number, record FROM round ORDER BY number")
        found = rows.fetchall()
    journal.close()
    return found


def test_a_second_process_on_a_run_folder_is_refused(fedct, start, plan_file, tmp_path):
    plan, run = plan_file(SEGMENTATION, *LONG), tmp_path / "run"
    first = start("simulate", plan, "--out", run)
    first.until("round 2/2000")
    words = ("'run' is in use by process " + str(first.pid), "wait until it has ended")
    refused(fedct("simulate", plan, "--out", run), RunError, *words)
    refused(fedct("simulate", plan, "--out", run, "--resume"), RunError, *words)
    first.send(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    second = start("simulate", plan, "--out", run, "--resume")  # the lock is free
    second.until("federated: resumed after round")


@pytest.mark.parametrize(
    ("number", "twice"), [(signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_a_stopped_run_says_how_to_go_on(start, plan_file, tmp_path, number, twice):
    plan, run = plan_file(SEGMENTATION, *LONG), tmp_path / "run"
    running = start("simulate", plan, "--out", run)
    running.until("round 1/2000")
    running.send(number)
    if twice:
        running.send(number)
    said = running.end()
    refused(said, StoppedError, "stopped", "--resume")
    assert len(rounds_of(run)) >= 1
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("verb", ["phantom", "rehearse"])
def test_a_stopped_verb_promises_nothing_that_it_can_not_do(start, tmp_path, verb):
    out = tmp_path / "out"
    where = [out, "--size", "small"] if verb == "phantom" else ["--out", out]
    running = start(verb, *where)
    running.until("hospital north: 8" if verb == "phantom" else "phantom CT of east")
    running.send(signal.SIGINT)
    said = running.end()
    refused(said, StoppedError, "stopped", "delete")
    assert "resume" not in said.err


def test_a_demo_that_was_stopped_says_how_to_go_on(fedct, start, tmp_path):
    out = tmp_path / "demo"
    running = start("demo", "--out", out, "--patients", 4)
    running.until("hospital north: 4 patients written")
    running.send(signal.SIGINT)
    refused(running.end(), StoppedError, "stopped")
    refused(fedct("demo", "--out", out), RunError, "not empty", "delete it")
    (out / "demo.toml").touch()
    refused(fedct("demo", "--out", out), RunError, "go on with: fedct simulate")


def test_a_full_disk_stops_a_run_that_later_goes_on(
    fedct, start, plan_file, small_disk
):
    plan, run = plan_file(SEGMENTATION, *LONG), small_disk / "run"
    running = start("simulate", plan, "--out", run)
    running.until("round 3/2000")
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    refused(running.end(), RunError, "'run'", "No space left", "--resume")
    assert not list(run.rglob("*.tmp"))
    before = rounds_of(run)
    assert len(before) >= 3
    (small_disk / "filler").unlink()
    again = start("simulate", plan, "--out", run, "--resume")
    again.until(f"federated: resumed after round {len(before)}")
    again.until(f"round {len(before) + 2}/2000")
    again.send(signal.SIGTERM)
    assert again.end().code == StoppedError.exit_code
    after = rounds_of(run)
    assert after[: len(before)] == before
    assert all(json.loads(record)["outcome"] == "closed" for _, record in after)


# --- names --------------------------------------------------------------------


def test_names_with_spaces_and_letters_of_any_language_work(
    fedct, plan_file, tmp_path, monkeypatch
):
    home = tmp_path / "Röntgen 胸部 CT"
    (home / "pläne").mkdir(parents=True)
    plan = home / "pläne" / "mein plan ✓.toml"
    text = plan_file().read_text().replace('data_root = "data"', 'data_root = "../d ä"')
    plan.write_text(text, encoding="utf-8")
    (home / "d ä").mkdir()
    (home / "d ä" / "pictures").symlink_to(plan_file().parent / "data" / "pictures")
    monkeypatch.chdir(home)
    said = fedct("simulate", Path("pläne") / plan.name, "--threads", 1)
    assert said.code == 0, said.err
    run = home / "runs" / "mein plan ✓"
    assert fedct("report", run).code == 0
    assert (run / "report.html").stat().st_size > 10_000
    resumed = fedct("simulate", Path("pläne") / plan.name, "--resume")
    assert resumed.code == 0


def test_the_data_root_can_be_replaced_on_the_command_line(
    fedct, plan_file, tmp_path, monkeypatch
):
    plan = plan_file(SEGMENTATION, ('data_root = "data"', 'data_root = "nowhere"'))
    monkeypatch.chdir(plan.parent)
    words = ("--out", tmp_path / "run", "--data-root", "data", "--threads", 1)
    assert fedct("simulate", plan, *words).code == 0
    assert (tmp_path / "run" / "model" / "model.json").exists()
