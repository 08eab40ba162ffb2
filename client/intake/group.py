"""From the heads of all files to series, label objects and rows for the rest.

A series is what shares a SeriesInstanceUID once localizers, secondary captures and
other modalities are set aside; if its planes then differ in orientation, matrix, kernel
or frame of reference it is refused as a whole, never cut in silence.

Series without a SeriesInstanceUID (anonymised too hard) are grouped by their folder and
by everything else that is constant within a series: study, frame of reference, patient,
series number, kernel, orientation, matrix and spacing. That is safe because geometry is
still checked: two series that were thrown together repeat positions or break the
spacing, and are refused. Such a series gets a local name made from the same values, so
the name is the same in every run as long as the folder is called the same.
"""

import filecmp
import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.intake.geometry import sort_planes
from client.intake.header import FileHead, SliceHeader
from client.intake.scan import Scan, missing_entries, printable
from client.intake.series import DicomIndex, DicomSeries, LabelObject, names_series
from client.intake.verdict import Code, Finding, SeriesVerdict, note, refusal

CT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
)
"""CT, Enhanced CT, Legacy Converted Enhanced CT Image Storage."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_FILES = "files:"
_SENTENCES = {
    Code.NOT_CT: "not a CT image, expected CT Image Storage; left alone",
    Code.LOCALIZER: "a localizer (ImageType), expected slices of a volume; left alone",
    Code.SECONDARY_CAPTURE: "a secondary capture, which holds no HU; left alone",
    Code.NOT_DICOM: "not DICOM; left alone",
    Code.UNREADABLE: "can't be read as DICOM, expected a whole file; copy it again",
    Code.EMPTY_FILE: "a file of no bytes, expected DICOM; copy it again",
    Code.SPECIAL_FILE: "a FIFO, socket or device, expected a file; never opened",
    Code.UNSAFE_LINK: (
        "a link or a path out of the folder, expected a regular file; links are not "
        "followed, give intake the real folder"
    ),
    Code.DECODE_LIMIT: (
        "reading the head ran out of time or memory, expected a usual DICOM header"
    ),
    Code.LABEL_UNREFERENCED: "a label object for no image series of this folder",
    Code.DICOMDIR_MISSING_FILE: "named by a DICOMDIR but absent; copy the whole medium",
}


@dataclass(frozen=True)
class Group:
    """One image series with what grouping found out about it."""

    series: DicomSeries
    source: str
    """Its first file by path, relative to the root."""
    files: int
    """Files found for it, dropped copies included."""
    findings: tuple[Finding, ...]
    """About identity only."""


@dataclass(frozen=True)
class Grouped:
    """All of a folder, before any voxel is decoded."""

    index: DicomIndex
    groups: tuple[Group, ...]
    """One for each series of the index, in its order."""


def group_files(scan: Scan, heads: Mapping[Path, FileHead]) -> Grouped:
    """Sort everything that was found into series, label objects and refused rows.

    Args:
        scan: The folder.
        heads: Head of each file of the scan.
    """
    aside: dict[tuple[str, Code], list[Path]] = defaultdict(list)
    for path, code in scan.refused:
        aside[_FILES + code, code].append(path)
    planes: dict[str, list[SliceHeader]] = defaultdict(list)
    labels: list[LabelObject] = []
    missing: dict[str, int] = defaultdict(int)
    for path in scan.files:
        head = heads[path]
        if head.problem is not None:
            code = Code(head.problem)
            aside[_FILES + code, code].append(path)
        elif head.directory is not None:
            for code, uid in _directory_faults(head, path):
                aside[_FILES + code, code].append(path)
                missing[uid] += 1
        elif head.label is not None:
            labels.append(_label_object(path, head, scan.root))
        for plane in head.planes if head.label is None else ():
            kind = _kind(plane)
            name = _series_name(plane, scan.root)
            if kind is None:
                planes[name].append(plane)
            elif path not in aside[name, kind]:
                aside[name, kind].append(path)
    groups = [
        _group(name, planes[name], scan.root, missing.get(name, 0))
        for name in sorted(planes)
    ]
    series = tuple(group.series for group in groups)
    for label in labels:
        if not _has_image(label, series):
            code = Code.LABEL_UNREFERENCED
            aside[label.series_uid or _FILES + code, code].append(label.path)
    rows = tuple(
        _row(name, code, sorted(paths), scan.root, heads)
        for (name, code), paths in sorted(aside.items())
        if paths
    )
    return Grouped(DicomIndex(scan.root, series, tuple(labels), rows), tuple(groups))


def counts_as_series(row: SeriesVerdict) -> bool:
    """Whether a row is one of the M image series that were found (of "N of M").

    Localizers, secondary captures, label objects, other modalities and loose files do
    not count.
    """
    others = (
        Code.NOT_CT,
        Code.LOCALIZER,
        Code.SECONDARY_CAPTURE,
        Code.LABEL_UNREFERENCED,
    )
    is_other = any(f.refuses and f.code in others for f in row.findings)
    return not is_other and not row.series.startswith(_FILES)


def _kind(plane: SliceHeader) -> Code | None:
    """Why a plane is no slice of a CT volume; None if it may be one."""
    sop_class = plane.sop_class_uid
    if sop_class is not None and sop_class.startswith(_SECONDARY_CAPTURE):
        return Code.SECONDARY_CAPTURE
    if sop_class not in CT_CLASSES and sop_class is not None:
        return Code.NOT_CT
    if plane.modality != "CT" and (plane.modality is not None or sop_class is None):
        return Code.NOT_CT
    if {"LOCALIZER", "SCOUT"} & set(plane.image_type):
        return Code.LOCALIZER
    if "SCREEN SAVE" in plane.image_type:
        return Code.SECONDARY_CAPTURE
    return None


def _series_name(plane: SliceHeader, root: Path) -> str:
    if plane.series_uid is not None:
        return plane.series_uid
    matrix = plane.pixels and (plane.pixels.rows, plane.pixels.columns)
    # Plus 0.0, because -0.0 and 0.0 are one direction and two texts.
    orientation = plane.orientation and [round(v, 3) + 0.0 for v in plane.orientation]
    constant = (
        printable(plane.path.parent, root),
        plane.study_uid,
        plane.frame_of_reference_uid,
        plane.patient,
        plane.series_number,
        plane.kernel,
        orientation,
        matrix,
        plane.pixel_spacing_mm,
        plane.thickness_mm,
    )
    return f"local-{hashlib.sha256(repr(constant).encode()).hexdigest()[:16]}"


def _group(name: str, planes: Sequence[SliceHeader], root: Path, missing: int) -> Group:
    kept, findings = _without_copies(planes)
    first = kept[0]
    if first.series_uid is None:
        text = "SeriesInstanceUID is empty; grouped by folder and geometry"
        findings.append(note(Code.EMPTY_UID, f"{text} under a local name"))
    if any(p.sop_instance_uid is None or p.sop_class_uid is None for p in kept):
        text = "SOPInstanceUID or SOPClassUID is empty; labels can't refer to slices"
        findings.append(note(Code.EMPTY_UID, text))
    patient = first.patient
    if patient is None:
        patient = f"study:{first.study_uid}" if first.study_uid else f"series:{name}"
        text = "PatientID is empty; all series of its study count as one patient"
        findings.append(note(Code.EMPTY_PATIENT_ID, text))
    if not patient.isascii() or not name.isascii():
        text = "PatientID or UID has letters beyond ASCII; check its character set"
        findings.append(note(Code.NON_ASCII, text))
    if any(p.executable_preamble for p in kept):
        text = "the preamble is that of a program; it was not run, remove it"
        findings.append(note(Code.EXECUTABLE_PREAMBLE, text))
    if missing:
        text = f"{missing} of its files are named by a DICOMDIR but not there"
        findings.append(note(Code.DICOMDIR_MISSING_FILE, text))
    series = DicomSeries(
        series=name,
        series_uid=first.series_uid,
        patient=patient,
        frame_of_reference_uid=first.frame_of_reference_uid,
        slices=sort_planes(kept),
    )
    paths = {plane.path for plane in planes}
    return Group(series, printable(min(paths), root), len(paths), tuple(findings))


def _without_copies(
    planes: Sequence[SliceHeader],
) -> tuple[list[SliceHeader], list[Finding]]:
    """One file for each SOPInstanceUID; copies of other bytes refuse the series."""
    files: dict[str, list[Path]] = defaultdict(list)
    for plane in planes:
        uid = plane.sop_instance_uid
        if uid is not None and plane.path not in files[uid]:
            files[uid].append(plane.path)
    dropped: set[Path] = set()
    different = 0
    for paths in files.values():
        for copy in paths[1:]:
            if filecmp.cmp(paths[0], copy, shallow=False):
                dropped.add(copy)
            else:
                different += 1
    findings: list[Finding] = []
    if dropped:
        text = f"{len(dropped)} files are byte-equal copies of others; one of each kept"
        findings.append(note(Code.DUPLICATE_SAME, text))
    if different:
        text = (
            f"{different} files share a SOPInstanceUID with another file of other "
            "bytes, expected one file per UID; remove the wrong ones"
        )
        findings.append(refusal(Code.DUPLICATE_DIFFERENT, text))
    return [plane for plane in planes if plane.path not in dropped], findings


def _directory_faults(head: FileHead, path: Path) -> list[tuple[Code, str]]:
    """What a DICOMDIR names wrongly, with the series it names it for."""
    outside, missing = missing_entries(head.directory or (), path.parent)
    faults = [(Code.UNSAFE_LINK, entry) for entry in outside]
    faults += [(Code.DICOMDIR_MISSING_FILE, entry) for entry in missing]
    return [(code, entry.series_uid or "") for code, entry in faults]


def _label_object(path: Path, head: FileHead, root: Path) -> LabelObject:
    assert head.label is not None
    plane = head.planes[0]
    return LabelObject(
        path=path,
        source=printable(path, root),
        sop_class_uid=plane.sop_class_uid or "",
        sop_instance_uid=plane.sop_instance_uid,
        series_uid=plane.series_uid,
        referenced_series_uid=head.label.series_uid,
        referenced_sop_uids=head.label.sop_uids,
        frame_of_reference_uid=head.label.frame_of_reference_uid,
        patient=plane.patient,
    )


def _has_image(label: LabelObject, series: Sequence[DicomSeries]) -> bool:
    return any(
        names_series(label, one)
        or (
            one.frame_of_reference_uid is not None
            and one.frame_of_reference_uid == label.frame_of_reference_uid
        )
        for one in series
    )


def _row(
    name: str,
    code: Code,
    paths: Sequence[Path],
    root: Path,
    heads: Mapping[Path, FileHead],
) -> SeriesVerdict:
    head = heads.get(paths[0])
    planes = head.planes if head is not None else ()
    return SeriesVerdict(
        series=name,
        patient=(planes[0].patient or "") if planes else "",
        source=printable(paths[0], root),
        files=len(paths),
        findings=(refusal(code, f"{len(paths)} x {_SENTENCES[code]}"),),
    )
