"""A small real federation on this machine, in which everything can be made to fail.

One hub (nginx, SuperLink, runner, as `fedct server start` runs them) and three
hospitals (as `fedct client start` runs them) over mutual TLS on loopback, each through
a proxy of its own (`tests.faults.proxy`). It is brought up once per test session; a row
of the exam is one run of a tiny plan on it, about a second a round:

    @row(19, "not a number", "refused by name, round goes on")
    def test_a_nan_is_refused(fed, seen):
        fed.site("north").at("answer", "tests.faults.lies:nan", round=2)
        run = fed.run()
        run.finished()
        check_invariants(run)
        assert run.outcome("north", 2) == "refused"
        seen(run.reason("north", 2))

`fed` is the federation healed: lines sound, no faults left over from the row before,
dead processes started again, everybody online. What can be done to it:

- to a line: `site.proxy.set(...)`, any of `tests.faults.line.Faults`;
- to a process: `site.kill()`, `site.kill_service()`, `site.signal(SIGSTOP)`,
  `site.start()`, `fed.hub.kill()`, `fed.hub.kill_runner()`, `fed.hub.start()`;
- in a process: `site.at(...)` and `fed.hub.at(...)`, see `tests.faults.points`. With
  "hold" a process stands still at a place; `site.reached(...)` waits until it does,
  `site.go_on()` lets it go. So no row needs luck with the clock;
- to the plan: `fed.run(deadline_s=5)`, any key as `section__key`, of `[federation]`
  without a section;
- to a hub or site that must not be shared: make another `federation(folder)`.

The product's own waiting times on the line are shortened (`SHORT`), unless the variable
`FEDCT_FAULTS_FULL` is set: then nothing is, and the long faults have their full length.
"""

import hashlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.install import install, read_kit
from client.joining import create_site
from client.site_file import CLIENT_FILE, new_settings
from common.certificates import fingerprint_of
from common.joining import request_fingerprint
from common.plan_file import plan_toml
from deploy.hub_runs import stop_run, submit
from deploy.run_state import RUNS, RunState, read_run
from server.asked import read_request
from server.authority import create_hub
from server.enrol import enroll
from server.hub import HubFile
from server.journal import Entry, entries, open_journal
from server.record import SiteRound
from server.run_files import FINAL_FILE, JOURNAL_FILE
from tests.faults.hosts import PATIENCE_S, Hub, Site, until
from tests.faults.patients import write_patients
from tests.faults.proxy import Proxy
from tests.plans import plan as plan_of

SITES = ("east", "north", "south")
PATIENTS = {"east": 4, "north": 5, "south": 8}
"""Not the same number, so that a mean that weights them wrongly is another model."""
PLAN = """
[plan]
name = "faults"
seed = 3
[task]
kind = "segmentation"
classes = { nodule = ["*"] }
[model]
name = "UNet"
dimensions = 3
channels = [8, 16]
residual_units = 0
[preprocessing]
spacing_mm = [4.0, 4.0, 4.0]
window_hu = [-1000.0, 200.0]
[training]
steps = 2
batch_size = 2
patch = [8, 8, 8]
learning_rate = 1e-2
[federation]
rounds = 3
min_sites = 2
deadline_s = 300.0
rejoin_s = 120.0
[evaluation]
every = 3
region = "window"
surface = false
[data]
validation = 0.25
test = 0.25
"""


@dataclass
class Run:
    """One run of a plan."""

    fed: "Federation"
    folder: Path

    @property
    def state(self) -> RunState:
        """As `fedct server status` shows it."""
        return read_run(self.folder)

    @property
    def sha256(self) -> str:
        """Of the model that is handed out."""
        return hashlib.sha256((self.folder / FINAL_FILE).read_bytes()).hexdigest()

    def finished(self, within_s: float = PATIENCE_S) -> None:
        """Wait for its end."""
        what = f"{self.folder.name} to finish"
        until(lambda: self._is("finished"), within_s, what, every_s=0.25)

    def rounds(self, number: int, within_s: float = PATIENCE_S) -> None:
        """Wait until so many rounds are in the journal."""
        until(
            lambda: self._is("finished") or self.state.rounds_done >= number,
            within_s,
            f"{number} rounds of {self.folder.name}",
            every_s=0.25,
        )

    def journal(self) -> list[Entry]:
        """All rounds so far."""
        with open_journal(self.folder / JOURNAL_FILE, {}) as journal:
            return entries(journal)

    def row(self, site: str, round: int) -> SiteRound:
        """What the journal says of a site in a round."""
        record = self.journal()[round - 1].record
        (row,) = [row for row in record.sites if row.site == site]
        return row

    def outcome(self, site: str, round: int) -> str:
        """accepted, refused, failed or late."""
        return self.row(site, round).outcome

    def reason(self, site: str, round: int) -> str:
        """Why not accepted."""
        return self.row(site, round).reason

    def accepted(self) -> list[tuple[str, ...]]:
        """Round by round, whose updates counted."""
        return [
            tuple(row.site for row in e.record.sites if row.outcome == "accepted")
            for e in self.journal()
        ]

    def _is(self, wanted: str) -> bool:
        state = self.state
        assert state.state != "failed" or wanted == "failed", state.why
        return state.state == wanted


@dataclass
class Federation:
    """The hub, the sites, and every run so far."""

    folder: Path
    hub: Hub
    sites: dict[str, Site]
    runs: list[Run] = field(default_factory=list)

    def site(self, name: str) -> Site:
        """One of the hospitals."""
        return self.sites[name]

    def run(self, **changes: object) -> Run:
        """Ask for a run; returns at once.

        Args:
            changes: To `PLAN`: `section__key=value`, or a key of `[federation]`.
        """
        full = {k if "__" in k else f"federation__{k}": v for k, v in changes.items()}
        path = self.folder / "plan.toml"
        path.write_text(plan_toml(plan_of(PLAN, **full), with_simulation=False))
        name = f"run-{len(self.runs) + 1:03d}"
        run = Run(self, submit(self.hub.folder / RUNS, path, name, list(self.sites)))
        self.runs.append(run)
        return run

    def heal(self) -> None:
        """Make everything sound again, and wait until everybody is online."""
        for run in self.runs:
            if run.state.state in ("queued", "running"):
                stop_run(run.folder)
        for host in (self.hub, *self.sites.values()):
            host.go_on()
        for site in self.sites.values():
            site.proxy.heal()
            if pid := site.pid("service"):
                os.kill(pid, signal.SIGCONT)
        self.start()

    def start(self) -> None:
        """Start what is not running; returns when everybody is online."""
        self.hub.start()
        until(self.hub.knows_all, 400, what="the hub to let the sites in")
        for site in self.sites.values():
            site.start()
        everybody = set(self.sites)
        until(
            lambda: self.hub.online() == everybody, 400, "everybody online", every_s=0.5
        )

    def stop(self) -> None:
        """Stop all processes."""
        for host in (*self.sites.values(), self.hub):
            host.stop()


@contextmanager
def federation(
    folder: Path,
    sites: Sequence[str] = SITES,
    write_patients: Callable[[Path, str, int], None] = write_patients,
) -> Iterator[Federation]:
    """A federation below a new folder, started; it ends with the block.

    Args:
        folder: Made here.
        sites: Names of the hospitals.
        write_patients: Writes so many patients of a hospital below a folder.
    """
    if shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("nginx is not installed; tests/debian.sh installs it")
    ports = free_port(), free_port()
    control = folder / "control"
    control.mkdir(parents=True)
    now = datetime.now(UTC)
    hub = create_hub(
        folder / "hub",
        HubFile(
            name="localhost", listen="127.0.0.1", port=ports[0], superlink_port=ports[1]
        ),
        now,
    )
    made: dict[str, Site] = {}
    with ExitStack() as stack:
        for name in sites:
            proxy = stack.enter_context(Proxy(("127.0.0.1", ports[0])))
            data, place = folder / "patients" / name, folder / name
            write_patients(data, name, PATIENTS.get(name, 4))
            address = f"localhost:{proxy.port}"
            settings = new_settings(name, address, data, "dicom", "cpu")
            path, request = create_site(place, settings, now)
            approve(place)
            told = request_fingerprint(request)
            kit = enroll(hub, read_request(path.read_bytes()), told, 90, now)
            checked = read_kit(kit.read_bytes())
            install(place, checked, fingerprint_of(hub.authority), now)
            made[name] = Site(name, place, "start-client", control / name, proxy=proxy)
        started = Hub("hub", folder / "hub", "start-hub", control / "hub")
        fed = Federation(folder, started, made)
        stack.callback(fed.stop)
        fed.start()
        yield fed


def approve(site: Path) -> None:
    """Let a hospital train any plan ever again on one thread, and count exactly."""
    path = site / CLIENT_FILE
    text = path.read_text().replace('approve = "ask"', 'approve = "auto"')
    text = text.replace('counts = "rounded"', 'counts = "exact"')
    text = text.replace("max_runs = 1", "max_runs = 1000")
    path.write_text(text.replace("# threads = 8", "threads = 1"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
