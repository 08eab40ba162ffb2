"""The runs of a hub: asked for, going on, stopped, finished.

A run is a folder below `runs/`, and what is to be done with it stands there too: who
asks for a run writes the folder, the hub's runner picks it up, and either may be killed
at any time. The state is read from the files, never kept beside them:

    request.json                  asked for
    started.json, journal.sqlite  going on, or to be gone on with
    stop                          stopped by the coordinator, until `resume`
    failed.json                   ended by an error that trying again won't mend
    arm.json, report.json         finished
    withheld.json beside them     finished, but its model did not pass the plan's gate
"""

import datetime
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import PlanError, RunError
from common.plan_file import load_plan
from server.parcel_book import open_orders, order_path
from server.run_files import ARM_RECORD_FILE, JOURNAL_FILE, PLAN_FILE, STARTED_FILE

RUNS = "runs"
"""The folder of runs in a hub's folder."""
REQUEST_FILE = "request.json"
STOP_FILE = "stop"
FAILED_FILE = "failed.json"
WAITING_FILE = "waiting.json"
REPORT_FILE = "report.json"
WITHHELD_FILE = "withheld.json"

State = Literal["queued", "running", "stopped", "failed", "finished", "withheld"]


class RunRequest(BaseModel):
    """The content of `request.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sites: tuple[str, ...]
    """Who is to take part, sorted: the order in which updates are folded."""
    asked: str
    """When, ISO 8601, UTC."""
    salt: str
    """8 hexadecimal digits, random: part of the run's id, so that a run of an old name
    in a new folder is another run to its sites."""
    parcels: tuple[str, ...] = ()
    """Those of them that are reached by files alone."""
    parcel_s: float = 0.0
    """How long each order in a file waits for its answer."""


class OpenParcel(BaseModel):
    """An order in a file that waits for its answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    site: str
    """Who is to get it."""
    what: str
    """What is asked."""
    file: str
    """Where it lies in the hub's folder."""
    due: str
    """Until when an answer is waited for."""


class _Ended(BaseModel):
    """The content of `failed.json` and `withheld.json`, as far as `status` needs it."""

    why: str
    """The sentence that is shown."""


class _Waiting(BaseModel):
    """The content of `waiting.json`, the same."""

    waiting: dict[str, str]
    """Site or node to the reason why it is not in."""


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
    """What ended a failed run, withholds its model, or is damaged; else empty."""
    parcels: list[OpenParcel]
    """Orders in files that wait for their answer."""
    waiting: dict[str, str]
    """Before the first round: site or node to the reason why it is not in."""
    behind: list[str] = []
    """Of a run that waits its turn: those that end before, the first one first."""


def next_run(runs: Path) -> Path | None:
    """The folder of the run that was asked for first and is not ended or stopped."""
    return next(iter(_in_turn(runs)), None)


def read_request(folder: Path) -> RunRequest:
    """Who was asked for, and when.

    Raises:
        RunError: The file is damaged.
    """
    try:
        return RunRequest.model_validate_json((folder / REQUEST_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"run {folder.name!r} has a {REQUEST_FILE} that can't be read "
            f"({type(error).__name__}), expected what `fedct server run` wrote; put it "
            "back from a backup, or ask for the run anew under another name"
        ) from error


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
    rounds_done = _rounds_done(folder)
    try:
        request = read_request(folder)
        rounds = load_plan(folder / PLAN_FILE).federation.rounds
    except (RunError, PlanError) as error:  # one damaged run hides no other
        return RunState(
            name=folder.name,
            state="failed",
            rounds_done=rounds_done,
            rounds=0,
            sites=(),
            why=str(error),
            parcels=[],
            waiting={},
        )
    state = _state(folder)
    why, parcels = _why(folder, state), []
    try:
        parcels = _open_parcels(folder) if state in ("running", "stopped") else []
    except RunError as error:
        why = str(error)
    early = state == "running" and not rounds_done
    waiting = (read_waiting(folder) if early else None) or {}
    by_file = {order.site for order in parcels}
    return RunState(
        name=folder.name,
        state=state,
        rounds_done=rounds_done,
        rounds=rounds,
        sites=request.sites,
        why=why,
        parcels=parcels,
        waiting={who: why for who, why in waiting.items() if who not in by_file},
        behind=_behind(folder) if state in ("queued", "running") else [],
    )


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_waiting(folder: Path) -> dict[str, str] | None:
    """Who was waited for; unset if nobody noted it, or the note is damaged."""
    try:
        found = (folder / WAITING_FILE).read_bytes()
        return _Waiting.model_validate_json(found).waiting
    except (OSError, ValidationError):
        return None


def is_stopped(folder: Path) -> bool:
    """Whether the coordinator wants this run to stop."""
    return (folder / STOP_FILE).exists()


def parcel_line(order: OpenParcel) -> str:
    """What a coordinator is to do about an order in a file."""
    return (
        f"{order.site} ({order.what}) until {order.due}: bring it {order.file}, and "
        "what comes back to `fedct server import`"
    )


def _folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob(f"*/{REQUEST_FILE}"))


def _in_turn(runs: Path) -> list[Path]:
    """The folders of all runs that wait or go on, in the order of their turns."""
    going = [f for f in _folders(runs) if _state(f) in ("queued", "running")]
    return sorted(going, key=lambda folder: (_asked(folder), folder))


def _behind(folder: Path) -> list[str]:
    """What a run waits for: the one at hand, then those asked for before it."""
    turns = _in_turn(folder.parent)
    at_hand = max(
        (f for f in turns if _state(f) == "running"), key=_taken, default=None
    )
    if folder == at_hand or folder not in turns:
        return []
    before = turns[: turns.index(folder)]
    first = [] if at_hand is None else [at_hand]
    return [f.name for f in (*first, *(f for f in before if f != at_hand))]


def _taken(folder: Path) -> int:
    """When the runner took a run up: `begin` writes this file each time, in ns."""
    try:
        return (folder / STARTED_FILE).stat().st_mtime_ns
    except OSError:  # it ended this moment
        return 0


def _asked(folder: Path) -> str:
    """When a run was asked for; one that can't say comes first, and fails."""
    try:
        return read_request(folder).asked
    except RunError:
        return ""


def _state(folder: Path) -> State:
    if (folder / ARM_RECORD_FILE).exists() and (folder / REPORT_FILE).exists():
        return "withheld" if (folder / WITHHELD_FILE).exists() else "finished"
    if (folder / FAILED_FILE).exists():
        return "failed"
    if is_stopped(folder):
        return "stopped"
    begun = (folder / STARTED_FILE).exists()
    return "running" if begun else "queued"


def _why(folder: Path, state: State) -> str:
    """The sentence that was written when a run ended otherwise than it should."""
    ways: dict[State, tuple[str, str]] = {
        "failed": (FAILED_FILE, "`fedct server resume` tries again"),
        "withheld": (WITHHELD_FILE, f"{REPORT_FILE} says what the model did not pass"),
    }
    if state not in ways:
        return ""
    name, way = ways[state]
    try:
        return _Ended.model_validate_json((folder / name).read_bytes()).why
    except (OSError, ValidationError):
        return (
            f"run {folder.name!r} has a {name} that can't be read, expected the reason "
            f"that the hub wrote there; see logs/runner.log in its folder, and {way}"
        )


def _open_parcels(folder: Path) -> list[OpenParcel]:
    hub = folder.parents[1]
    return [
        OpenParcel(
            site=order.site,
            what=order.words,
            file=str(order_path(hub, folder, order).relative_to(hub)),
            due=order.due_text,
        )
        for order in open_orders(folder)
    ]


def _rounds_done(folder: Path) -> int:
    path = folder / JOURNAL_FILE
    if not path.exists():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as journal:
            return int(journal.execute("SELECT count(*) FROM round").fetchone()[0])
    except sqlite3.Error:
        return 0  # it is being made right now
