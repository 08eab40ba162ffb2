"""The verbs by which a hub and a hospital's client are started, and runs are made."""

import signal
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:
    from deploy.run_state import RunState

run_app = typer.Typer()
start_app = typer.Typer()

HubArgument = Annotated[Path, typer.Argument(help="The hub's folder.")]
RunArgument = Annotated[str, typer.Argument(help="Name of the run.")]
_SHORTEST_DAYS, _LONGEST_DAYS = 0.01, 3650.0
_HUB_IS_DOWN = "hub is not running; start it with `fedct server start`"


def _days(days: float) -> float:
    """Refuse a time that no answer could keep, or that has no date at its end."""
    from common.errors import UsageError

    if not _SHORTEST_DAYS <= days <= _LONGEST_DAYS:  # nan is no number of days either
        raise UsageError(
            f"run got --parcel-days {days:g}, expected {_SHORTEST_DAYS:g} to "
            f"{_LONGEST_DAYS:g}; choose how long a file may be on its way and back"
        )
    return days


@run_app.command("start")
def server_start(hub: HubArgument) -> None:
    """Run the hub in the foreground: SuperLink, runner, nginx on the one public port.

    A run that the hub was killed in goes on by itself, exactly where it was.

    Example: `fedct server start hub`
    """
    from deploy.start import start_hub

    start_hub(hub, _stopper(), _tell)


@start_app.command("start")
def client_start(
    site: Annotated[Path, typer.Argument(help="The hospital's folder.")],
) -> None:
    """Run the hospital's service in the foreground, started again if it ends.

    Example: `fedct client start site`
    """
    from deploy.start import start_client

    start_client(site, _stopper(), _tell)


@run_app.command("run")
def server_run(
    hub: HubArgument,
    plan: Annotated[Path, typer.Argument(help="The plan, a TOML file.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the run. [default: the plan's name]")
    ] = None,
    sites: Annotated[
        str | None,
        typer.Option(help="Comma-separated. [default: every enrolled site]"),
    ] = None,
    parcel: Annotated[
        str | None,
        typer.Option(
            help="Those of the sites without a live line: files go to and fro."
        ),
    ] = None,
    parcel_days: Annotated[
        float,
        typer.Option(
            callback=_days,
            help="How long each file waits for its answer, 0.01 to 3650.",
        ),
    ] = 14.0,
    follow: Annotated[
        bool, typer.Option(help="Show how it goes on; Ctrl-C leaves it running.")
    ] = True,
) -> None:
    """Ask for a run; it starts when its turn comes and enough sites are in.

    The hub may be down meanwhile: the run is kept, and begins once the hub is up.

    Example: `fedct server run hub lung.toml --sites charite,ukb,tum --parcel tum`
    """
    from deploy.hub_runs import submit
    from deploy.run_state import RUNS

    chosen = _chosen_sites(hub, sites)
    offline = _offline_sites(chosen, parcel)
    waits_s = parcel_days * 86400.0
    folder = submit(hub / RUNS, plan, name, chosen, offline, waits_s)
    typer.echo(f"run {folder.name} asked for with {', '.join(chosen)}")
    _go_on(hub, folder, follow)


@run_app.command("follow")
def server_follow(hub: HubArgument, run: RunArgument) -> None:
    """Show how a run goes on until it ends; Ctrl-C leaves it running.

    Exits with 44 if the run is withheld: its model did not pass the plan's gate.

    Example: `fedct server follow hub lung`
    """
    _follow(hub, _run_folder(hub, run))


@run_app.command("stop")
def server_stop(hub: HubArgument, run: RunArgument) -> None:
    """Stop a run after its last finished round; `resume` goes on with it.

    Example: `fedct server stop hub lung`
    """
    from deploy.hub_runs import stop_run

    stop_run(_run_folder(hub, run))
    typer.echo(f"run {run} is being stopped; its finished rounds are kept")


@run_app.command("resume")
def server_resume(
    hub: HubArgument,
    run: RunArgument,
    follow: Annotated[
        bool, typer.Option(help="Show how it goes on; Ctrl-C leaves it running.")
    ] = True,
) -> None:
    """Go on with a run that was stopped or failed, exactly where it was.

    Example: `fedct server resume hub lung`
    """
    from deploy.hub_runs import resume_run

    folder = _run_folder(hub, run)
    resume_run(folder)
    typer.echo(f"run {run} goes on")
    _go_on(hub, folder, follow)


@run_app.command("status")
def server_status(hub: HubArgument, output_format: FormatOption = Format.TEXT) -> None:
    """Say which processes, sites and runs there are; exit with 54 if the hub is down.

    Example: `fedct server status hub --format json`
    """
    from common.errors import SupervisorError
    from deploy.hub_status import hub_status, print_hub_status

    status = hub_status(hub)
    if output_format is Format.JSON:
        typer.echo(status.model_dump_json(indent=1))
    else:
        print_hub_status(status)
    if not status.running:
        raise SupervisorError(_HUB_IS_DOWN)


def rehearse(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path(
        "rehearsal"
    ),
    size: Annotated[str, typer.Option(help="tiny, small or full phantoms.")] = "small",
) -> None:
    """Rehearse a real federation on this machine, with everything going wrong.

    A hub and three hospitals with phantom DICOM, certificates, a run in peace; then a
    run with a hospital and the hub killed, which must end in the same model; then a
    hospital is revoked.

    Example: `fedct rehearse --out rehearsal`
    """
    from deploy.rehearsal import rehearse as run_rehearsal

    seen = run_rehearsal(out, _tell, size=size)
    for run, seconds in seen.seconds.items():
        typer.echo(f"{run:<12} {seconds:.0f} s, model {seen.digests[run][:16]}")
    typer.echo(f"revoked      out after {seen.refused_after_s:.1f} s")
    typer.echo(f"report       {seen.report}")


def _chosen_sites(hub: Path, text: str | None) -> tuple[str, ...]:
    """The enrolled sites that were named, or all."""
    from common.errors import UsageError
    from server.hub import read_hub_file
    from server.register import sites

    read_hub_file(hub)
    now = datetime.now(UTC)
    active = [row.name for row in sites(hub, now) if row.status == "active"]
    if text is None:
        return tuple(active)
    named = tuple(sorted({part.strip() for part in text.split(",") if part.strip()}))
    if unknown := [name for name in named if name not in active]:
        raise UsageError(
            f"run got sites {', '.join(unknown)}, expected enrolled ones with a valid "
            f"certificate ({', '.join(active) or 'none yet'}); see `fedct server sites`"
        )
    return named


def _offline_sites(chosen: tuple[str, ...], text: str | None) -> tuple[str, ...]:
    """The sites of the run that are reached by files."""
    from common.errors import UsageError

    named = tuple(sorted({part.strip() for part in (text or "").split(",")} - {""}))
    if unknown := [name for name in named if name not in chosen]:
        raise UsageError(
            f"run got --parcel {', '.join(unknown)}, expected some of its sites "
            f"({', '.join(chosen)}); add them to --sites, or enrol them"
        )
    return named


def _run_folder(hub: Path, run: str) -> Path:
    from deploy.hub_runs import check_name
    from deploy.run_state import RUNS
    from server.hub import read_hub_file

    read_hub_file(hub)
    name = Path(run).name
    check_name(name, "see `fedct server status` for those there are")
    return hub / RUNS / name


def _go_on(hub: Path, folder: Path, follow: bool) -> None:
    """Follow a run, or leave it with a word about what it waits for."""
    from deploy.run_state import read_run

    if follow:
        _follow(hub, folder)
    elif held := _held(hub, read_run(folder)):
        typer.echo(f"it waits: {'; '.join(held)}", err=True)


def _follow(hub: Path, folder: Path) -> None:
    """Say each change of a run, until it ends."""
    from common.errors import ReleaseError, RunError
    from deploy.run_state import read_run

    said = ""
    try:
        while True:
            state = read_run(folder)
            line = "\n  ".join([_line(state), *_held(hub, state)])
            if line != said:
                typer.echo(line, err=True)
                said = line
            if state.state in ("finished", "withheld"):
                typer.echo(f"report  {folder / 'report.html'}")
                if state.state == "withheld":
                    raise ReleaseError(state.why)
                typer.echo(f"model   {folder / 'model'}")
                return
            if state.state == "failed":
                raise RunError(f"run {state.name!r} failed: {state.why}")
            if state.state == "stopped":
                return
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo(f"run {folder.name} goes on at the hub", err=True)


def _held(hub: Path, state: "RunState") -> list[str]:
    """What keeps a run from going on that is no site's doing."""
    from deploy.start import is_running

    if state.state not in ("queued", "running"):
        return []
    held = [f"its turn comes after {', '.join(state.behind)}"] if state.behind else []
    return held if is_running(hub) else [_HUB_IS_DOWN, *held]


def _line(state: "RunState") -> str:
    from deploy.run_state import parcel_line

    text = f"{state.name}: {state.state}, {state.rounds_done} of {state.rounds} rounds"
    for who, why in state.waiting.items():
        text += f"\n  waiting for {who}: {why}"
    for order in state.parcels:
        text += f"\n  waiting for {parcel_line(order)}"
    return text


def _stopper() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _tell(sentence: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {sentence}\n")
    sys.stderr.flush()
