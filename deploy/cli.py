"""The `fedct` command: verbs, options, exit codes. The work is done elsewhere.

Heavy packages are imported inside the verbs, so that `--help` answers at once. What is
asked for goes to standard output, everything else to standard error. A deliberate
failure prints one sentence and exits with its number (`common.errors`); Ctrl-C exits
with 130 and leaves a run that can be resumed.
"""

import json
import os
import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import click
import typer

from common.errors import FedctError, StoppedError, disk_full
from deploy import (
    cli_audit,
    cli_client,
    cli_data,
    cli_join,
    cli_ledger,
    cli_parcel,
    cli_predict,
    cli_privacy,
    cli_server,
)
from deploy.cli_options import Format, FormatOption
from deploy.no_proxy import no_proxy

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may be patient data or keys
    rich_markup_mode="markdown",
    help="Federated learning on CT across hospitals.\n\nExample: `fedct demo`",
)
_PLAN_HELP = "Write, check and show plans.\n\nExample: `fedct plan check plan.toml`"
plan_app = typer.Typer(no_args_is_help=True, help=_PLAN_HELP)
app.add_typer(plan_app, name="plan")
cli_join.server_app.add_typer(cli_server.run_app)
cli_join.client_app.add_typer(cli_server.start_app)
cli_join.server_app.add_typer(cli_parcel.hub_app)
app.add_typer(cli_join.server_app, name="server")
cli_join.client_app.add_typer(cli_client.control_app)
cli_join.client_app.add_typer(cli_audit.site_app)
cli_join.server_app.add_typer(cli_audit.hub_app)
cli_join.client_app.add_typer(cli_ledger.site_app)
cli_join.client_app.add_typer(cli_parcel.site_app)
app.add_typer(cli_join.client_app, name="client")
app.add_typer(cli_privacy.privacy_app, name="privacy")


class Engine(StrEnum):
    """What carries messages in a rehearsal."""

    IN_PROCESS = "in-process"
    RAY = "ray"


_LEFT_BEHIND = {
    "demo": "what was finished is kept; the same command says how to go on",
    "intake": "what was prepared is kept; the same command goes on",
    "phantom": "what was written is no whole hospital; delete it",
    "rehearse": "a rehearsal can't be gone on with; delete its folder",
    "simulate": "what was finished is kept; the same command with --resume goes on",
}
"""By verb; the others do one thing, whole or not at all."""
PlanArgument = Annotated[Path, typer.Argument(help="The plan, a TOML file.")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("demo"),
    patients: Annotated[
        int | None, typer.Option(min=4, help="Per hospital. [default: 8]")
    ] = None,
) -> None:
    """Phantom CT for four hospitals, intake, a federated U-Net, a report: minutes.

    Example: `fedct demo --out demo`, then open demo/run/report.html
    """
    from deploy.demo import demo as run_demo
    from deploy.progress import show_progress
    from deploy.summary_table import print_summary

    with show_progress():
        record = run_demo(out, patients=patients)
    print_summary(record, out / "run")


@app.command()
def simulate(
    plan: PlanArgument,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder. [default: runs/<name of the plan's file>]"),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="What carries the messages.")
    ] = Engine.IN_PROCESS,
    baselines: Annotated[
        str, typer.Option(help="Comma-separated: pooled, local.")
    ] = "",
    seed: Annotated[
        int | None, typer.Option(help="Replaces the plan's seed (and so its hash).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Replaces the plan's data_root.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads. [default: all cores]")
    ] = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Run a whole federation on this machine.

    Example: `fedct simulate deploy/plans/lidc_nodules.toml --baselines pooled,local`
    """
    from common.plan_file import load_plan

    load_plan(plan)  # what follows takes seconds to import, and a typo should not
    from deploy.progress import show_progress
    from deploy.simulate import parse_baselines
    from deploy.simulate import simulate as run_plan

    folder = out or Path("runs") / plan.stem
    chosen = parse_baselines(baselines)
    with show_progress():
        record = run_plan(
            plan,
            folder,
            engine=engine.value,
            baselines=chosen,
            seed=seed,
            resume=resume,
            data_root=data_root,
            device=device,
            threads=threads,
        )
    if output_format is Format.JSON:
        typer.echo(record.model_dump_json(indent=1, exclude={"pictures"}))
        return
    from deploy.summary_table import print_summary

    print_summary(record, folder)


app.command()(cli_data.intake)
app.command()(cli_data.phantom)
app.command()(cli_data.purge)
app.command()(cli_data.report)
app.command()(cli_predict.predict)
app.command()(cli_predict.evaluate)
app.command()(cli_server.rehearse)


@plan_app.command("check")
def plan_check(plan: PlanArgument, output_format: FormatOption = Format.TEXT) -> None:
    """Check a plan without touching any data; say its hash.

    Example: `fedct plan check deploy/plans/demo.toml --format json`
    """
    from common.plan_file import load_plan

    checked = load_plan(plan)
    from common.networks import check_fits  # takes seconds, and a typo should not

    check_fits(checked)
    if output_format is Format.JSON:
        typer.echo(json.dumps({"name": checked.plan.name, "digest": checked.digest}))
    else:
        typer.echo(f"plan {checked.plan.name!r} is valid, hash {checked.digest}")


@plan_app.command("show")
def plan_show(plan: PlanArgument, output_format: FormatOption = Format.TEXT) -> None:
    """Print the effective plan: every key with its value, defaults included.

    Example: `fedct plan show deploy/plans/demo.toml`
    """
    from common.plan_file import load_plan, plan_toml

    loaded = load_plan(plan)
    if output_format is Format.JSON:
        typer.echo(loaded.model_dump_json(indent=1))
    else:
        typer.echo(plan_toml(loaded))


@plan_app.command("schema")
def plan_schema() -> None:
    """Print the JSON schema of a plan: every key, type and meaning.

    Example: `fedct plan schema > plan.schema.json`
    """
    from common.plan import Plan

    typer.echo(json.dumps(Plan.model_json_schema(), indent=1))


@plan_app.command("new")
def plan_new(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    site: Annotated[
        list[str],
        typer.Option(help="NAME=FOLDER, once per hospital; at least two."),
    ],
    task: Annotated[
        str, typer.Option(help="segmentation or classification.")
    ] = "segmentation",
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label names to segment. [default: every label found]"),
    ] = None,
    source_format: Annotated[
        cli_data.SourceFormat, typer.Option(help="What the folders are made of.")
    ] = cli_data.SourceFormat.DICOM,
) -> None:
    """Write a commented plan that runs on your own folders.

    Example: `fedct plan new lung.toml --site a=/data/a --site b=/data/b --label GTV-1`
    """
    from deploy.new_plan import write_plan

    write_plan(out, site, task, label or ["*"], source_format.value)
    typer.echo(
        f"wrote {out}; look it over, then: fedct simulate {shlex.quote(str(out))}"
    )


def main() -> None:
    """Run the command; turn deliberate failures into a sentence and a number."""
    signal.signal(signal.SIGTERM, _stop)
    os.environ.update(no_proxy())
    sys.exit(_run())


def _run() -> int:
    try:
        code = int(app(standalone_mode=False) or 0)
    except FedctError as error:
        return _fail(str(error), error.exit_code)
    except click.Abort:  # answered no
        return _fail("stopped; nothing was changed", StoppedError.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError as error:
        return _fail_of_disk(error)
    except KeyboardInterrupt:
        code = StoppedError.exit_code
    if code == StoppedError.exit_code:  # typer turns Ctrl-C into this number
        for number in (signal.SIGINT, signal.SIGTERM):  # we are leaving already
            signal.signal(number, signal.SIG_IGN)
        return _fail(f"stopped; {_left_behind(sys.argv[1:])}", code)
    return code


def _left_behind(words: list[str]) -> str:
    """What a stopped verb leaves, and how to go on from there."""
    verb = next((word for word in words if not word.startswith("-")), "")
    return _LEFT_BEHIND.get(verb, "what was finished is kept")


def _fail(sentence: str, code: int) -> int:
    typer.echo(f"fedct: {sentence}", err=True)
    return code


def _fail_of_disk(error: OSError) -> int:
    if (full := disk_full(error)) is not None:
        return _fail(str(full), full.exit_code)
    got = f"{error.filename or 'a file'} ({error.strerror or error})"
    return _fail(f"can't use {got}, expected a place with room and rights", 1)


def _stop(number: int, frame: object) -> None:
    """SIGTERM, by which a service manager asks, is as good as Ctrl-C."""
    raise KeyboardInterrupt
