"""The series of a DICOM folder, sorted, and the label objects beside them.

These types are the seam between reading headers, decoding voxels and importing labels:
a label reader gets the sorted planes of one series with the identity of each, and never
has to sort, group or open an image file itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client.intake.header import SliceHeader
from client.intake.verdict import Finding, SeriesVerdict
from common.case import Segment
from common.volume import Grid


@dataclass(frozen=True)
class DicomSeries:
    """The planes of one image series in the order of the D axis."""

    series: str
    """SeriesInstanceUID, or a stable local name where it is empty."""
    series_uid: str | None
    """SeriesInstanceUID as the files have it; None where empty."""
    patient: str
    """PatientID or its stand-in."""
    frame_of_reference_uid: str | None
    slices: tuple[SliceHeader, ...]
    """Sorted by the projection of ImagePositionPatient on the slice normal (the cross
    product of the row and column direction), ascending: index d of the volume. Planes
    of a multi-frame file share path and SOPInstanceUID and differ in `frame`."""

    @property
    def sop_instance_uids(self) -> tuple[str | None, ...]:
        """SOPInstanceUID of each plane along D."""
        return tuple(plane.sop_instance_uid for plane in self.slices)


@dataclass(frozen=True)
class LabelObject:
    """A SEG or RTSTRUCT file, found but not yet read."""

    path: Path
    """The file, absolute."""
    source: str
    """The same, relative to the source folder, fit to print."""
    sop_class_uid: str
    sop_instance_uid: str | None
    series_uid: str | None
    """SeriesInstanceUID of the label object itself."""
    referenced_series_uid: str | None
    """SeriesInstanceUID of the (first) image series it refers to, where it says so."""
    referenced_sop_uids: tuple[str, ...]
    """SOPInstanceUIDs of all images it refers to, sorted; may be empty."""
    frame_of_reference_uid: str | None
    patient: str | None
    """PatientID."""


@dataclass(frozen=True)
class DicomIndex:
    """All that a folder holds, before any pixel is decoded."""

    root: Path
    """The source folder, absolute and resolved."""
    series: tuple[DicomSeries, ...]
    """Image series, sorted by name."""
    label_objects: tuple[LabelObject, ...]
    """SEG and RTSTRUCT files, sorted by path."""
    unreadable: tuple[SeriesVerdict, ...]
    """Verdict rows of everything that is neither: localizers, other modalities, files
    that are no DICOM, links and special files."""


def names_series(label: LabelObject, series: DicomSeries) -> bool:
    """Whether a label says itself that it was drawn on the series."""
    if label.referenced_series_uid and series.series_uid:
        return label.referenced_series_uid == series.series_uid
    return not set(label.referenced_sop_uids).isdisjoint(images_of(series))


def images_of(series: DicomSeries) -> set[str]:
    """SOPInstanceUIDs of the images of a series that have one."""
    return {uid for uid in series.sop_instance_uids if uid}


LabelReader = Callable[
    [DicomSeries, Grid, DicomIndex], tuple[tuple[Segment, ...], tuple[Finding, ...]]
]
"""Reads the labels of one accepted series onto its grid. A finding that refuses refuses
the series; a bad label object is a finding, never an exception."""
