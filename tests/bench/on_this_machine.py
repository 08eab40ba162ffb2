"""A real federation on this machine, for the benchmarks: hub, sites, keys, processes.

The processes are those of `fedct server start` and `fedct client start`, the line is
mutual TLS 1.3 through the hub's nginx, and the times are those of their own logs.
"""

import datetime as dt
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.install import install, read_kit
from client.joining import create_site
from client.site_file import CLIENT_FILE, new_settings
from common.certificates import fingerprint_of
from common.joining import request_fingerprint
from common.sources import Source
from deploy.hub_runs import submit
from deploy.run_state import RUNS, read_run
from deploy.supervisor import read_processes
from server.asked import read_request
from server.authority import create_hub
from server.enrol import enroll
from server.hub import HubFile
from server.journal import entries, open_journal
from server.record import RoundRecord
from server.run_files import JOURNAL_FILE

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) INFO (.*)")


@dataclass(frozen=True)
class Place:
    """A hub's folder and its sites'."""

    hub: Path
    sites: dict[str, Path]


def federate(root: Path, sources: Mapping[str, Source], threads: int = 1) -> Place:
    """Make a hub and sites that have joined it.

    Args:
        root: A new folder.
        sources: Name of each site to its images; paths absolute.
        threads: CPU threads of each site.
    """
    now = dt.datetime.now(dt.UTC)
    ports = free_port(), free_port()
    settings = HubFile(
        name="localhost", port=ports[0], listen="127.0.0.1", superlink_port=ports[1]
    )
    hub = create_hub(root / "hub", settings, now)
    sites = {}
    for name, source in sources.items():
        sites[name] = folder = root / name
        wanted = new_settings(
            name, settings.address, Path(source.source), source.format, "cpu"
        )
        changes = {
            "threads": threads,
            "data": source,
            "policy": wanted.policy.model_copy(update={"approve": "auto"}),
        }
        path, request = create_site(folder, wanted.model_copy(update=changes), now)
        told = request_fingerprint(request)
        kit = enroll(hub, read_request(path.read_bytes()), told, 90, now)
        install(folder, read_kit(kit.read_bytes()), fingerprint_of(hub.authority), now)
        assert (folder / CLIENT_FILE).exists()
    return Place(hub.folder, sites)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def program(argv: list[str], log: Path, **options: object) -> Iterator[int]:
    """A process in the background, ended in order; gives its id."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            **{"env": ENVIRONMENT, **options},  # type: ignore[call-overload]
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def running(folder: Path, who: str) -> Iterator[None]:
    """`fedct WHO start FOLDER` in the background."""
    command = [sys.executable, "-c", "from deploy.cli import main; main()"]
    with program([*command, who, "start", str(folder)], folder / "start.log"):
        yield


@contextmanager
def all_running(place: Place) -> Iterator[None]:
    """The hub and every site."""
    with ExitStack() as stack:
        stack.enter_context(running(place.hub, "server"))
        until(lambda: is_open(place), 600.0)
        for folder in place.sites.values():
            stack.enter_context(running(folder, "client"))
        yield


def is_open(place: Place) -> bool:
    """Whether the hub has put every site on the SuperLink's register."""
    log = place.hub / "logs" / "runner.log"
    return log.exists() and log.read_text().count(" let in\n") >= len(place.sites)


def run(place: Place, plan: Path, name: str, sites: list[str] | None = None) -> Path:
    """Ask for a run and wait for its end; its folder."""
    folder = submit(place.hub / RUNS, plan, name, sites or list(place.sites))
    wait_for_end(folder)
    return folder


def wait_for_end(folder: Path) -> None:
    """Until a run is finished."""

    def is_over() -> bool:
        state = read_run(folder)
        assert state.state != "failed", state.why
        return state.state == "finished"

    until(is_over, 7200.0, every_s=0.5)


def until(true: Callable[[], object], within_s: float, every_s: float = 0.1) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(every_s)


def rounds_of(folder: Path) -> list[RoundRecord]:
    """What the journal says."""
    with open_journal(folder / JOURNAL_FILE, {}) as journal:
        return [entry.record for entry in entries(journal)]


def stamps(folder: Path, program_name: str, since: float) -> list[tuple[float, str]]:
    """Seconds since 1970 and text of a program's log lines."""
    text = (folder / "logs" / f"{program_name}.log").read_text(errors="replace")
    found = []
    for when, said in _STAMP.findall(text):
        at = dt.datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp()
        if at >= since:
            found.append((at, said))
    return found


def pid_of(folder: Path, name: str) -> int:
    """The process id of one program of a supervisor."""

    def found() -> list[int]:
        rows = read_processes(folder)
        return [int(str(r["pid"])) for r in rows if r["name"] == name and r["running"]]

    until(found, 120.0)
    return found()[0]
