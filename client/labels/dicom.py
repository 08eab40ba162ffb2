"""Which label objects of a DICOM folder belong to a series, and their masks.

A label names its images: by SeriesInstanceUID, or by their SOPInstanceUIDs. Where it
names none that the folder holds, frame of reference and patient must decide, and that
is noted. Geometry is checked in every case: a wrong guess is refused, not trained on.
"""

import filecmp
from collections.abc import Iterable

from client.intake.series import (
    DicomIndex,
    DicomSeries,
    LabelObject,
    images_of,
    names_series,
)
from client.intake.verdict import Code, Finding
from client.labels.refusal import overlap_voxels
from client.labels.rtstruct import read_rtstruct
from client.labels.seg import read_seg
from common.case import Segment
from common.volume import Grid

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

Labels = tuple[tuple[Segment, ...], tuple[Finding, ...]]


def labels_for_series(series: DicomSeries, grid: Grid, index: DicomIndex) -> Labels:
    """Masks of all SEG and RTSTRUCT objects of one image series.

    Args:
        series: The series, planes in the order of D.
        grid: Its own grid.
        index: The folder that it is part of.

    Returns:
        Segments of all objects, in the order of their paths, and all findings. A label
        that refuses takes every segment with it.
    """
    own = [o for o in index.label_objects if names_series(o, series)]
    findings: list[Finding] = []
    if not own:
        own, findings = _by_frame_of_reference(series, index)
    own, copies = _without_copies(own)
    findings += copies
    segments: list[Segment] = []
    for label in own:
        more, found = _read(label, series, grid)
        segments += more
        findings += [*found, *_conflict(label, series)]
    if not own and not findings:
        findings.append(Finding(Code.LABEL_MISSING, "the series has no label", False))
    if any(finding.refuses for finding in findings):
        return (), tuple(findings)
    return tuple(segments), (*findings, *_overlap_across(own, segments, findings))


def _by_frame_of_reference(
    series: DicomSeries, index: DicomIndex
) -> tuple[list[LabelObject], list[Finding]]:
    """Labels of the patient that name no image of the folder.

    They are taken when no other series shares patient and frame of reference; otherwise
    which one they were drawn on can't be known, and they are only noted.
    """
    orphans = [
        label
        for label in index.label_objects
        if label.patient == series.slices[0].patient
        and not any(names_series(label, other) for other in index.series)
    ]
    here = [
        label
        for label in orphans
        if label.frame_of_reference_uid
        and label.frame_of_reference_uid == series.frame_of_reference_uid
    ]
    rivals = [
        other
        for other in index.series
        if other.frame_of_reference_uid == series.frame_of_reference_uid
        and other.patient == series.patient
    ]
    if here and len(rivals) <= 1:
        how = "matched by frame of reference and patient"
        return here, [_unreferenced(len(here), how)]
    if orphans:
        return [], [_unreferenced(len(orphans), "left out of every series")]
    return [], []


def _unreferenced(count: int, outcome: str) -> Finding:
    return Finding(
        Code.LABEL_UNREFERENCED,
        f"{count} label objects of the patient name no image of this source; {outcome}",
        refuses=False,
    )


def _without_copies(
    labels: Iterable[LabelObject],
) -> tuple[list[LabelObject], list[Finding]]:
    """One object for each SOPInstanceUID; refuses two that differ."""
    kept: dict[str, LabelObject] = {}
    findings = []
    for label in labels:
        first = kept.setdefault(label.sop_instance_uid or str(label.path), label)
        if first is label or filecmp.cmp(first.path, label.path, shallow=False):
            continue
        findings.append(
            Finding(
                Code.DUPLICATE_DIFFERENT,
                "two different label objects have one SOPInstanceUID, expected each "
                "its own; remove the one that is out of date",
                refuses=True,
            )
        )
    return list(kept.values()), findings


def _read(label: LabelObject, series: DicomSeries, grid: Grid) -> Labels:
    if label.sop_class_uid == RTSTRUCT_CLASS:
        return read_rtstruct(
            label.path, grid, frame_of_reference=series.frame_of_reference_uid
        )
    return read_seg(label.path, grid, slice_of=_slice_of(series))


def _slice_of(series: DicomSeries) -> dict[str, int]:
    """Index along D of each image; empty for files with many frames."""
    uids = series.sop_instance_uids
    if len(set(uids)) < len(uids):
        return {}
    return {uid: d for d, uid in enumerate(uids) if uid}


def _conflict(label: LabelObject, series: DicomSeries) -> list[Finding]:
    """Refuses a label that names the series, but none of the images that it has."""
    named = set(label.referenced_sop_uids)
    same_series = label.referenced_series_uid == series.series_uid is not None
    if (
        not same_series
        or not named
        or not images_of(series)
        or named & images_of(series)
    ):
        return []
    return [
        Finding(
            Code.LABEL_GRID_MISMATCH,
            "a label names this series but none of its images, expected them to agree; "
            "were UIDs replaced in only one of the two?",
            refuses=True,
        )
    ]


def _overlap_across(
    labels: list[LabelObject], segments: list[Segment], findings: list[Finding]
) -> tuple[Finding, ...]:
    """A note on overlap between objects, where no object had one by itself."""
    if len(labels) < 2 or any(f.code is Code.LABEL_OVERLAP for f in findings):
        return ()
    shared = overlap_voxels(segments)
    if not shared:
        return ()
    sentence = f"label objects overlap in {shared} voxels; each is kept whole"
    return (Finding(Code.LABEL_OVERLAP, sentence, refuses=False),)
