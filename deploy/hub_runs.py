"""What a coordinator does with runs: ask for one, stop it, go on with it.

Each is a file in the run's folder (`deploy.run_state`); the hub's runner acts on it.
Nothing that trains is imported here, so that a verb answers at once: whether the
network fits the patch is for the runner to say, which has all of it loaded.
"""

import json
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from client.private_files import make_private_folder
from common.durable import TEMPORARY, write_whole
from common.errors import PlanError, RunError, UsageError
from common.plan import Plan
from common.plan_file import load_plan, plan_toml
from common.plan_privacy import is_masked, quorum
from common.secagg.terms import MAX_MEMBERS
from deploy.run_state import (
    FAILED_FILE,
    REQUEST_FILE,
    STOP_FILE,
    WAITING_FILE,
    RunRequest,
    now,
    read_run,
    read_waiting,
)
from server.run_files import PLAN_FILE

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,37}")
"""With 16 digits of the plan before it and 8 random ones behind, it makes a run's id
(`exchange.RUN_ID`)."""
_SHOWN = 80
"""Characters of a wrong name that a complaint repeats."""


def submit(
    runs: Path,
    plan_path: Path,
    name: str | None,
    sites: Sequence[str],
    parcels: Sequence[str] = (),
    parcel_s: float = 0.0,
) -> Path:
    """Ask for a run; the hub's runner starts it when its turn comes.

    Args:
        runs: The hub's folder of runs.
        plan_path: The plan; its `[simulation]` plays no part here.
        name: Name of the run; unset: the plan's.
        sites: Enrolled sites that shall take part.
        parcels: Those of them that are reached by files alone.
        parcel_s: How long each order in a file waits for its answer.

    Returns:
        The run's folder.

    Raises:
        FedctError: The plan can't work with these sites, or the name is taken.
    """
    if name is not None:
        check_name(name, "choose another --name")
    plan = load_plan(plan_path)
    name = name or plan.plan.name
    _check_sites(plan, plan_path.name, len(sites), bool(parcels))
    folder = runs / name
    left = _left_over(folder)
    request = RunRequest(
        sites=tuple(sorted(sites)),
        asked=now(),
        salt=secrets.token_hex(4),
        parcels=tuple(sorted(parcels)),
        parcel_s=parcel_s,
    )
    content = plan_toml(plan, with_simulation=False).encode()
    try:
        make_private_folder(folder)
        for path in left:
            path.unlink(missing_ok=True)
        write_whole(folder / PLAN_FILE, content)
        write_whole(folder / REQUEST_FILE, request.model_dump_json(indent=1).encode())
    except BaseException:  # a full disk or Ctrl-C
        if not (folder / REQUEST_FILE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def check_name(name: str, way: str) -> None:
    """Refuse what no run can be called.

    Args:
        name: Of a run, as it was typed.
        way: What to do about another one.

    Raises:
        UsageError: It breaks the rule.
    """
    if not _NAME.fullmatch(name):
        got = repr(name) if len(name) <= _SHOWN else f"of {len(name)} characters"
        raise UsageError(
            f"run got the name {got}, expected lowercase letters, digits, "
            f"dots, hyphens and underscores, at most 38; {way}"
        )


def _left_over(folder: Path) -> list[Path]:
    """The files of a request that was cut short, where a new run may take its place.

    Raises:
        RunError: The name is taken.
    """
    name = folder.name
    if (folder / REQUEST_FILE).exists():
        raise RunError(
            f"run {name!r} exists already, expected a new name; go on with it by "
            f"`fedct server resume {folder.parents[1]} {name}`, or choose another "
            "--name"
        )
    if not folder.exists():
        return []
    left = list(folder.iterdir())
    if any(path.name != PLAN_FILE and path.suffix != TEMPORARY for path in left):
        raise RunError(
            f"run {name!r} has files in its folder but no {REQUEST_FILE}, expected a "
            "new name; put that file back from a backup, or choose another --name"
        )
    return left


def _check_sites(plan: Plan, name: str, sites: int, by_files: bool) -> None:
    """Refuse what would only fail when the round is set up."""
    privacy, federation = plan.privacy, plan.federation
    masked = is_masked(privacy, federation, sites)
    off = "set privacy.secure_aggregation = 'off' where their policies allow it"
    if sites < (fewest := quorum(privacy, federation, sites)):
        which = "federation.min_sites"
        if federation.min_sites < fewest:
            which = "privacy.min_cohort or privacy.colluders"
        ways = f"lower {which}, or {off}" if masked else f"or lower {which}"
        raise PlanError(
            f"plan {name!r} needs {fewest} sites in every round, got {sites}; name "
            f"more by --sites, enrol more, {ways}"
        )
    if masked and by_files:
        raise PlanError(
            f"plan {name!r} masks its updates, and a site that is reached by files "
            "forgets a round's secrets from trip to trip; give all sites a line, or "
            f"{off}"
        )
    if masked and sites > MAX_MEMBERS:
        raise PlanError(
            f"plan {name!r} masks its updates, got {sites} sites, expected at most "
            f"{MAX_MEMBERS}; choose fewer by --sites"
        )


def stop_run(folder: Path) -> None:
    """Have the runner leave a run after the round's last durable step."""
    if read_run(folder).state not in ("queued", "running"):
        raise RunError(f"run {folder.name!r} is not going on; nothing was stopped")
    write_whole(folder / STOP_FILE, b"")


def resume_run(folder: Path) -> None:
    """Have the runner go on with a stopped or failed run."""
    if read_run(folder).state not in ("stopped", "failed"):
        raise RunError(
            f"run {folder.name!r} is neither stopped nor failed; a run that the hub "
            "was killed in goes on by itself when the hub starts"
        )
    (folder / FAILED_FILE).unlink(missing_ok=True)
    (folder / STOP_FILE).unlink(missing_ok=True)


def fail_run(folder: Path, why: str) -> None:
    """Note that trying again won't help."""
    write_whole(folder / FAILED_FILE, json.dumps({"why": why, "at": now()}).encode())


def note_waiting(folder: Path, waiting: Mapping[str, str]) -> None:
    """Keep for `status` who is waited for; nothing that a run depends on."""
    text = json.dumps({"at": now(), "waiting": dict(waiting)}, indent=1)
    if read_waiting(folder) != dict(waiting):
        write_whole(folder / WAITING_FILE, text.encode())
