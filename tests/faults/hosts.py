"""The processes of a federation, and what can be done to them.

Each host is a folder with the product's own supervisor on it, started through
`tests.faults.points`, so that faults can be put into what it runs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from deploy.hub_status import hub_status
from deploy.supervisor import read_processes
from server.register import read_register
from tests.faults.points import CONTROL, TIMES, Point, read_points, set_points
from tests.faults.proxy import Proxy

REPOSITORY = Path(__file__).resolve().parents[2]
FULL = bool(os.environ.get("FEDCT_FAULTS_FULL"))
SHORT = (
    {} if FULL else {"client.fleet:_TIMEOUT_S": 6.0, "client.fleet:HEARTBEAT_S": 10.0}
)
"""What stands in place of 60 s for a request, and of 15 s between heartbeats, of which
Flower takes no shorter one."""
PATIENCE_S = 480.0


def until(
    true: Callable[[], object],
    within_s: float = PATIENCE_S,
    what: str = "",
    *,
    every_s: float = 0.05,
) -> None:
    """Wait until something holds."""
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, f"waited {within_s:.0f} s in vain for {what}"
        time.sleep(every_s)


@dataclass
class Host:
    """A folder with the supervisor that runs it."""

    name: str
    folder: Path
    verb: str
    control: Path
    process: subprocess.Popen[bytes] | None = None
    env: dict[str, str] = field(default_factory=dict)
    """What its processes find in their environment, from its next start."""

    def start(self) -> None:
        """Start the supervisor, if it is not running."""
        if self.process is not None and self.process.poll() is None:
            return
        self.control.mkdir(exist_ok=True)
        env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            CONTROL: str(self.control),
            TIMES: json.dumps(SHORT if self.verb == "start-client" else {}),
            **self.env,
        }
        argv = [sys.executable, "-m", "tests.faults.points", self.verb, self.folder]
        with (self.control / "start.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL to the supervisor; the kernel kills what it started."""
        assert self.process is not None
        children = [pid for name in self.programs if (pid := self.pid(name))]
        self.process.kill()
        self.process.wait()
        until(lambda: not any(map(is_alive, children)), 20, "its programs to end")

    def stop(self) -> None:
        """Stop in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    @property
    def programs(self) -> list[str]:
        """Names of what the supervisor runs."""
        return [str(row["name"]) for row in read_processes(self.folder)]

    def pid(self, name: str) -> int | None:
        """Process of one program, while it runs."""
        for row in read_processes(self.folder):
            if row["name"] == name and row["running"]:
                return int(str(row["pid"]))
        return None

    def at(self, place: str, do: str, *, round: int | None = None, kind: str = "train"):
        """Have something happen at a place (`tests.faults.points`), beside the rest."""
        point = Point(place, do, round, kind)
        (self.control / point.key).unlink(missing_ok=True)
        set_points(self.control, [*read_points(self.control), point])

    def reached(self, place: str, *, round: int | None = None, kind: str = "train"):
        """Wait until the process is or was at a place that `at` named."""
        path = self.control / Point(place, "", round, kind).key
        until(path.exists, what=f"{self.name} to reach {path.name}")

    def go_on(self) -> None:
        """Take all points out."""
        set_points(self.control, [])
        for path in self.control.glob("at-*"):
            path.unlink(missing_ok=True)

    def log(self, name: str) -> str:
        """What a program said so far."""
        path = self.folder / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""


@dataclass
class Hub(Host):
    """The hub's folder and processes."""

    def kill_runner(self) -> None:
        """SIGKILL to the runner alone; its supervisor starts it again."""
        kill(self.pid("runner"))

    def knows_all(self) -> bool:
        """Whether the sites' keys are at the SuperLink, so that they may come."""
        return self.log("runner").count("let in") >= len(
            read_register(self.folder).latest()
        )

    def online(self) -> set[str]:
        """Who is, as `fedct server status` says it."""
        with suppress(Exception):  # it is being started
            return {row.name for row in hub_status(self.folder).sites if row.online}
        return set()


@dataclass
class Site(Host):
    """A hospital's folder and processes, and its line to the hub."""

    proxy: Proxy = field(kw_only=True)

    def kill_service(self) -> None:
        """SIGKILL to the service alone; its supervisor starts it again."""
        kill(self.pid("service"))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the service."""
        pid = self.pid("service")
        assert pid is not None, f"the service of {self.name} does not run"
        os.kill(pid, number)


def kill(pid: int | None) -> None:
    """SIGKILL, and wait until it is gone."""
    assert pid is not None, "there is no such process"
    os.kill(pid, signal.SIGKILL)
    until(lambda: not is_alive(pid), 20, "a killed process to end")


def is_alive(pid: int) -> bool:
    """Whether a process runs and is not merely unburied."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False
