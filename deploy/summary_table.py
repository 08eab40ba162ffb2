"""The end of a run, in a terminal: one row per arm, one column per hospital."""

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from server.record import RunRecord
from server.report_counts import in_tens, show_told


def print_summary(record: RunRecord, folder: Path) -> None:
    """Print the monitored metric of every arm at every site, and where things lie."""
    console = Console(highlight=False)
    table = Table(title=f"{record.monitor} on test patients", title_justify="left")
    table.add_column("arm")
    for site in record.sites:
        table.add_column(site.name, justify="right")
    table.add_column("mean", justify="right")
    for arm in record.arms:
        values = [arm.test.get(site.name, {}) for site in record.sites]
        cells = [_number(metrics.get(record.monitor)) for metrics in values]
        table.add_row(arm.name, *cells, _number(arm.test_mean.get(record.monitor)))
    console.print(table)
    for site in record.sites:
        told = (site.accepted, site.found, site.train, site.validation, site.test)
        rounded = in_tens(record, site)
        counts = [show_told(count, rounded).replace("–", "-") for count in told]
        console.print(
            f"{site.name}: trained on {counts[0]} of {counts[1]} series found "
            f"({counts[2]} train, {counts[3]} validation, {counts[4]} test)"
        )
    if record.no_model:
        console.print(f"no model: {record.no_model}", markup=False)
    console.print(f"{record.seconds:.0f} s, plan hash {record.plan_digest[:12]}")
    console.print(f"report  {folder / 'report.html'}")
    if (folder / "model").is_dir():
        console.print(f"model   {folder / 'model'}")


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"
