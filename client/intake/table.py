"""The verdict table: as JSON for programs, as CSV for a spreadsheet, for the terminal.

Tables hold UIDs, patient ids and file names: they are written with mode 0600 into the
store and never leave the hospital. All of that text comes from outside, so in the CSV
no cell can be taken for a formula, and in the terminal none can send control codes.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from client.intake.verdict import (
    Code,
    Finding,
    IntakeCount,
    SeriesVerdict,
    Verdict,
)
from client.private_files import write_private
from common.volume import Grid

JSON_FILE = "verdicts.json"
CSV_FILE = "verdicts.csv"
TABLE_VERSION = 1
"""Version of the JSON."""
COLUMNS = (
    "series",
    "patient",
    "source",
    "files",
    "verdict",
    "codes",
    "sentences",
    "voxels_d",
    "voxels_h",
    "voxels_w",
    "spacing_d_mm",
    "spacing_h_mm",
    "spacing_w_mm",
    "hu_min",
    "hu_max",
    "labels",
)
_STYLE = {Verdict.ACCEPT: "green", Verdict.NOTE: "yellow", Verdict.REFUSE: "red"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First letters that make a spreadsheet calculate (OWASP, CSV injection)."""


def write_tables(
    folder: Path, verdicts: Sequence[SeriesVerdict], count: IntakeCount
) -> None:
    """Write both files into the store's folder, each as a whole."""
    content = {
        "version": TABLE_VERSION,
        "accepted": count.accepted,
        "found": count.found,
        "series": [row_of(verdict) for verdict in verdicts],
    }
    text = json.dumps(content, indent=1) + "\n"
    write_private(folder / JSON_FILE, text.encode())
    write_private(folder / CSV_FILE, to_csv(verdicts).encode(errors="replace"))


def row_of(verdict: SeriesVerdict) -> dict[str, Any]:
    """One verdict as plain JSON values; `verdict_of` is the way back."""
    grid = verdict.grid
    return {
        "series": verdict.series,
        "patient": verdict.patient,
        "source": verdict.source,
        "files": verdict.files,
        "verdict": verdict.verdict.value,
        "findings": [
            {"code": f.code.value, "sentence": f.sentence, "refuses": f.refuses}
            for f in verdict.findings
        ],
        "grid": None
        if grid is None
        else {
            "shape": list(grid.shape),
            "spacing_mm": list(grid.spacing_mm),
            "affine": grid.affine.tolist(),
        },
        "hu_range": None if verdict.hu_range is None else list(verdict.hu_range),
        "labels": list(verdict.labels),
    }


def verdict_of(row: dict[str, Any]) -> SeriesVerdict:
    """The verdict that `row_of` made a row of."""
    grid, hu_range = row["grid"], row["hu_range"]
    return SeriesVerdict(
        series=row["series"],
        patient=row["patient"],
        source=row["source"],
        files=row["files"],
        findings=tuple(
            Finding(Code(f["code"]), f["sentence"], f["refuses"])
            for f in row["findings"]
        ),
        grid=Grid(tuple(grid["shape"]), np.array(grid["affine"])) if grid else None,
        hu_range=(hu_range[0], hu_range[1]) if hu_range else None,
        labels=tuple(row["labels"]),
    )


def to_csv(verdicts: Sequence[SeriesVerdict]) -> str:
    """One line per series under COLUMNS."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for verdict in verdicts:
        writer.writerow(_cells(verdict))
    return out.getvalue()


def to_table(verdicts: Sequence[SeriesVerdict], count: IntakeCount) -> Table:
    """For the terminal: what was refused comes with its reasons."""
    table = Table(
        title=f"{count.accepted} of {count.found} series accepted", title_style="bold"
    )
    for name in ("series", "verdict", "grid", "spacing mm", "HU"):
        table.add_column(name, overflow="fold")
    table.add_column("why", overflow="fold", ratio=1)
    for verdict in verdicts:
        why = "\n".join(f"{f.code}: {f.sentence}" for f in verdict.findings)
        table.add_row(
            _shown(verdict.series),
            Text(verdict.verdict.value, style=_STYLE[verdict.verdict]),
            _joined(verdict.grid.shape if verdict.grid else (), "x", "d"),
            _joined(verdict.grid.spacing_mm if verdict.grid else (), " x ", ".3g"),
            _joined(verdict.hu_range or (), " to ", ".0f"),
            _shown(why),
        )
    return table


def _cells(verdict: SeriesVerdict) -> list[Any]:
    grid, findings = verdict.grid, verdict.findings
    return [
        _harmless(verdict.series),
        _harmless(verdict.patient),
        _harmless(verdict.source),
        verdict.files,
        verdict.verdict.value,
        " ".join(f.code.value for f in findings),
        _harmless("; ".join(f.sentence for f in findings)),
        *(grid.shape if grid else [""] * 3),
        *((f"{s:.6g}" for s in grid.spacing_mm) if grid else [""] * 3),
        *((f"{v:g}" for v in verdict.hu_range) if verdict.hu_range else [""] * 2),
        _harmless("; ".join(verdict.labels)),
    ]


def _harmless(text: str) -> str:
    """Text that no spreadsheet takes for a formula, on one line."""
    text = _visible(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _shown(text: str) -> Text:
    return Text("\n".join(_visible(line) for line in text.split("\n")))


def _visible(text: str) -> str:
    """Control codes and lone surrogates as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def _joined(values: Sequence[float], between: str, form: str) -> str:
    return between.join(format(value, form) for value in values)
