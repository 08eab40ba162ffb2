"""`fedct rehearse`: a real federation on one machine, with everything going wrong.

A hub and three hospitals, each with its own folder, keys, phantom DICOM and processes,
talk over mutual TLS on loopback. One run is left in peace. In a second one a hospital's
service is killed, then the whole hub; both come back and go on. The two models must be
equal to the bit. Then a hospital is revoked and must be out.

The steps are the very commands that people type, so this is also what the how-tos say.
"""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from common.certificates import fingerprint_of, read_certificate
from common.errors import EngineError, RunError
from common.joining import Request, request_fingerprint
from deploy.hub_status import hub_status
from deploy.phantom.hospital import write_hospital
from deploy.phantom.scanner import HOSPITALS
from deploy.run_state import RUNS, read_run
from deploy.supervisor import read_processes
from server.hub import CA_CERTIFICATE
from server.run_files import FINAL_FILE

SITES = ("east", "north", "south")
PATIENTS = 5
"""Per hospital: enough for training, validation and test."""
UNDISTURBED, DISTURBED = "undisturbed", "disturbed"
_PATIENCE_S = 600.0
_ENV = {"OMP_NUM_THREADS": "1"}
"""One thread a process: three hospitals share this machine."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsed:
    """What was seen."""

    digests: dict[str, str]
    """Run to sha256 of its best model."""
    seconds: dict[str, float]
    """Run to its wall time."""
    refused_after_s: float
    """From the revocation until the hospital was out."""
    report: Path
    """The report of the disturbed run."""


def rehearse(out: Path, say: Say, *, size: str = "small", port: int = 0) -> Rehearsed:
    """Rehearse a federation below `out`.

    Args:
        out: Must be empty or new.
        say: Hears what is being done, one line each.
        size: Of the phantoms: "tiny", "small" or "full".
        port: The hub's; 0: any two free ones.

    Raises:
        RunError: The folder is in use, or what must be equal was not.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"folder {out.name!r} is not empty, expected a new --out")
    out.mkdir(parents=True, exist_ok=True)
    _phantoms(out / "phantoms", size, say)
    plan = out / "rehearsal.toml"
    plan.write_bytes(files("deploy").joinpath("plans/rehearsal.toml").read_bytes())
    hub = out / "hub"
    _join(out, hub, port, say)
    with ExitStack() as stack:
        supervisor = stack.enter_context(_started(hub, "server", say))
        for site in SITES:
            stack.enter_context(_started(out / site, "client", say))
        seconds = {UNDISTURBED: _peaceful(hub, plan, say)}
        began = time.monotonic()
        _disturb(out, hub, plan, supervisor, say)
        stack.enter_context(_started(hub, "server", say))
        _until(hub, DISTURBED, lambda run: run.state == "finished", say)
        seconds[DISTURBED] = time.monotonic() - began
        refused_after_s = _revoke(hub, "east", say)
    digests = {name: _digest(hub / RUNS / name) for name in (UNDISTURBED, DISTURBED)}
    if len(set(digests.values())) != 1:
        raise RunError(
            f"rehearsal ended in two models ({digests}), expected the same to the bit; "
            "please report this"
        )
    say(f"both runs ended in the same model, sha256 {digests[DISTURBED][:16]}")
    report = hub / RUNS / DISTURBED / "report.html"
    return Rehearsed(digests, seconds, refused_after_s, report)


def _phantoms(out: Path, size: str, say: Say) -> None:
    for hospital in HOSPITALS:
        if hospital.name in SITES:
            say(f"writing phantom CT of {hospital.name}")
            chosen = replace(hospital, patients=PATIENTS)
            write_hospital(out / hospital.name, chosen, seed=1, size=size)


def _join(out: Path, hub: Path, port: int, say: Say) -> None:
    """Init, request, enroll, install; fingerprints as if told by phone."""
    ports = [port or _free_port(), _free_port()]
    _fedct(say, "server", "init", hub, "--name", "localhost", "--port", ports[0])
    settings = (hub / "hub.toml").read_text()
    settings = settings.replace('listen = "0.0.0.0"', 'listen = "127.0.0.1"')
    settings = settings.replace("= 18443", f"= {ports[1]}")
    (hub / "hub.toml").write_text(settings)
    authority = fingerprint_of(read_certificate(hub / CA_CERTIFICATE))
    for name in SITES:
        site = out / name
        address, data = f"localhost:{ports[0]}", out / "phantoms" / name
        _fedct(
            say,
            *("client", "request", site, "--name", name, "--hub", address),
            *("--data", data, "--format", "dicom"),
        )
        text = (site / "client.toml").read_text()
        text = text.replace('approve = "ask"', 'approve = "auto"')
        text = text.replace("max_runs = 1", "max_runs = 2")  # two that must be equal
        text = text.replace("# threads = 8", "threads = 1")
        (site / "client.toml").write_text(text)
        file = site / f"{name}.request.json"
        told = request_fingerprint(Request.model_validate_json(file.read_bytes()))
        _fedct(say, "server", "enroll", hub, file, "--fingerprint", told)
        kit = hub / "kits" / f"{name}.kit.json"
        _fedct(say, "client", "install", site, kit, "--fingerprint", authority)


@contextmanager
def _started(folder: Path, who: str, say: Say) -> Iterator[subprocess.Popen[bytes]]:
    """`fedct server start` or `fedct client start` in the background."""
    say(f"$ fedct {who} start {folder.name} &")
    argv = [*_command(), who, "start", str(folder)]
    with (folder / "start.log").open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, **_ENV}
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def _peaceful(hub: Path, plan: Path, say: Say) -> float:
    began = time.monotonic()
    _ask(hub, plan, UNDISTURBED, say)
    _until(hub, UNDISTURBED, lambda run: run.state == "finished", say)
    return time.monotonic() - began


def _disturb(
    out: Path, hub: Path, plan: Path, supervisor: subprocess.Popen[bytes], say: Say
) -> None:
    """The same run, with a hospital killed in it, and then the hub."""
    _ask(hub, plan, DISTURBED, say)
    _until(hub, DISTURBED, lambda run: run.rounds_done >= 1, say)
    (row,) = read_processes(out / "north")
    say(f"kill -9 of the service of north, process {row['pid']}")
    os.kill(int(str(row["pid"])), signal.SIGKILL)
    _until(hub, DISTURBED, lambda run: run.rounds_done >= 3, say)
    say(f"kill -9 of the whole hub, process {supervisor.pid}")
    supervisor.kill()
    supervisor.wait()


def _revoke(hub: Path, site: str, say: Say) -> float:
    _fedct(say, "server", "revoke", hub, site, "--yes")
    began = time.monotonic()
    while True:
        row = next(row for row in hub_status(hub).sites if row.name == site)
        if not row.online:
            break
        if time.monotonic() - began > _PATIENCE_S:
            raise EngineError(f"site {site!r} was revoked and is still in; see status")
        time.sleep(0.2)
    seconds = time.monotonic() - began
    say(f"{site} was out {seconds:.1f} s after its revocation")
    return seconds


def _ask(hub: Path, plan: Path, name: str, say: Say) -> None:
    _fedct(say, "server", "run", hub, plan, "--name", name, "--no-follow")


def _until(hub: Path, name: str, done: Callable[..., bool], say: Say) -> None:
    until, said = time.monotonic() + _PATIENCE_S, -1
    while True:
        run = read_run(hub / RUNS / name)
        if run.rounds_done != said:
            said = run.rounds_done
            say(f"  {name}: {said} of {run.rounds} rounds")
        if done(run):
            return
        if run.state == "failed" or time.monotonic() > until:
            raise EngineError(
                f"run {name!r} is {run.state} ({run.why or run.waiting}), expected it "
                "to go on; see logs/ in the folders"
            )
        time.sleep(0.1)


def _digest(run: Path) -> str:
    return hashlib.sha256((run / FINAL_FILE).read_bytes()).hexdigest()


def _fedct(say: Say, *words: object) -> None:
    """Type a command, and show it."""
    shown = [w.name if isinstance(w, Path) else str(w) for w in words]
    say("$ fedct " + " ".join(shown))
    argv = [*_command(), *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"`fedct {' '.join(shown)}` failed: {done.stderr.strip()}")


def _command() -> Sequence[str]:
    return sys.executable, "-c", "from deploy.cli import main; main()"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
