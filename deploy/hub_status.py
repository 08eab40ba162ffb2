"""What `fedct server status` shows: processes, sites, runs."""

import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from rich.console import Console
from rich.table import Table

from deploy.run_state import RUNS, RunState, list_runs, parcel_line
from deploy.start import is_running
from deploy.supervisor import PROCESSES_FILE, read_processes
from deploy.twin_keys import read_twins
from server.hub import read_hub_file
from server.register import read_register
from server.superlink import SuperLinkLine, node_key_bytes, superlink_of


class ProcessRow(BaseModel):
    """One program of the hub."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    """Its name."""
    running: bool
    """Whether it lives now."""
    pid: int | None
    """Its process."""
    restarts: int
    """How often it was started again."""


class SiteRow(BaseModel):
    """One hospital."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """Its name."""
    certificate: str
    """active, expired or revoked."""
    not_after: str
    """Until when that holds, ISO 8601."""
    online: bool
    """Whether its service is connected."""
    alarm: str | None = None
    """What is wrong with it, in a sentence: its key is in use from two places."""


class HubStatus(BaseModel):
    """The whole picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    """Where hospitals reach the hub."""
    running: bool
    """Whether the hub is up."""
    processes: list[ProcessRow]
    sites: list[SiteRow]
    runs: list[RunState]


def hub_status(folder: Path) -> HubStatus:
    """Look at a hub's folder, and at its SuperLink if that answers.

    Raises:
        JoinError: The folder is no hub's.
    """
    settings = read_hub_file(folder)
    running = is_running(folder)
    now = datetime.datetime.now(datetime.UTC)
    with SuperLinkLine(superlink_of(folder)) as line:
        nodes = line.nodes() if running and line.is_up() else {}
    twins = read_twins(folder, now)
    sites = [
        SiteRow(
            name=name,
            certificate=entry.status(now),
            not_after=entry.not_after.isoformat(timespec="seconds"),
            online=nodes.get(node_key_bytes(entry.node_key), (0, False))[1],
            alarm=twins[name].sentence(name) if name in twins else None,
        )
        for name, entry in read_register(folder).latest().items()
    ]
    return HubStatus(
        address=settings.address,
        running=running,
        processes=[ProcessRow.model_validate(row) for row in read_processes(folder)],
        sites=sites,
        runs=list_runs(folder / RUNS),
    )


def print_hub_status(status: HubStatus) -> None:
    """Print how the hub stands: three small tables, alarms, what runs wait for."""
    console = Console()
    console.print(f"hub {status.address}: {_standing(status)}")
    processes = Table("process", "running", "restarts")
    for process in status.processes:
        processes.add_row(
            process.name, "yes" if process.running else "no", str(process.restarts)
        )
    sites = Table("site", "certificate", "until", "online")
    for site in status.sites:
        online = "yes" if site.online else "no"
        sites.add_row(site.name, site.certificate, site.not_after[:10], online)
    runs = Table("run", "state", "rounds", "sites")
    for run in status.runs:
        rounds = f"{run.rounds_done}/{run.rounds}"
        runs.add_row(run.name, run.state, rounds, ", ".join(run.sites))
    for table, rows in (
        (processes, status.processes),
        (sites, status.sites),
        (runs, status.runs),
    ):
        if rows:
            console.print(table)
    for site in status.sites:
        if site.alarm:
            console.print(f"ALARM: {site.alarm}")
    for run in status.runs:
        _print_waiting(console, run)


def _standing(status: HubStatus) -> str:
    """Whether the hub is up, and what of it is not."""
    if not status.running:
        return "down"
    if not status.processes:
        return (
            f"up, but its {PROCESSES_FILE} can't be read, expected what `fedct server "
            "start` writes; it is written anew when a program starts or ends"
        )
    missing = [row.name for row in status.processes if not row.running]
    if missing:
        return f"up without {' and '.join(missing)}; see logs/ in its folder"
    return "up"


def _print_waiting(console: Console, run: RunState) -> None:
    """What a run waits for, or why it ended."""
    if run.behind:
        console.print(f"{run.name} comes after {', '.join(run.behind)}")
    for who, why in run.waiting.items():
        console.print(f"{run.name} waits for {who}: {why}")
    for order in run.parcels:
        console.print(f"{run.name} waits for {parcel_line(order)}", soft_wrap=True)
    if run.why:
        console.print(f"{run.name} {run.state}: {run.why}")
