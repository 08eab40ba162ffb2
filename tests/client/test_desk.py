"""A hospital decides once, and what it decided holds."""

import json
import os
import stat
import subprocess
import sys
import threading

import pytest

from client.desk import (
    LARGEST_PLAN,
    MOST_WAITING,
    check_approved,
    check_open,
    decide,
    pause,
    plan_of,
    queue_plan,
    resume,
)
from client.desk_control import DeskControl
from client.desk_file import read_desk
from client.policy import Policy
from common.error_numbers import number_of, spoken
from common.errors import FedctError, PlanError, PolicyError, StoreError, UsageError
from common.plan_file import plan_toml
from tests.client.conftest import is_approved, slices
from tests.plans import SLICES

AUTO = Policy(approve="auto")


@pytest.fixture
def site(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


def text(number: int = 1) -> str:
    """The text of a plan that differs from others by its seed."""
    return plan_toml(slices(plan__seed=number))


def test_a_plan_counts_only_once_a_person_approved_it(site):
    entry = queue_plan(site, text(), "run-1")
    assert (entry.state, entry.run) == ("waiting", "run-1")
    assert not is_approved(site, entry.digest)
    with pytest.raises(PolicyError, match="has it as waiting"):
        check_approved(site, entry.digest)
    decide(site, entry.digest[:8].upper(), "approved")
    assert is_approved(site, entry.digest)
    check_approved(site, entry.digest)
    assert plan_of(site, entry.digest).digest == entry.digest == slices().digest


def test_an_approval_covers_one_digest_and_no_other(site):
    first = queue_plan(site, text(1), "run-1")
    second = queue_plan(site, text(2), "run-1")
    decide(site, first.digest, "approved")
    assert not is_approved(site, second.digest)
    with pytest.raises(PolicyError, match="never saw"):
        check_approved(site, "0" * 64)


def test_what_was_denied_stays_denied_whatever_the_server_and_the_policy_say(site):
    entry = queue_plan(site, text(), "run-1")
    decide(site, entry.digest, "denied")
    again = queue_plan(site, text(), "run-2", AUTO)
    assert (again.state, again.run) == ("denied", "run-1")
    assert not is_approved(site, entry.digest)
    with pytest.raises(PolicyError, match="denied"):
        check_approved(site, entry.digest)


def test_denying_an_approved_plan_takes_the_approval_back(site):
    entry = queue_plan(site, text(), "run-1", AUTO)
    assert entry.state == "approved"
    assert is_approved(site, entry.digest)
    decide(site, entry.digest, "denied")
    assert not is_approved(site, entry.digest)


def test_a_plan_asked_for_again_is_queued_once(site):
    first = queue_plan(site, text(), "run-1")
    assert queue_plan(site, text(), "run-2") == first
    assert len(read_desk(site).plans) == 1


def test_places_of_the_servers_machine_are_not_kept(site):
    places = '\n[[simulation.sites]]\nname = "north"\nsource = "/srv/secret"\n'
    quorum = "[federation]\nmin_sites = 1\n"
    entry = queue_plan(site, SLICES.replace("[federation]\n", quorum) + places, "run")
    assert "secret" not in (site / "plans" / f"{entry.digest}.toml").read_text()


@pytest.mark.parametrize(
    ("plan", "run", "kind"),
    [
        ("not TOML", "run", PlanError),
        ("x" * (LARGEST_PLAN + 1), "run", PolicyError),
        (SLICES, "../../etc", PolicyError),
        (SLICES, "\x1b[2J", PolicyError),
        (SLICES, "", PolicyError),
    ],
)
def test_what_is_no_plan_of_a_named_run_leaves_no_trace(site, plan, run, kind):
    with pytest.raises(kind):
        queue_plan(site, plan, run, AUTO)
    assert list(site.rglob("*.toml")) == []
    assert read_desk(site).plans == ()


def test_a_server_can_not_fill_the_desk(site):
    entries = [queue_plan(site, text(n), "run") for n in range(MOST_WAITING)]
    with pytest.raises(PolicyError, match="waiting already"):
        queue_plan(site, text(MOST_WAITING), "run")
    assert len(list((site / "plans").iterdir())) == MOST_WAITING
    decide(site, entries[3].digest, "denied")
    queue_plan(site, text(MOST_WAITING), "run")


@pytest.mark.parametrize("prefix", ["", "abc", "g" * 8, "../../etc", "0" * 65])
def test_a_plan_is_named_by_eight_digits_or_more(site, prefix):
    queue_plan(site, text(), "run")
    with pytest.raises(UsageError, match="at least 8"):
        decide(site, prefix, "approved")


def test_a_prefix_that_names_two_plans_decides_on_neither(site):
    entry = queue_plan(site, text(), "run")
    path = site / "desk" / "desk.json"
    desk = json.loads(path.read_text())
    desk["plans"].append({**desk["plans"][0], "digest": entry.digest[:8] + "0" * 56})
    path.write_text(json.dumps(desk))
    with pytest.raises(UsageError, match="beginning of 2 plans"):
        decide(site, entry.digest[:8], "approved")
    assert not is_approved(site, entry.digest)
    with pytest.raises(UsageError, match="beginning of no plan"):
        decide(site, "12345678", "approved")


def test_a_plan_that_was_changed_on_the_disk_can_not_be_approved(site):
    entry = queue_plan(site, text(1), "run")
    (site / "plans" / f"{entry.digest}.toml").write_text(text(2))
    with pytest.raises(StoreError, match="is now plan"):
        decide(site, entry.digest, "approved")
    assert not is_approved(site, entry.digest)
    with pytest.raises(StoreError, match="never saw"):
        plan_of(site, "0" * 64)


def test_a_plan_s_text_that_can_not_be_read_is_a_clear_error(site):
    entry = queue_plan(site, text(), "run")
    path, control = site / "plans" / f"{entry.digest}.toml", DeskControl(site)
    assert control.plans()[0].toml == path.read_text("utf-8")
    path.write_bytes(b"\x00\xff garbage {")
    said = f"can't read the text of plan {entry.digest[:12]} .*, in UTF-8; put it back"
    for ask in (control.plans, lambda: control.decide(entry.digest, approve=True)):
        with pytest.raises(FedctError):
            ask()
    with pytest.raises(StoreError, match=said):
        control.plans()
    path.unlink()
    with pytest.raises(StoreError, match="put it back from a backup"):
        control.plans()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 2}', b'{"plan": []}'])
def test_a_desk_that_can_not_be_read_approves_nothing(site, content):
    entry = queue_plan(site, text(), "run", AUTO)
    (site / "desk" / "desk.json").write_bytes(content)
    for ask in (lambda: is_approved(site, entry.digest), lambda: check_open(site)):
        with pytest.raises(StoreError, match="can't be read") as caught:
            ask()
        assert spoken(number_of(caught.value)) == "23.6"
    with pytest.raises(StoreError):
        queue_plan(site, text(), "run", AUTO)
    assert (site / "desk" / "desk.json").read_bytes() == content


def test_a_pause_is_told_without_its_reason_and_lasts_over_restarts(site):
    check_open(site)
    first = pause(site, "patient Miller complained")
    with pytest.raises(PolicyError, match="paused by its engineer since") as refused:
        check_open(site)
    assert "Miller" not in str(refused.value)
    code = "import sys, pathlib, client.desk as d; d.check_open(pathlib.Path('.'))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=site,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PolicyError" in ended.stderr
    second = pause(site, "scanner moved")
    assert (second.since, second.reason) == (first.since, "scanner moved")
    assert resume(site) is True
    assert resume(site) is False
    check_open(site)


def test_decisions_made_at_the_same_time_all_hold(site):
    entries = [queue_plan(site, text(n), "run") for n in range(12)]
    threads = [
        threading.Thread(target=decide, args=(site, entry.digest, "approved"))
        for entry in entries
    ] + [threading.Thread(target=pause, args=(site, "at once"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_approved(site, entry.digest) for entry in entries)
    assert read_desk(site).pause is not None


def test_others_can_read_nothing(site):
    queue_plan(site, text(), "run", AUTO)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in site.rglob("*")}
    assert set(modes.values()) == {0o700, 0o600}, modes


def test_a_full_disk_changes_nothing_and_says_so(site, monkeypatch):
    entry = queue_plan(site, text(), "run")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FedctError, match="No space left"):
        decide(site, entry.digest, "approved")
    with pytest.raises(FedctError, match="No space left"):
        pause(site, "")
    monkeypatch.undo()
    assert not is_approved(site, entry.digest)
    check_open(site)
    assert not list(site.rglob("*.tmp"))
