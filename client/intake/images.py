"""A folder or zip of PNG pictures with a manifest.csv to cases.

The manifest has a row a picture. `image` is the only column it must have; `mask`,
`patient`, `nodule` and `slice` are used where they are there, and every other column
whose value is one in a case becomes an attribute of the case. Rows of one patient and
nodule are one case, its pictures stacked along D in the order of `slice`. Slices of a
nodule need not be neighbours in the body, so D is a stack and no distance: pictures
know no millimetres (`has_spacing` is false, the grid says 1 mm) and no HU (`has_hu` is
false), because somebody else chose their window.
"""

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from client.intake.digest import case_digest
from client.intake.members import Members, open_members
from client.intake.refusal import RefusedError, reading
from client.intake.verdict import Code, Finding, SeriesVerdict, Verdict
from client.intake.volume_case import Labels, Settled
from common.case import IntakeCase, Segment
from common.errors import IntakeError
from common.volume import Grid, Volume

MANIFEST = "manifest.csv"
SEGMENT = "nodule"
MANIFEST_BYTES_LIMIT = 256 * 2**20
PICTURE_BYTES_LIMIT = 64 * 2**20
"""Largest PNG file, packed and unpacked from the zip."""
PIXELS_LIMIT = 4096 * 4096
"""Most pixels of one picture; bounds what a PNG may decode to."""
_OWN_COLUMNS = ("image", "mask", "patient", "slice")

Row = Mapping[str, str]


def read_images(
    path: Path, *, where: Mapping[str, str] | None = None, labels: bool = True
) -> Iterator[Settled]:
    """One verdict, and the case where accepted, for each patient and nodule.

    Args:
        path: A folder or a `.zip` with `manifest.csv` at its top.
        where: Keep the rows whose columns have these values, as in {"vendor": "GE"};
            how one collection is divided into sites.
        labels: Whether masks are read; without, a damaged one refuses nothing.

    Raises:
        IntakeError: No manifest, an unknown column, or no row that fits.
    """
    with open_members(path) as source:
        rows = _rows(source, where or {})
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        groups[_group(row, number)].append(row)
    return _cases(path, groups, ("image", "mask") if labels else ("image",))


def _cases(
    path: Path,
    groups: Mapping[tuple[str, str], Sequence[Row]],
    columns: tuple[str, ...],
) -> Iterator[Settled]:
    with open_members(path) as source:
        for (patient, series), rows in groups.items():
            files = sum(bool(row.get(column)) for row in rows for column in columns)
            verdict = SeriesVerdict(series, patient, rows[0]["image"], files)
            yield _settle(source, verdict, rows, labels="mask" in columns)


def _group(row: Row, number: int) -> tuple[str, str]:
    """Patient and local series name; without a nodule each row is a case of its own."""
    image = PurePosixPath(row["image"]).with_suffix("").as_posix()
    patient = row.get("patient") or image
    if row.get("nodule"):
        return patient, f"{patient}/{row['nodule']}"
    return patient, f"{image}#{number}"


def _settle(
    source: Members, verdict: SeriesVerdict, rows: Sequence[Row], *, labels: bool
) -> Settled:
    segments: tuple[Segment, ...] = ()
    findings: tuple[Finding, ...] = ()
    try:
        with reading("a picture"):
            rows = _in_order(rows)
            volume = _stack([_picture(source, row["image"]) for row in rows])
            if labels:
                segments, findings = _masks(source, rows, volume)
    except RefusedError as refusal:
        return replace(verdict, findings=(refusal.finding,)), None
    verdict = replace(
        verdict,
        findings=findings,
        grid=volume.grid,
        hu_range=(float(volume.array.min()), float(volume.array.max())),
        labels=tuple(segment.name for segment in segments),
    )
    if verdict.verdict is Verdict.REFUSE:
        return verdict, None
    return verdict, IntakeCase(
        verdict.series,
        verdict.patient,
        volume,
        segments,
        attributes=_attributes(rows),
        has_hu=False,
        has_spacing=False,
        digest=case_digest(volume, segments),
    )


def _in_order(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows of one case by their place in the stack; as they stand if none has one."""
    places = [(row.get("slice") or "").strip() for row in rows]
    if len(rows) == 1 or not any(places):
        return rows
    try:
        numbers = [float(place) for place in places]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise RefusedError(
            Code.UNREADABLE,
            f"the column slice of {MANIFEST} has no number in some rows of the case, "
            "expected one in each or in none; correct it",
        )
    return [rows[i] for i in sorted(range(len(rows)), key=numbers.__getitem__)]


def _attributes(rows: Sequence[Row]) -> dict[str, str]:
    """Columns with one value in all rows of a case, and a value at all."""
    return {
        column: value
        for column, value in rows[0].items()
        if column not in _OWN_COLUMNS
        and value
        and all(row[column] == value for row in rows)
    }


def _stack(pictures: Sequence[UInt8[np.ndarray, "H W"]]) -> Volume:
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        raise RefusedError(
            Code.MIXED_MATRIX,
            f"pictures of one case have sizes {sorted(sizes)}, expected one",
        )
    array = np.stack(pictures)
    affine = np.eye(4)[[2, 1, 0, 3]]  # d, h, w to z, y, x at 1 mm
    return Volume(array, Grid(array.shape, affine))


def _masks(source: Members, rows: Sequence[Row], volume: Volume) -> Labels:
    named = [row.get("mask") or "" for row in rows]
    if not all(named):
        partly = any(named)
        sentence = "some pictures have no mask" if partly else "there is no mask"
        return (), (Finding(Code.LABEL_MISSING, sentence, refuses=partly),)
    mask = np.stack([_mask(source, name, volume.array.shape[1:]) for name in named])
    empty = Finding(Code.LABEL_EMPTY, "the mask marks no pixel", refuses=False)
    return (Segment(SEGMENT, mask),), () if mask.any() else (empty,)


def _mask(
    source: Members, name: str, shape: tuple[int, ...]
) -> Bool[np.ndarray, "H W"]:
    picture = _picture(source, name)
    if picture.shape != shape:
        raise RefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"a mask has {picture.shape} pixels, expected its picture's {shape}",
        )
    values = np.unique(picture)
    if values.size > 2 or (values.size == 2 and values[0] != 0):
        raise RefusedError(
            Code.LABEL_VALUE,
            f"a mask has {values.size} grey values, expected 0 and one other; was it "
            f"resampled or stored as JPEG?",
        )
    return np.asarray(picture > 0)


def _picture(source: Members, name: str) -> UInt8[np.ndarray, "H W"]:
    """An 8-bit grey PNG; the size is looked at before it is decoded."""
    content = source.read(name, PICTURE_BYTES_LIMIT)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        if picture.width * picture.height > PIXELS_LIMIT:
            raise RefusedError(
                Code.DECODE_LIMIT,
                f"a picture has {picture.width}x{picture.height} pixels, expected at "
                f"most {PIXELS_LIMIT}",
            )
        if picture.mode not in ("L", "1"):
            raise RefusedError(
                Code.PIXEL_FORMAT,
                f"a picture is of mode {picture.mode}, expected 8-bit grey; convert it",
            )
        return np.asarray(picture.convert("L"))


def _rows(source: Members, where: Mapping[str, str]) -> list[Row]:
    """The manifest's rows that fit."""
    try:
        text = source.read(MANIFEST, MANIFEST_BYTES_LIMIT).decode("utf-8-sig")
    except (RefusedError, UnicodeDecodeError) as cause:
        raise IntakeError(
            f"intake found no readable {MANIFEST}, expected one in UTF-8 at the top of "
            f"the folder or zip"
        ) from cause
    reader = csv.DictReader(io.StringIO(text), restval="")
    columns = list(reader.fieldnames or ())
    for column in ("image", *where):
        if column not in columns:
            raise IntakeError(
                f"{MANIFEST} has no column {column!r}, expected one of "
                f"{', '.join(columns)}; check `where` and the header"
            )
    kept: list[Row] = []
    for cells in reader:
        row = {column: cells[column] for column in columns}
        if all(row[column] == value for column, value in where.items()):
            kept.append(row)
    if not kept:
        asked = ", ".join(f"{k} = {v!r}" for k, v in where.items()) or "any row"
        raise IntakeError(f"{MANIFEST} has no row with {asked}, expected at least one")
    return kept
