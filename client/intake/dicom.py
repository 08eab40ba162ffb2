"""A DICOM folder to cases: one verdict per series, one volume in memory at a time.

The road is scan -> heads -> series -> geometry -> voxels -> values -> labels, and a
series leaves it at the first station that refuses it. Files are parsed by decoder
processes only (`client.intake.pool`); this side sees headers as checked records and
voxels as numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from client.intake.digest import case_digest
from client.intake.geometry import (
    check_attributes,
    check_spacing,
    series_grid,
)
from client.intake.group import Group, Grouped, group_files
from client.intake.header import FileHead
from client.intake.pool import DecodeLimits, DecoderPool, Lost
from client.intake.scan import scan_folder
from client.intake.series import DicomIndex, DicomSeries, LabelReader
from client.intake.values import check_pixels
from client.intake.verdict import Code, Finding, SeriesVerdict, refusal
from client.intake.volume_case import Settled
from client.intake.voxels import decode_series, judge_voxels
from common.case import IntakeCase, Segment
from common.errors import GeometryError
from common.volume import Grid, Volume

Progress = Callable[[str, int, int], None]
"""Told what is being done ("files" or "series"), how many are done, and of how many."""

_HEAD = TypeAdapter(FileHead)


def read_dicom(
    root: Path,
    *,
    limits: DecodeLimits | None = None,
    labels: LabelReader | None = None,
    progress: Progress | None = None,
    pool: DecoderPool | None = None,
) -> Iterator[Settled]:
    """Verdict on every series below a folder, with a case for each accepted one.

    As `read_series`, without the planes.
    """
    rows = read_series(root, limits=limits, labels=labels, progress=progress, pool=pool)
    return ((verdict, case) for verdict, case, _ in rows)


def read_series(
    root: Path,
    *,
    limits: DecodeLimits | None = None,
    labels: LabelReader | None = None,
    progress: Progress | None = None,
    pool: DecoderPool | None = None,
) -> Iterator[tuple[SeriesVerdict, IntakeCase | None, DicomSeries | None]]:
    """Verdict on every series below a folder, its case if accepted, and its planes.

    Rows for what is no image series come first, then the series sorted by name. The
    order and all contents are the same whatever order the file system lists files in.

    Args:
        root: The folder; any nesting, any file names.
        limits: What one file may cost in time and memory.
        labels: Reads the labels of a series that was accepted so far.
        progress: Told how far the work is.
        pool: Decoders that the caller keeps for several folders, with their limits;
            started and ended here if not given.

    Raises:
        IntakeError: The folder can't be read, or decoders can't be started.
    """
    tell = progress or (lambda _what, _done, _of: None)
    with nullcontext(pool) if pool else DecoderPool(limits or DecodeLimits()) as kept:
        grouped = _read_heads(root, kept, tell)
        for row in grouped.index.unreadable:
            yield row, None, None
        for number, group in enumerate(grouped.groups):
            tell("series", number, len(grouped.groups))
            row, case = _settle(group, grouped.index, kept, labels)
            yield row, case, group.series
        tell("series", len(grouped.groups), len(grouped.groups))


def series_headers(root: Path, *, limits: DecodeLimits | None = None) -> DicomIndex:
    """All series and label objects of a folder, without decoding a voxel.

    Raises:
        IntakeError: The folder can't be read, or decoders can't be started.
    """
    with DecoderPool(limits or DecodeLimits()) as pool:
        return _read_heads(root, pool, lambda _what, _done, _of: None).index


def _read_heads(root: Path, pool: DecoderPool, tell: Progress) -> Grouped:
    scan = scan_folder(root)
    tasks = [{"job": "head", "path": str(path)} for path in scan.files]
    heads: dict[Path, FileHead] = {}
    for index, reply in pool.run(tasks):
        path = scan.files[index]
        if isinstance(reply, Lost):
            code = Code.DECODE_LIMIT if reply.late else Code.UNREADABLE
            heads[path] = FileHead(problem=code)
        else:
            heads[path] = _checked_head(reply, path)
        tell("files", len(heads), len(tasks))
    return group_files(scan, heads)


def _checked_head(reply: dict[str, object], path: Path) -> FileHead:
    """A decoder's reply as a record; its idea of the path does not count."""
    try:
        head = _HEAD.validate_python(reply)
        planes = tuple(replace(plane, path=path) for plane in head.planes)
        if head.problem is not None:
            Code(head.problem)
        return replace(head, planes=planes)
    except (ValidationError, ValueError):
        return FileHead(problem=Code.UNREADABLE)


def _settle(
    group: Group, index: DicomIndex, pool: DecoderPool, labels: LabelReader | None
) -> Settled:
    """Take one series down the road until it is refused or has become a case."""
    series = group.series
    row = SeriesVerdict(series.series, series.patient, group.source, group.files)
    grid, findings = _check_headers(group, pool.limits)
    row = replace(row, grid=grid)
    if grid is None or _refused(findings):
        return _with(row, findings), None
    voxels = decode_series(series.slices, grid, pool)
    if isinstance(voxels, Finding):
        return _with(row, [*findings, voxels]), None
    voxels, found = judge_voxels(voxels)
    findings += found
    low = min(plane.low for plane in voxels.facts)
    high = max(plane.high for plane in voxels.facts)
    row = replace(row, hu_range=(low, high))
    if _refused(findings):
        return _with(row, findings), None
    segments: tuple[Segment, ...] = ()
    if labels is not None:
        segments, more = labels(series, grid, index)
        findings += more
        row = replace(row, labels=tuple(segment.name for segment in segments))
    if _refused(findings):
        return _with(row, findings), None
    volume = Volume(voxels.array, grid)
    planes = [bytes.fromhex(plane.digest) for plane in voxels.facts]
    digest = case_digest(volume, segments, planes)
    case = IntakeCase(series.series, series.patient, volume, segments, digest=digest)
    return _with(row, findings), case


def _check_headers(
    group: Group, limits: DecodeLimits
) -> tuple[Grid | None, list[Finding]]:
    """The grid, where there is one, and all that headers give away."""
    planes = group.series.slices
    pixels = check_pixels(planes, limits)
    attributes = check_attributes(planes)
    findings = [*group.findings, *pixels, *attributes]
    placed = (Code.NO_POSITION, Code.BAD_ORIENTATION, Code.MIXED_ORIENTATION)
    if any(finding.code in placed for finding in attributes):
        return None, findings
    spacing = check_spacing(planes)
    findings += spacing
    gridless = (Code.PIXEL_FORMAT, Code.NO_PIXEL_SPACING, Code.MIXED_MATRIX)
    if _refused(spacing) or any(finding.code in gridless for finding in findings):
        return None, findings
    try:
        return series_grid(planes), findings
    except GeometryError:
        sentence = "positions and orientation span no volume; export the images again"
        return None, [*findings, refusal(Code.BAD_ORIENTATION, sentence)]


def _refused(findings: Sequence[Finding]) -> bool:
    return any(finding.refuses for finding in findings)


def _with(row: SeriesVerdict, findings: Sequence[Finding]) -> SeriesVerdict:
    """The row with its findings, refusing ones first."""
    return replace(
        row, findings=tuple(sorted(findings, key=lambda finding: not finding.refuses))
    )
