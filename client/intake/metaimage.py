"""A folder of MetaImages as LUNA16 has them, with nodules listed in annotations.csv.

The table has a row a nodule: seriesuid (the image's file name without suffix), coordX,
coordY, coordZ (LPS, mm) and diameter_mm. Each nodule becomes a sphere of the segment
"nodule" (`client.labels.spheres`). Where there is a table, an image without a row is an
image without nodules, and says so in a note. Label maps beside the images, such as
LUNA16's lungs, are read too. Rows of images that the folder lacks are not looked at:
most users hold some of LUNA16's ten subsets.

A patient is a series, as LUNA16 has one scan a patient, unless the table has a column
`patient`.
"""

import csv
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from client.intake.meta_file import SUFFIXES, load_metaimage
from client.intake.nifti import label_maps
from client.intake.pairs import Case, find_cases
from client.intake.verdict import Code, Finding, SeriesVerdict
from client.intake.volume_case import Labels, Settled, settle
from client.labels.spheres import Sphere, spheres
from common.errors import IntakeError
from common.volume import Grid

TABLE = "annotations.csv"
COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")

Rows = Mapping[str, Sequence[Mapping[str, str]]]
"""Rows of the table by seriesuid."""


def read_metaimage(root: Path) -> Iterator[Settled]:
    """One verdict, and the case where accepted, for each image below a folder.

    Raises:
        IntakeError: The root is no folder, holds no MetaImage, or its table lacks a
            column, or there are two tables.
    """
    cases, strays = find_cases(root, SUFFIXES)
    table = _read_table(root)
    refused: Iterator[Settled] = ((stray, None) for stray in strays)
    return chain(refused, (_settle(case, table) for case in cases))


def _settle(case: Case, table: Rows | None) -> Settled:
    uid = case.name.rpartition("/")[2]
    rows = (table or {}).get(uid, ())
    known = uid if case.patient == case.name else case.patient
    patient = next((row["patient"] for row in rows if row.get("patient")), known)
    has_raw = case.image.suffix.lower() == ".mhd"
    files = 1 + has_raw + len(case.labels)
    row = SeriesVerdict(uid, patient, case.source, files)
    return settle(
        row,
        lambda: load_metaimage(case.image),
        lambda grid: _label(case, grid, None if table is None else rows),
    )


def _label(case: Case, grid: Grid, rows: Sequence[Mapping[str, str]] | None) -> Labels:
    """Spheres, then label maps."""
    if rows is None:
        return label_maps(case, grid, SUFFIXES)
    try:
        found = [_sphere(row) for row in rows]
    except (ValueError, TypeError):
        sentence = f"a row of {TABLE} has no plain numbers, expected mm; correct it"
        return (), (Finding(Code.LABEL_UNREADABLE, sentence, refuses=True),)
    segments, findings = spheres(found, grid)
    if not case.labels or any(finding.refuses for finding in findings):
        return segments, findings
    more, notes = label_maps(case, grid, SUFFIXES)
    if any(finding.refuses for finding in notes):
        return (), notes
    return (*segments, *more), (*findings, *notes)


def _sphere(row: Mapping[str, str]) -> Sphere:
    x, y, z, diameter_mm = (float(row[name]) for name in COLUMNS[1:])
    return Sphere((x, y, z), diameter_mm)


def _read_table(root: Path) -> Rows | None:
    """The one annotations.csv below a folder, or None."""
    found = sorted(root.rglob(TABLE))
    if len(found) > 1:
        raise IntakeError(
            f"intake found {len(found)} files {TABLE}, expected at most one; remove "
            f"the others, or point intake at the folder of one"
        )
    if not found:
        return None
    with found[0].open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise IntakeError(
                f"{TABLE} lacks the columns {', '.join(missing)}, expected "
                f"{', '.join(COLUMNS)} as in LUNA16"
            )
        table: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        for row in reader:
            table[row["seriesuid"]].append(row)
    return table
