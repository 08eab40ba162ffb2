"""The supervisor keeps real processes running, and leaves none behind."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import SupervisorError
from deploy import supervisor
from deploy.supervisor import Program, read_processes, supervise

SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")


def until(true: Callable[[], object], within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def running(tmp_path, monkeypatch):
    """Start supervising in a thread; stops at the end."""
    monkeypatch.setattr(supervisor, "_SHORTEST_S", 0.1)
    stop, said, threads = threading.Event(), [], []

    def start(*programs: Program) -> list[str]:
        thread = threading.Thread(
            target=supervise, args=(tmp_path, programs, stop, said.append)
        )
        thread.start()
        threads.append(thread)
        return said

    yield start
    stop.set()
    for thread in threads:
        thread.join()
    assert not any(row["running"] for row in read_processes(tmp_path))


def pid_of(folder: Path, name: str) -> int | None:
    return next(
        (
            r["pid"]
            for r in read_processes(folder)
            if r["name"] == name and r["running"]
        ),
        None,
    )


def test_a_killed_program_is_started_again_and_the_restart_is_counted(
    running, tmp_path
):
    running(Program("sleeper", SLEEPER))
    until(lambda: pid_of(tmp_path, "sleeper"))
    first = pid_of(tmp_path, "sleeper")
    os.kill(first, signal.SIGKILL)
    until(lambda: pid_of(tmp_path, "sleeper") not in (None, first))
    row = read_processes(tmp_path)[0]
    assert (row["restarts"], row["last_exit"]) == (1, -signal.SIGKILL)


def test_the_pause_grows_while_a_program_keeps_failing(running, tmp_path):
    said = running(Program("failing", (sys.executable, "-c", "raise SystemExit(7)")))
    until(lambda: sum("ended with 7" in line for line in said) >= 3, 20)
    pauses = [line.split("in ")[1] for line in said if "again in" in line]
    assert read_processes(tmp_path)[0]["restarts"] >= 2
    assert len(pauses) >= 3


def test_a_program_waits_until_the_one_before_it_is_ready(running, tmp_path):
    door = tmp_path / "door"
    running(Program("first", SLEEPER, is_ready=door.exists), Program("second", SLEEPER))
    until(lambda: pid_of(tmp_path, "first"))
    time.sleep(0.5)
    assert pid_of(tmp_path, "second") is None
    door.touch()
    until(lambda: pid_of(tmp_path, "second"))


def test_a_program_hears_of_a_changed_file(running, tmp_path):
    file, heard = tmp_path / "crl", tmp_path / "heard"
    file.write_text("old")
    code = textwrap.dedent(
        f"""
        import pathlib, signal, time
        heard = pathlib.Path({str(heard)!r})
        signal.signal(signal.SIGHUP, lambda *_: heard.write_text("reloaded"))
        pathlib.Path({str(heard)!r} + ".up").touch()
        time.sleep(600)
        """
    )
    running(Program("nginx", (sys.executable, "-c", code), reload_on=(file,)))
    until((tmp_path / "heard.up").exists)
    file.write_text("new")
    os.utime(file, ns=(1, 1))
    until(heard.exists)


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SupervisorError, match="no-such-program"):
        supervise(
            tmp_path, [Program("x", ("no-such-program",))], threading.Event(), print
        )


def test_programs_die_with_a_supervisor_that_is_killed(tmp_path):
    code = textwrap.dedent(
        f"""
        import pathlib, sys, threading
        from deploy.supervisor import Program, supervise
        argv = (sys.executable, "-c", "import time; time.sleep(600)")
        folder = pathlib.Path({str(tmp_path)!r})
        supervise(folder, [Program("sleeper", argv)], threading.Event(), print)
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: pid_of(tmp_path, "sleeper"))
    parent.kill()
    parent.wait()
    until(lambda: pid_of(tmp_path, "sleeper") is None)


def test_what_a_program_said_at_last_is_told(running):
    said = running(
        Program("sad", (sys.executable, "-c", "raise SystemExit('no cake\\n')"))
    )
    until(lambda: "sad said at last: no cake" in said)


def test_programs_keep_their_caches_in_the_folder_and_need_no_home(
    running, tmp_path, monkeypatch
):
    monkeypatch.delenv("HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    look = "import json, os; print(json.dumps(dict(os.environ)), flush=True)"
    running(Program("looker", (sys.executable, "-c", look)))
    log = tmp_path / "logs/looker.log"
    until(lambda: log.exists() and log.read_text().endswith("\n"))
    seen = json.loads(log.read_text().splitlines()[0])
    own = str(tmp_path / "cache")
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "FLWR_HOME"):
        assert seen[name].startswith(own)
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_full_disk_costs_log_and_status_and_no_program(
    running, tmp_path, monkeypatch
):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    written = supervisor.write_private
    monkeypatch.setattr(supervisor, "write_private", full)
    (tmp_path / "logs").mkdir(mode=0o700)
    (tmp_path / "logs/sleeper.log").mkdir()  # nor can this one be opened
    said = running(Program("sleeper", SLEEPER))
    until(lambda: any("is the disk full?" in line for line in said))
    time.sleep(0.5)
    assert not [line for line in said if "ended" in line]
    assert len([line for line in said if "disk full" in line]) == 1
    monkeypatch.setattr(supervisor, "write_private", written)
    until(lambda: pid_of(tmp_path, "sleeper"))  # and there it is again
