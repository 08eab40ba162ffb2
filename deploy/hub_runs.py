"""The runs of a hub: asked for, going on, stopped, finished.

A run is a folder below `runs/`, and what is to be done with it stands there too: who
asks for a run writes the folder, the hub's runner picks it up, and either may be killed
at any time. The state is read from the files, never kept beside them:

    request.json                  asked for
    started.json, journal.sqlite  going on, or to be gone on with
    stop                          stopped by the coordinator, until `resume`
    failed.json                   ended by an error that trying again won't mend
    arm.json, report.json         finished
"""

import json
import re
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from client.private_files import make_private_folder
from common.errors import PlanError, RunError, UsageError
from common.networks import check_fits
from common.plan import Plan
from common.plan_file import load_plan, plan_toml
from deploy.run_folder import PLAN_FILE, STARTED_FILE, now
from server.app import ARM_RECORD_FILE, write_arms
from server.durable import write_durable
from server.federation import Arm

REQUEST_FILE = "request.json"
STOP_FILE = "stop"
FAILED_FILE = "failed.json"
WAITING_FILE = "waiting.json"
REPORT_FILE = "report.json"
ARM = "federated"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,46}")
"""With 16 digits of the plan before it, it makes a run's id (`exchange.RUN_ID`)."""

State = Literal["queued", "running", "stopped", "failed", "finished"]


class RunRequest(BaseModel):
    """The content of `request.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...]
    """Who is to take part, sorted: the order in which updates are folded."""
    asked: str
    """When, ISO 8601, UTC."""


class RunState(BaseModel):
    """One run as `fedct server status` shows it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Name of the run and of its folder."""
    state: State
    """Where it stands."""
    rounds_done: int
    """Rounds in the journal, void ones too."""
    rounds: int
    """Rounds of the plan."""
    sites: tuple[str, ...]
    """Who was asked for."""
    why: str
    """What ended a failed run; else empty."""
    waiting: dict[str, str]
    """Before the first round: site or node to the reason why it is not in."""


def submit(runs: Path, plan_path: Path, name: str, sites: Sequence[str]) -> Path:
    """Ask for a run; the hub's runner starts it when its turn comes.

    Args:
        runs: The hub's folder of runs.
        plan_path: The plan; its `[simulation]` plays no part here.
        name: Name of the run.
        sites: Enrolled sites that shall take part.

    Returns:
        The run's folder.

    Raises:
        FedctError: The plan can't work with these sites, or the name is taken.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"run got the name {name!r}, expected lowercase letters, digits, dots and "
            "hyphens, at most 47; choose another --name"
        )
    plan = load_plan(plan_path)
    check_fits(plan)
    if len(sites) < plan.federation.min_sites:
        raise PlanError(
            f"plan {plan_path.name!r} needs {plan.federation.min_sites} sites in every "
            f"round, got {len(sites)}; enrol more, or lower federation.min_sites"
        )
    folder = runs / name
    if folder.exists():
        raise RunError(
            f"run {name!r} exists already, expected a new name; go on with it by "
            f"`fedct server resume DIR {name}`, or choose another --name"
        )
    make_private_folder(folder)
    write_durable(folder / PLAN_FILE, plan_toml(plan, with_simulation=False).encode())
    write_arms(folder, [federated_arm(folder, plan, sites)])
    request = RunRequest(sites=tuple(sorted(sites)), asked=now())
    write_durable(folder / REQUEST_FILE, request.model_dump_json(indent=1).encode())
    return folder


def federated_arm(folder: Path, plan: Plan, sites: Sequence[str]) -> Arm:
    """The one arm of a real federation: baselines would need everybody's data."""
    names = tuple(sorted(sites))
    return Arm(
        ARM, plan, names, names, names, folder, f"{plan.digest[:16]}-{folder.name}"
    )


def next_run(runs: Path) -> Path | None:
    """The folder of the run that was asked for first and is not ended or stopped."""
    waiting = [
        (read_request(f).asked, f)
        for f in _folders(runs)
        if _state(f) in ("queued", "running")
    ]
    return min(waiting)[1] if waiting else None


def read_request(folder: Path) -> RunRequest:
    """Who was asked for, and when."""
    return RunRequest.model_validate_json((folder / REQUEST_FILE).read_bytes())


def list_runs(runs: Path) -> list[RunState]:
    """All runs, by name."""
    return [read_run(folder) for folder in _folders(runs)]


def read_run(folder: Path) -> RunState:
    """Where one run stands.

    Raises:
        RunError: There is no such run.
    """
    if not (folder / REQUEST_FILE).is_file():
        raise RunError(
            f"hub has no run {folder.name!r}, expected one that `fedct server run` "
            "asked for; see `fedct server status`"
        )
    request = read_request(folder)
    state = _state(folder)
    failed, rounds_done = folder / FAILED_FILE, _rounds_done(folder)
    return RunState(
        name=folder.name,
        state=state,
        rounds_done=rounds_done,
        rounds=load_plan(folder / PLAN_FILE).federation.rounds,
        sites=request.sites,
        why=json.loads(failed.read_text())["why"] if state == "failed" else "",
        waiting=_waiting(folder) if state == "running" and not rounds_done else {},
    )


def stop_run(folder: Path) -> None:
    """Have the runner leave a run after the round's last durable step."""
    if read_run(folder).state not in ("queued", "running"):
        raise RunError(f"run {folder.name!r} is not going on; nothing was stopped")
    write_durable(folder / STOP_FILE, b"")


def resume_run(folder: Path) -> None:
    """Have the runner go on with a stopped or failed run."""
    if read_run(folder).state not in ("stopped", "failed"):
        raise RunError(
            f"run {folder.name!r} is neither stopped nor failed; a run that the hub "
            "was killed in goes on by itself when the hub starts"
        )
    (folder / FAILED_FILE).unlink(missing_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)


def is_stopped(folder: Path) -> bool:
    """Whether the coordinator wants this run to stop."""
    return (folder / STOP_FILE).exists()


def fail_run(folder: Path, why: str) -> None:
    """Note that trying again won't help."""
    write_durable(folder / FAILED_FILE, json.dumps({"why": why, "at": now()}).encode())


def note_waiting(folder: Path, waiting: Mapping[str, str]) -> None:
    """Keep for `status` who is waited for; nothing that a run depends on."""
    text = json.dumps({"at": now(), "waiting": dict(waiting)}, indent=1)
    path = folder / WAITING_FILE
    if not path.exists() or json.loads(path.read_text())["waiting"] != dict(waiting):
        write_durable(path, text.encode())


def _folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob(f"*/{REQUEST_FILE}"))


def _state(folder: Path) -> State:
    if (folder / ARM_RECORD_FILE).exists() and (folder / REPORT_FILE).exists():
        return "finished"
    if (folder / FAILED_FILE).exists():
        return "failed"
    if is_stopped(folder):
        return "stopped"
    begun = (folder / STARTED_FILE).exists()
    return "running" if begun else "queued"


def _waiting(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / WAITING_FILE).read_text())["waiting"]
    except (OSError, ValueError, KeyError):
        return {}
    return {str(key): str(value) for key, value in found.items()}


def _rounds_done(folder: Path) -> int:
    path = folder / "journal.sqlite"
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return int(journal.execute("SELECT count(*) FROM round").fetchone()[0])
    except sqlite3.Error:
        return 0  # it is being made right now
