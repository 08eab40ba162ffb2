"""The verbs of `fedct` that use a handed-out model: predict and evaluate."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import UsageError
from deploy.cli_data import SourceFormat
from deploy.cli_options import Format, FormatOption, WhereOption, parse_where

if TYPE_CHECKING:
    from rich.console import Console

    from client.assess import Assessment
    from client.predict import Predictions
    from common.sources import Source

ModelArgument = Annotated[
    Path, typer.Argument(help="A model folder, or a run folder that holds one.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
SourceFormatOption = Annotated[
    SourceFormat | None,
    typer.Option(help="What the images are. [default: told by their names]"),
]


def predict(
    model: ModelArgument,
    series: Annotated[
        Path, typer.Argument(help="Folder with CT series, or one NIfTI or MetaImage.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for results, which are patient data.")
    ] = Path("prediction"),
    source_format: SourceFormatOption = None,
    where: WhereOption = None,
    device: DeviceOption = "auto",
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Run a model on CT: a DICOM SEG on the series' own grid, a preview, a JSON.

    Every series of the folder that intake accepts is predicted; refused ones are
    listed with their codes. For research use only.

    Example: `fedct predict runs/nodules/model /data/ct/patient7 --out result`

    Example: `fedct predict model scan.nii.gz --device cuda --format json`
    """
    from client.open_site import choose_device
    from client.predict import predict_series
    from common.package import load_package
    from deploy.progress import show_progress, tell_work

    package = load_package(model)
    source = _source(series, source_format, where)
    with show_progress():
        said = predict_series(package, source, out, choose_device(device), tell_work)
    if output_format is Format.JSON:
        typer.echo(json.dumps(_as_json(said, out), indent=1))
        return
    _print_predictions(said, out)


def evaluate(
    model: ModelArgument,
    data: Annotated[Path, typer.Argument(help="Labelled images, as for intake.")],
    source_format: SourceFormatOption = None,
    where: WhereOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the JSON into this file.")
    ] = None,
    device: DeviceOption = "auto",
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Measure a model on labelled cases: metrics with 95 % intervals over patients.

    Every case that intake accepts is judged: keep cases away that the model was trained
    on. Intervals are bootstrapped over patients (2,000 resamples, seeded by the plan).

    Example: `fedct evaluate runs/nodules/model /data/test`

    Example: `fedct evaluate model crops.zip --where vendor=Philips --format json`
    """
    from client.assess import assess
    from client.open_site import choose_device
    from common.package import load_package
    from common.tasks.catalog import task_of
    from deploy.progress import show_progress, tell_work

    package = load_package(model)
    source = _source(data, source_format, where)
    with show_progress():
        said = assess(package, source, choose_device(device), tell_work)
    text = said.model_dump_json(indent=1) + "\n"
    if out is not None:
        _write(out, text)
    if output_format is Format.JSON:
        typer.echo(text, nl=False)
        return
    _print_assessment(said, len(task_of(package.plan).class_names))


def _source(
    path: Path, source_format: SourceFormat | None, where: list[str] | None
) -> "Source":
    from client.predict import format_of
    from common.sources import Source

    return Source(
        source=str(path),
        format=source_format.value if source_format else format_of(path),
        where=parse_where(where),
    )


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"command got an --out that can't be written ({error.strerror}), expected "
            "a file in a folder that is there"
        ) from error


def _as_json(said: "Predictions", out: Path) -> dict[str, object]:
    return {
        "out": str(out),
        "predictions": [done.model_dump(exclude_none=True) for done in said.done],
        "refused": [
            {
                "series": row.series,
                "codes": sorted({f.code.value for f in row.findings if f.refuses}),
            }
            for row in said.refused
        ],
    }


def _print_predictions(said: "Predictions", out: Path) -> None:
    from rich.markup import escape

    console = _console()
    for done in said.done:
        console.print(f"[bold]{escape(done.source)}[/]")
        for found in done.findings or []:
            size = "" if found.volume_ml is None else f", {found.volume_ml:.3g} ml"
            console.print(f"  {escape(found.name)}: {found.voxels:,} voxels{size}")
        for name, value in (done.probabilities or {}).items():
            console.print(f"  {escape(name)}: {100 * value:.1f} %")
        if done.why_nifti:
            console.print(f"  [yellow]NIfTI in place of SEG: {done.why_nifti}[/]")
        for note in done.notes:
            console.print(f"  [yellow]{escape(note)}[/]")
        for kind, file in done.files.items():
            console.print(f"  {kind}: {escape(str(out / file))}")
    for row in said.refused:
        codes = ", ".join(sorted({f.code.value for f in row.findings if f.refuses}))
        console.print(f"[red]refused[/] {escape(row.source)}: {codes}")
    console.print("[dim]research use only, not for diagnosis[/]")


def _print_assessment(said: "Assessment", classes: int) -> None:
    from rich.markup import escape
    from rich.table import Table

    from common.metrics.names import told_once

    table = Table("metric", "value", "95 % interval", box=None, pad_edge=False)
    for name in told_once(list(said.metrics), said.monitor, classes):
        metric = said.metrics[name]
        interval = "none"
        if metric.low is not None and metric.high is not None:
            interval = f"{metric.low:.4f} to {metric.high:.4f}"
        style = "bold" if name == said.monitor else ""
        table.add_row(escape(name), f"{metric.value:.4f}", interval, style=style)
    console = _console()
    console.print(
        f"{escape(said.plan_name)}: {said.accepted} of {said.found} series judged, "
        f"{said.patients} patients"
    )
    console.print(table)
    for code, count in said.refused.items():
        console.print(f"[red]refused[/] {count}: {code}")
    for note in said.notes:
        console.print(f"[yellow]{escape(note)}[/]")
    console.print("[dim]research use only, not for diagnosis[/]")


def _console() -> "Console":
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=True)
