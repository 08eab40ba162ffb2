"""The verbs of `fedct client` by which an engineer governs a site that has joined.

All but `check` ask the running service over its socket. Where none runs, as
at a site that gets its orders in files, they use what lies on the disk.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:
    from client.control_calls import NotRunningError
    from client.desk_control import PlanView

control_app = typer.Typer()
T = TypeVar("T")
SiteArgument = Annotated[Path, typer.Argument(help="The hospital's folder.")]


@control_app.command("status")
def client_status(
    site: SiteArgument, output_format: FormatOption = Format.TEXT
) -> None:
    """Say what a site is doing, and what waits for its engineer.

    Without a running service it says what lies on the disk, and exits with 52; but not
    at a site that never had one, as it works on orders in files. Settings that are
    wrong, so that no order is taken, are named by line.

    Example: `fedct client status site --format json`
    """
    from client import control_calls
    from client.desk_control import status_on_disk
    from client.site_file import read_site_file
    from deploy.site_tables import print_status

    check_site(site)
    stopped: control_calls.NotRunningError | None = None
    try:
        status = control_calls.status(site)
    except control_calls.NotRunningError as error:
        status, stopped = status_on_disk(site), error
    if output_format is Format.JSON:
        content = {"running": stopped is None, **status.model_dump(mode="json")}
        typer.echo(json.dumps(content, indent=1))
    else:
        print_status(status, site.resolve().name)
    if stopped is not None:
        _raise_unless_by_files(site, stopped)
    read_site_file(site)  # no order is taken while its settings are wrong


def _raise_unless_by_files(site: Path, stopped: "NotRunningError") -> None:
    """Say why no service answers, where one should."""
    from common.errors import ControlError
    from deploy.parcel_work import PARCELS
    from deploy.site_tables import visible
    from deploy.start import is_running
    from deploy.supervisor import PROCESSES_FILE, last_words, read_processes
    from server.report_format import plural

    if not is_running(site):
        if not (site / PARCELS).is_dir() or (site / PROCESSES_FILE).exists():
            raise stopped
        typer.echo("orders come in files here, and need no service", err=True)
        return
    ends = sum(int(str(row["restarts"])) for row in read_processes(site))
    if not ends:
        raise ControlError(
            "the site's service does not answer yet, expected it a moment after "
            "`fedct client start`; ask again, or look into logs/service.log"
        )
    raise ControlError(
        f"the site's service ended {plural(ends, 'time')} since `fedct client start`, "
        "expected it to stay up; it said at last: "
        f"{visible(last_words(site, 'service'))}"
    )


@control_app.command("approve")
def client_approve(
    site: SiteArgument,
    digest: Annotated[
        str | None,
        typer.Argument(help="Hash of a plan, or its first 8 digits or more."),
    ] = None,
    deny: Annotated[
        bool, typer.Option("--deny", help="Refuse it, or take an approval back.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--all", help="List decided plans, too.")
    ] = False,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Approve or deny a plan; without a hash, show the plans that wait.

    Shown are network and parameters, what hides the hospital's share, with masks who
    takes part under which keys, what its policy has against the plan, and what differs,
    key by key, from the plan that was approved last. Approving a plan with masks
    confirms its sites: others are refused until it is approved again.

    Example: `fedct client approve site 85b45201`
    """
    from client import control_calls
    from client.desk_control import DeskControl
    from common.errors import UsageError

    check_site(site)
    if digest is None and deny:
        raise UsageError("approve --deny got no plan, expected its hash")
    if digest is None:
        _show_plans(site, every, output_format)
        return
    decided = _asked(
        lambda: control_calls.decide(site, digest, approve=not deny),
        lambda: DeskControl(site).decide(digest, approve=not deny),
    )
    if output_format is Format.JSON:
        typer.echo(decided.model_dump_json(indent=1, exclude={"toml"}))
        return
    if not deny:
        _show_plans(site, True, output_format, decided.digest)
    typer.echo(f"{decided.state} plan {decided.digest}")


def _show_plans(
    site: Path, every: bool, output_format: Format, only: str | None = None
) -> None:
    """Print plans: those that wait, or all, or the one of a digest."""
    from client import control_calls
    from client.desk_control import DeskControl
    from client.site_file import read_site_file

    read_site_file(site)  # no plan comes in while its settings are wrong
    known = _asked(lambda: control_calls.plans(site), DeskControl(site).plans)
    shown = [p for p in known if every or p.state == "waiting" or p.changed]
    described = _described(
        site,
        [plan for plan in shown if only in (None, plan.digest)],
        [plan for plan in known if plan.state == "approved"],
    )
    if output_format is Format.JSON:
        typer.echo(json.dumps({"plans": described}, indent=1))
        return
    if described:
        from deploy.plan_view import print_plan

        for plan in described:
            print_plan(plan)
    if only is not None:
        return
    if described and any(p.state == "waiting" or p.changed for p in shown):
        typer.echo("\napprove one by its hash: fedct client approve SITE HASH")
    else:
        typer.echo(f"no plan waits ({len(known)} seen here)")


def _described(
    site: Path, plans: list["PlanView"], approved: list["PlanView"]
) -> list[dict[str, object]]:
    """The plans for people; builds their networks, so nothing is imported for none."""
    if not plans:
        return []
    from deploy.plan_sites_view import look_here
    from deploy.plan_view import describe

    here = look_here(site)
    return [describe(plan, approved, here) for plan in plans]


@control_app.command("pause")
def client_pause(
    site: SiteArgument,
    reason: Annotated[
        str, typer.Option(help="For other engineers; never leaves the site.")
    ] = "",
    now: Annotated[
        bool, typer.Option("--now", help="Also cancel the order at work.")
    ] = False,
) -> None:
    """Take no further orders, also after a restart, until resumed.

    The order at work is finished first. With --now, training stops at its next step and
    nothing of the round is kept; judging has no steps and is finished all the same.

    Example: `fedct client pause site --reason "scanner moves" --now`
    """
    from client import control_calls
    from client.desk_control import DeskControl

    check_site(site)
    done = _asked(
        lambda: control_calls.pause(site, reason, now=now),
        lambda: DeskControl(site).pause(reason, now=now),
    )
    typer.echo("paused; orders are refused until `fedct client resume`")
    if now:
        cancelled = "the order at work stops at its next step"
        typer.echo(cancelled if done.cancelled else "no training to cancel")


@control_app.command("resume")
def client_resume(site: SiteArgument) -> None:
    """Take orders again.

    Example: `fedct client resume site`
    """
    from client import control_calls
    from client.desk_control import DeskControl

    check_site(site)
    was_paused = _asked(lambda: control_calls.resume(site), DeskControl(site).resume)
    typer.echo("takes orders again" if was_paused else "was not paused")


@control_app.command("check")
def client_check(site: SiteArgument, output_format: FormatOption = Format.TEXT) -> None:
    """Look for everything that would stop a round: network, machine, folder, data.

    Exits with 51 if a row says FAIL.

    Example: `fedct client check site --format json`
    """
    from client.preflight import preflight
    from common.errors import TransportError
    from deploy.site_tables import print_checks

    check_site(site)
    rows = preflight(site)
    if output_format is Format.JSON:
        typer.echo(json.dumps({"rows": [vars(row) for row in rows]}, indent=1))
    else:
        print_checks(rows)
    bad = [row.name for row in rows if row.verdict == "FAIL"]
    if bad:
        raise TransportError(
            f"preflight found {len(bad)} of {len(rows)} rows that would stop a round "
            f"({', '.join(bad)}), expected none; do what stands beside them"
        )


def _asked(service: Callable[[], T], disk: Callable[[], T]) -> T:
    """What the running service answers; without one, what the disk does."""
    from client.control_calls import NotRunningError

    try:
        return service()
    except NotRunningError:
        return disk()


def check_site(site: Path) -> None:
    """See that this is a site's folder at all; its settings may be wrong meanwhile."""
    from client.site_file import CLIENT_FILE
    from common.errors import ControlError

    if not (site / CLIENT_FILE).is_file():
        raise ControlError(
            f"folder {site.name!r} has no {CLIENT_FILE} that can be read, expected a "
            "hospital's folder; give the one that `fedct client request` made, as the "
            "user who owns it"
        )
