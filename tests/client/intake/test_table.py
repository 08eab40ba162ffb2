"""The verdict table: complete, harmless to open, and read back as it was."""

import csv
import io
import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from client.intake.table import (
    COLUMNS,
    row_of,
    to_csv,
    to_table,
    verdict_of,
    write_tables,
)
from client.intake.verdict import Code, Finding, IntakeCount, SeriesVerdict, Verdict
from common.volume import Grid

DOCS = Path(__file__).parents[3] / "docs" / "verdicts.md"

GRID = Grid((60, 201, 204), np.diag([3.0, 0.977, 0.977, 1.0])[[2, 1, 0, 3]])
ACCEPTED = SeriesVerdict(
    "1.2.3", "p1", "a/1.dcm", 60, grid=GRID, hu_range=(-1024.0, 3071.5), labels=("GTV",)
)
REFUSED = SeriesVerdict(
    "1.2.4",
    "p2",
    "b/1.dcm",
    9,
    findings=(
        Finding(Code.MISSING_SLICES, "3 slices are missing", refuses=True),
        Finding(Code.LOSSY, "compressed with loss", refuses=False),
    ),
)


@pytest.mark.parametrize("verdict", [ACCEPTED, REFUSED], ids=["accepted", "refused"])
def test_rows_survive_json(verdict):
    back = verdict_of(json.loads(json.dumps(row_of(verdict))))
    assert row_of(back) == row_of(verdict)
    assert back.verdict is verdict.verdict
    assert back.findings == verdict.findings


def test_csv_has_a_line_a_series_and_all_that_was_measured():
    accepted, refused = csv.DictReader(io.StringIO(to_csv([ACCEPTED, REFUSED])))
    assert tuple(accepted) == COLUMNS
    assert accepted["verdict"] == "accept"
    assert [accepted[f"voxels_{a}"] for a in "dhw"] == ["60", "201", "204"]
    assert [accepted[f"spacing_{a}_mm"] for a in "dhw"] == ["3", "0.977", "0.977"]
    assert (accepted["hu_min"], accepted["hu_max"]) == ("-1024", "3071.5")
    assert refused["verdict"] == "refuse"
    assert refused["codes"] == "MISSING_SLICES LOSSY"
    assert refused["sentences"] == "3 slices are missing; compressed with loss"
    assert refused["voxels_d"] == ""


@pytest.mark.parametrize("text", ['=HYPERLINK("x")', "+1", "-1", "@a", "\t=1", "a\nb"])
def test_no_cell_is_a_formula_or_breaks_a_line(text):
    verdict = SeriesVerdict(text, text, text, 1, labels=(text,))
    (row,) = csv.DictReader(io.StringIO(to_csv([verdict])))
    for column in ("series", "patient", "source", "labels"):
        assert row[column][0] not in "=+-@\t\r"
        assert "\n" not in row[column]
    assert row["verdict"] == "accept"


def test_terminal_shows_every_series_and_obeys_no_control_code():
    nasty = SeriesVerdict("1.2\x1b[2J[red]x", "p", "s", 1)
    out = io.StringIO()
    console = Console(file=out, width=150, no_color=True)
    console.print(to_table([ACCEPTED, REFUSED, nasty], IntakeCount(2, 3)))
    shown = out.getvalue()
    assert "2 of 3 series accepted" in shown
    assert "60x201x204" in shown
    assert "MISSING_SLICES: 3 slices are missing" in shown
    assert "\x1b" not in shown
    assert r"1.2\x1b[2J[red]x" in shown


def test_tables_are_private_and_replaced_as_a_whole(tmp_path):
    write_tables(tmp_path, [REFUSED], IntakeCount(0, 1))
    write_tables(tmp_path, [ACCEPTED, REFUSED], IntakeCount(1, 2))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "verdicts.csv",
        "verdicts.json",
    ]
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads((tmp_path / "verdicts.json").read_text())
    assert (content["accepted"], content["found"]) == (1, 2)
    assert [row["verdict"] for row in content["series"]] == ["accept", "refuse"]
    np.testing.assert_allclose(
        content["series"][0]["grid"]["spacing_mm"], [3.0, 0.977, 0.977]
    )


def test_every_code_is_documented_once():
    rows = re.findall(r"^\| `([A-Z_]+)` \|", DOCS.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(code.value for code in Code)
    for line in DOCS.read_text().splitlines():
        if line.startswith("| `"):
            _, outcome, meaning, remedy = line.strip("| ").split(" | ")
            assert set(outcome.split(", ")) <= {"note", "refuse"}
            assert meaning.endswith(".")
            assert remedy.endswith(".")


def test_verdict_follows_from_findings():
    note = Finding(Code.LOSSY, "x", refuses=False)
    assert ACCEPTED.verdict is Verdict.ACCEPT
    assert SeriesVerdict("s", "p", "f", 1, findings=(note,)).verdict is Verdict.NOTE
    assert REFUSED.verdict is Verdict.REFUSE
