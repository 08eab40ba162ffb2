"""Which runs a hub takes on: those whose rounds could close."""

import errno
import os
import re
import threading
import time
from importlib.resources import files

import pytest

from common.durable import write_whole
from common.errors import (
    JoinError,
    PlanError,
    ReleaseError,
    RunError,
    SupervisorError,
    UsageError,
)
from deploy import run_state
from deploy.hub_runs import fail_run, note_waiting, stop_run, submit
from deploy.run_state import (
    FAILED_FILE,
    REPORT_FILE,
    REQUEST_FILE,
    RUNS,
    WAITING_FILE,
    WITHHELD_FILE,
    next_run,
    read_run,
    read_waiting,
)
from deploy.start import alone, is_running
from deploy.supervisor import PROCESSES_FILE
from server.run_files import ARM_RECORD_FILE, STARTED_FILE
from tests.deploy.test_cli import refused
from tests.joining import a_hub

SITES = ("a", "b", "c")


def plan(tmp_path, *lines: str):
    path = tmp_path / "plan.toml"
    text = files("deploy").joinpath("plans/rehearsal.toml").read_text()
    path.write_text(text + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "count", "named"),
    [
        ((), 2, "needs 3 sites in every round, got 2; name more by --sites, enrol"),
        (("min_cohort = 4",), 3, "needs 4 sites in every round, got 3"),
        (("colluders = 3",), 3, "needs 4 sites in every round, got 3"),
        ((), 258, "got 258 sites, expected at most 257"),
        ((), 1, "got 1"),
    ],
)
def test_masks_that_could_never_be_opened_are_refused_when_they_are_asked_for(
    tmp_path, lines, count, named
):
    sites = [f"s{number}" for number in range(count)]
    with pytest.raises(PlanError, match=re.escape(named)):
        submit(tmp_path / "runs", plan(tmp_path, *lines), "lung", sites)
    assert not (tmp_path / "runs").exists()


def test_a_site_that_is_reached_by_files_has_no_masks(tmp_path):
    path = plan(tmp_path)
    with pytest.raises(PlanError, match="give all sites a line"):
        submit(tmp_path / "runs", path, "lung", SITES, parcels=("c",))
    path.write_text(
        path.read_text().replace('aggregation = "on"', 'aggregation = "off"')
    )
    assert submit(tmp_path / "runs", path, "lung", SITES, parcels=("c",)).is_dir()


def test_enough_sites_are_taken(tmp_path):
    path = plan(tmp_path, "colluders = 2")
    assert submit(tmp_path / "runs", path, "lung", SITES).is_dir()


def test_too_few_sites_are_told_every_way_out(tmp_path):
    with pytest.raises(PlanError) as error:
        submit(tmp_path / "runs", plan(tmp_path), "lung", SITES[:2])
    for way in ("--sites", "enrol more", "privacy.min_cohort", "aggregation = 'off'"):
        assert way in str(error.value)


def test_a_run_is_named_as_its_plan_and_not_as_the_file(tmp_path):
    path = plan(tmp_path).rename(tmp_path / "Lung CT.toml")
    folder = submit(tmp_path / "hub" / RUNS, path, None, SITES)
    assert folder.name == "rehearsal"
    again = re.escape(f"`fedct server resume {tmp_path / 'hub'} rehearsal`")
    with pytest.raises(RunError, match=again):
        submit(tmp_path / "hub" / RUNS, path, None, SITES)


@pytest.mark.parametrize("full", ["plan.toml", "request.json"])
def test_a_disk_that_is_full_keeps_no_name(tmp_path, monkeypatch, full):
    def write(path, content):
        if path.name == full:
            path.with_suffix(".tmp").write_bytes(content[:1])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_whole(path, content)

    monkeypatch.setattr("deploy.hub_runs.write_whole", write)
    runs, path = tmp_path / "hub" / RUNS, plan(tmp_path)
    with pytest.raises(OSError, match="No space"):
        submit(runs, path, "lung", SITES)
    assert list(runs.iterdir()) == []
    monkeypatch.undo()
    assert read_run(submit(runs, path, "lung", SITES)).state == "queued"


@pytest.mark.parametrize("left", [(), ("plan.toml", "request.json.7.tmp")])
def test_a_request_that_was_cut_short_keeps_no_name(tmp_path, left):
    folder = tmp_path / "hub" / RUNS / "lung"
    folder.mkdir(mode=0o700, parents=True)
    for name in left:
        (folder / name).write_bytes(b"cut")
    assert submit(folder.parent, plan(tmp_path), "lung", SITES) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["plan.toml", "request.json"]
    assert read_run(folder).rounds == 5


def test_a_run_that_lost_its_request_is_not_mixed_with_a_new_one(tmp_path):
    folder = submit(tmp_path / "hub" / RUNS, plan(tmp_path), "lung", SITES)
    (folder / STARTED_FILE).write_text("{}")
    (folder / REQUEST_FILE).unlink()
    with pytest.raises(RunError, match=r"no request\.json, expected a new name"):
        submit(folder.parent, plan(tmp_path), "lung", SITES)
    assert (folder / STARTED_FILE).exists()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with three runs, asked for one after the other."""
    folder = a_hub(tmp_path / "hub").folder
    for number, name in enumerate(("c", "a", "b")):
        monkeypatch.setattr("deploy.hub_runs.now", lambda n=number: f"2026-03-0{n + 1}")
        submit(folder / RUNS, plan(tmp_path), name, SITES)
    return folder


def test_a_queued_run_names_those_before_it(hub):
    behind = {name: read_run(hub / RUNS / name).behind for name in "abc"}
    assert behind == {"c": [], "a": ["c"], "b": ["c", "a"]}
    assert next_run(hub / RUNS) == hub / RUNS / "c"
    stop_run(hub / RUNS / "c")
    (hub / RUNS / "b" / STARTED_FILE).write_text("{}")  # begun, and asked for later
    assert read_run(hub / RUNS / "a").behind == ["b"]
    assert read_run(hub / RUNS / "b").behind == []


def test_a_resumed_run_that_waits_its_turn_names_the_one_at_hand(hub, fedct):
    for number, name in enumerate("cb"):  # c was stopped while b had its turn
        started = hub / RUNS / name / STARTED_FILE
        started.write_text("{}")
        os.utime(started, ns=(number, number))
    behind = {name: read_run(hub / RUNS / name).behind for name in "abc"}
    assert behind == {"a": ["b", "c"], "b": [], "c": ["b"]}
    with alone(hub, "hub"):
        assert "c comes after b" in fedct("server", "status", hub).out
        stop_run(hub / RUNS / "c")
        said = fedct("server", "resume", hub, "c", "--no-follow")
        assert (said.code, said.err) == (0, "it waits: its turn comes after b\n")
    os.utime(hub / RUNS / "c" / STARTED_FILE)  # b ended or the hub began anew
    assert read_run(hub / RUNS / "c").behind == []


def test_who_follows_or_leaves_a_run_is_told_what_it_waits_for(hub, fedct, tmp_path):
    down = "hub is not running; start it with `fedct server start`"
    path = plan(tmp_path)
    words = ("server", "run", hub, path, "--name", "d", "--sites", "", "--no-follow")
    refused(fedct(*words), PlanError, "got 0")
    stop_run(hub / RUNS / "c")
    said = fedct("server", "resume", hub, "c", "--no-follow")
    assert (said.code, said.err) == (0, f"it waits: {down}\n")
    with alone(hub, "hub"):
        said = fedct("server", "status", hub)
        assert "b comes after c, a" in said.out
        stop_run(hub / RUNS / "a")
        said = fedct("server", "resume", hub, "a", "--no-follow")
        assert (said.code, said.err) == (0, "it waits: its turn comes after c\n")
    assert down in fedct("server", "status", hub).err


def test_who_follows_sees_the_hub_go_down(hub, fedct, monkeypatch):
    told = iter([True, False])
    monkeypatch.setattr("deploy.start.is_running", lambda _: next(told, False))
    real, seen = run_state.read_run, []

    def reading(folder):
        seen.append(folder)
        if len(seen) == 3:
            stop_run(folder)
        return real(folder)

    monkeypatch.setattr(run_state, "read_run", reading)
    said = fedct("server", "follow", hub, "c")
    assert said.code == 0
    assert said.err.count("c: queued, 0 of 5 rounds") == 2
    assert said.err.count("\n  hub is not running; start it with") == 1


def test_a_folder_that_is_no_hub_s_has_no_runs_to_follow(fedct, tmp_path, hub):
    for verb in ("follow", "stop", "resume"):
        said = fedct("server", verb, tmp_path / "nohub", "lung-1")
        refused(said, JoinError, "no readable hub.toml")
    refused(fedct("server", "follow", hub, "lung-1"), RunError, "no run 'lung-1'")


@pytest.mark.parametrize("name", ["x" * 300, "x" * 39, "", ".", "..", "A b", "a\0"])
def test_what_no_run_can_be_called_is_refused_by_the_rule(hub, fedct, name):
    for verb in ("follow", "stop", "resume"):
        said = fedct("server", verb, hub, name)
        refused(said, UsageError, "run got the name ", "at most 38; see `fedct server")
        assert len(said.err) < 260


def test_who_only_looks_keeps_no_supervisor_from_starting(hub):
    with alone(hub, "hub"):
        assert is_running(hub)
        with pytest.raises(SupervisorError), alone(hub, "hub", 0.05):
            raise AssertionError
    held = threading.Event()

    def look() -> None:
        with alone(hub, "site"):
            held.set()
            time.sleep(0.05)

    looking = threading.Thread(target=look)
    looking.start()
    assert held.wait(5)
    with alone(hub, "hub"):
        looking.join()


DAMAGED = {
    "empty": b"",
    "binary": b"\0\xff\xfe",
    "cut": b'{"why": "no ro',
    "a list": b"[1]",
    "a number": b"5",
    "nothing": b"null",
    "a word": b'"x"',
    "another": b'{"a": null}',
    "of another kind": b'{"why": null, "waiting": 5}',
    "deep": b"[" * 100_000,
}
damaged = pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)


@damaged
def test_a_damaged_list_of_programs_hides_no_run(hub, fedct, content):
    (hub / PROCESSES_FILE).write_bytes(content)
    with alone(hub, "hub"):
        said = fedct("server", "status", hub)
    assert (said.code, said.err) == (0, "")
    assert "its processes.json can't be read, expected what" in flat(said.out)
    assert "b comes after c, a" in said.out
    assert fedct("server", "status", hub, "--format", "json").code == 54


@damaged
def test_a_run_whose_end_can_t_be_read_says_so_and_hides_no_other(hub, fedct, content):
    bad, kept, other = (hub / RUNS / name for name in "cab")
    fail_run(other, "no room")
    (bad / FAILED_FILE).write_bytes(content)
    for name in (ARM_RECORD_FILE, REPORT_FILE):
        (kept / name).write_text("{}")
    (kept / WITHHELD_FILE).write_bytes(content)
    said = fedct("server", "status", hub)
    assert "Traceback" not in said.err
    for words in (
        "c failed: run 'c' has a failed.json that can't be read, expected the reason",
        "a withheld: run 'a' has a withheld.json that can't be read, expected",
        "b failed: no room",
    ):
        assert words in flat(said.out)
    said = fedct("server", "follow", hub, "c")
    refused(said, RunError, "can't be read", "`fedct server resume` tries again")
    said = fedct("server", "follow", hub, "a")
    assert said.code == ReleaseError.exit_code
    assert "report.json says what the model did not pass" in said.err
    assert fedct("server", "resume", hub, "c", "--no-follow").code == 0
    assert read_run(bad).state == "queued"


@damaged
def test_a_damaged_note_of_who_is_waited_for_is_written_anew(hub, content):
    run = hub / RUNS / "c"
    (run / STARTED_FILE).write_text("{}")
    (run / WAITING_FILE).write_bytes(content)
    assert (read_run(run).state, read_run(run).waiting) == ("running", {})
    note_waiting(run, {"north": "its plan waits for approval"})
    assert read_run(run).waiting == {"north": "its plan waits for approval"}
    (run / WAITING_FILE).write_bytes(content)
    note_waiting(run, {})
    assert read_waiting(run) == {}


@pytest.mark.parametrize("content", [b"", b"\0", b"[" * 100_000, b'{"due": 1e300}'])
def test_a_damaged_order_in_a_file_hides_no_run_and_can_be_stopped(hub, fedct, content):
    run = hub / RUNS / "c"
    (run / STARTED_FILE).write_text("{}")
    (run / "parcels/orders").mkdir(parents=True)
    (run / "parcels/orders/1.json").write_bytes(content)
    with alone(hub, "hub"):
        said = fedct("server", "status", hub)
    assert (said.code, said.err) == (0, "")
    assert "c running: run 'c' has an order 1.json in parcels/orders" in flat(said.out)
    assert "b comes after c, a" in said.out
    assert fedct("server", "stop", hub, "c").code == 0


def flat(text: str) -> str:
    """Text without the line breaks of a narrow terminal."""
    return " ".join(text.split())
