"""The verbs of `fedct` that make, take in, remove and show data."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli_options import Format, FormatOption, WhereOption, parse_where


class SourceFormat(StrEnum):
    """What a source is made of."""

    DICOM = "dicom"
    NIFTI = "nifti"
    METAIMAGE = "metaimage"
    IMAGES = "images"


def intake(
    source: Annotated[Path, typer.Argument(help="Folder (or .zip of pictures).")],
    store: Annotated[Path, typer.Option(help="Where prepared cases go; mode 0700.")],
    plan: Annotated[
        Path | None,
        typer.Option(help="Prepare cases for this plan; without it: verdicts only."),
    ] = None,
    source_format: Annotated[
        SourceFormat, typer.Option(help="What the source is made of.")
    ] = SourceFormat.DICOM,
    where: WhereOption = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Also write each accepted volume and label as NIfTI."),
    ] = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Judge every image series of a source and prepare the accepted ones.

    The verdict table is printed, and kept as `verdicts.json` and `verdicts.csv` in the
    store. It holds UIDs: it is for this hospital alone.

    Example: `fedct intake /data/ct --store /srv/fedct/store --plan plan.toml`
    """
    from rich.console import Console

    from client.intake.table import row_of, to_table
    from common.sources import Source
    from deploy.intake import take_in_verdicts
    from deploy.progress import show_progress

    rows = parse_where(where)
    chosen = Source(source=str(source), format=source_format.value, where=rows)
    with show_progress():
        verdicts, count = take_in_verdicts(chosen, store, plan, export)
    if output_format is Format.JSON:
        series = [row_of(verdict) for verdict in verdicts]
        counts = {"accepted": count.accepted, "found": count.found}
        typer.echo(json.dumps({**counts, "series": series}, indent=1))
        return
    Console().print(to_table(verdicts, count))
    typer.echo(f"accepted {count.accepted} of {count.found} series; tables in {store}")


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; one per hospital.")],
    patients: Annotated[
        int | None, typer.Option(min=1, help="Per hospital. [default: 8]")
    ] = None,
    size: Annotated[str, typer.Option(help="tiny, small or full.")] = "full",
    seed: Annotated[int, typer.Option(help="Decides everything.")] = 1,
    kind: Annotated[
        SourceFormat, typer.Option(help="How they are written.")
    ] = SourceFormat.DICOM,
    awkward: Annotated[
        bool, typer.Option("--awkward", help="Also a hospital full of faults.")
    ] = False,
) -> None:
    """Write synthetic chest CT of four hospitals, with nodules and exact labels.

    Example: `fedct phantom /tmp/ct --patients 4 --awkward`
    """
    from deploy.phantom.awkward import write_awkward
    from deploy.phantom.formats import write_images, write_metaimage, write_nifti
    from deploy.phantom.hospital import write_hospitals
    from deploy.progress import show_progress, tell_phantom

    with show_progress():
        if kind is SourceFormat.DICOM:
            write_hospitals(
                out, patients=patients, seed=seed, size=size, progress=tell_phantom
            )
        elif kind is SourceFormat.IMAGES:
            write_images(out, patients=patients or 8, seed=seed)
        elif kind is SourceFormat.NIFTI:
            write_nifti(out, patients=patients or 8, seed=seed, size=size)
        else:
            write_metaimage(out, patients=patients or 8, seed=seed, size=size)
        if awkward:
            write_awkward(out / "awkward", seed=seed)
    typer.echo(f"wrote {out}")


def purge(
    store: Annotated[Path, typer.Argument(help="A store of prepared cases.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove every prepared case of a store; the source is not touched.

    Example: `fedct purge /srv/fedct/store`
    """
    from client.intake.run import open_store
    from common.errors import StoreError

    if not (store / "secret").is_file():  # opening would make a store of any folder
        raise StoreError("purge found no such store, expected a folder made by intake")
    if not yes:
        typer.confirm("Remove all prepared cases?", abort=True)
    opened = open_store(store)
    with opened.writing():
        removed = opened.purge()
    typer.echo(f"removed {removed} prepared cases")


def report(
    run: Annotated[Path | None, typer.Argument(help="A run folder.")] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of report.json.")
    ] = False,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Draw the report of a finished run again, from its report.json.

    Example: `fedct report runs/lidc_nodules`
    """
    from common.errors import UsageError
    from deploy.summary_table import print_summary
    from server.record import RunRecord
    from server.report import read_record, write_report

    if schema:
        typer.echo(json.dumps(RunRecord.model_json_schema(), indent=1))
        return
    if run is None:
        raise UsageError("report got no run folder, expected one or --schema")
    record = read_record(run)
    write_report(record, run)
    if output_format is Format.JSON:
        typer.echo(record.model_dump_json(indent=1, exclude={"pictures"}))
    else:
        print_summary(record, run)
