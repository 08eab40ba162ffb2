"""What label objects and DICOMDIRs refer to.

Runs in the decoder processes only.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from client.intake.elements import sequence, text
from client.intake.header import DirectoryEntry, LabelReference

# Sequences whose items name images; elsewhere a ReferencedSOPInstanceUID may be of a
# study.
_IMAGE_REFERENCES = (
    "ReferencedInstanceSequence",
    "ContourImageSequence",
    "SourceImageSequence",
)


def label_reference(data: Dataset) -> LabelReference:
    """The image series and images that a SEG or RTSTRUCT says it is for."""
    roots = (
        "ReferencedSeriesSequence",
        "ReferencedFrameOfReferenceSequence",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
    )
    images: set[str] = set()
    series: list[str] = []
    frames = [text(data, "FrameOfReferenceUID")]
    for root in roots:
        for item in sequence(data, root):
            frames.append(text(item, "FrameOfReferenceUID"))
            _collect(item, images, series)
    return LabelReference(
        series_uid=series[0] if series else None,
        sop_uids=tuple(sorted(images)),
        frame_of_reference_uid=next((uid for uid in frames if uid), None),
    )


def _collect(data: Dataset, images: set[str], series: list[str]) -> None:
    uid = text(data, "SeriesInstanceUID")
    if uid is not None:
        series.append(uid)
    for element in data:
        if element.VR != "SQ":
            continue
        for item in sequence(data, element.keyword):
            if element.keyword in _IMAGE_REFERENCES:
                image = text(item, "ReferencedSOPInstanceUID")
                images.update(() if image is None else (image,))
            _collect(item, images, series)


def directory_entries(data: Dataset) -> Iterator[DirectoryEntry]:
    """Files named by a DICOMDIR; records stand below their series in file order."""
    series: str | None = None
    for record in sequence(data, "DirectoryRecordSequence"):
        kind = text(record, "DirectoryRecordType")
        if kind in ("PATIENT", "STUDY", "SERIES"):
            series = text(record, "SeriesInstanceUID") if kind == "SERIES" else None
        file_id = text(record, "ReferencedFileID")
        if file_id is not None:
            yield DirectoryEntry(tuple(file_id.split("\\")), series)
