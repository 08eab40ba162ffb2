"""A predicted mask as a DICOM SEG on its source series' own grid.

BINARY, because every viewer reads it. Frames that hold nothing are left out; a mask
that holds nothing at all is written with all its frames, because a SEG must have one,
and "looked and found nothing" is a result.

Geometry comes from the same numbers as the volume's: positions and orientation of the
sorted planes. SpacingBetweenSlices of the source is not copied, as it is stale in real
files and breaks the way back. That frame d of the mask lies on plane d of the series is
checked in mm before anything is written.

Not covered here: series without UIDs. Nothing can refer to them (`missing_identity`);
their masks are written as NIfTI by `client.predict`.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DSfloat

from client.intake.header import SliceHeader
from client.intake.series import DicomSeries
from client.private_files import write_private
from common.errors import GeometryError, LabelError
from common.package import RESEARCH_ONLY
from common.volume import Grid, Volume

SERIES_NUMBER = 900
"""High, so that viewers list it behind the scanner's own series."""
TEXT_LIMIT = 64
"""Letters of a LO value (PS3.5 table 6.2-1)."""
# Type 2 attributes that highdicom asks of a source; empty where a file lacks them.
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_ANATOMY, _FINDING = (
    codes.SCT.AnatomicalStructure,
    codes.SCT.MorphologicallyAbnormalStructure,
)
# fmt: off
_ORGANS = (
    "Aorta", "Bone", "Brain", "Colon", "Duodenum", "Esophagus", "Gallbladder", "Heart",
    "Kidney", "Liver", "Lung", "Pancreas", "Prostate", "Rib", "SpinalCord", "Spine",
    "Spleen", "Sternum", "Stomach", "Trachea", "Vertebra",
)
_FINDINGS = ("Cyst", "Hemorrhage", "Lesion", "Mass", "Neoplasm", "Nodule")
# fmt: on
_CODED: dict[str, tuple[Code, Code]] = {
    **{name.lower(): (_ANATOMY, getattr(codes.SCT, name)) for name in _ORGANS},
    **{name.lower(): (_FINDING, getattr(codes.SCT, name)) for name in _FINDINGS},
    "vessel": (_ANATOMY, codes.SCT.BloodVessel),
    "tumor": (_FINDING, codes.SCT.Neoplasm),
    "tumour": (_FINDING, codes.SCT.Neoplasm),
    "gtv": (_FINDING, codes.SCT.Neoplasm),
}
"""Class name (lower case, letters only) to category and type; names that are more
than one of these words are not guessed at."""
_UNKNOWN = (_ANATOMY, codes.SCT.BodyStructure)


@dataclass(frozen=True)
class Algorithm:
    """What made the mask, as AlgorithmIdentification says it (PS3.3 10.16)."""

    name: str
    """The plan's name."""
    version: str
    """Tells one model from another: sha256 of its weights or plan."""
    software_version: str
    """Version of FedCT."""


def missing_identity(series: DicomSeries) -> str | None:
    """The first attribute whose absence keeps a SEG from naming this series."""
    planes = series.slices
    needed = {
        "SeriesInstanceUID": [plane.series_uid for plane in planes],
        "StudyInstanceUID": [plane.study_uid for plane in planes],
        "FrameOfReferenceUID": [plane.frame_of_reference_uid for plane in planes],
        "SOPInstanceUID": [plane.sop_instance_uid for plane in planes],
        "SOPClassUID": [plane.sop_class_uid for plane in planes],
    }
    return next((name for name, uids in needed.items() if not all(uids)), None)


def write_seg(
    path: Path,
    mask: Volume,
    series: DicomSeries,
    *,
    class_names: Sequence[str],
    algorithm: Algorithm,
) -> None:
    """Write a mask as one DICOM SEG file of mode 0600, whole or not at all.

    Args:
        path: The file; replaced if it is there.
        mask: UInt8 class per voxel on the series' own grid, 0 background.
        series: The planes that the mask was made from, in array order. They have
            passed intake.
        class_names: Names of classes 1, 2, ...; each becomes a segment.
        algorithm: What made the mask.

    Raises:
        GeometryError: The mask does not lie on the planes of the series.
        LabelError: The series lacks a UID, or the mask holds an unnamed class.
    """
    _check(mask, series, class_names)
    images = _source_images(series, mask.grid)
    with warnings.catch_warnings():
        # pydicom warns of every tag of the source that breaks its VR; not ours.
        warnings.simplefilter("ignore", UserWarning)
        seg = hd.seg.Segmentation(
            source_images=images,
            pixel_array=_in_file_order(mask.array, series.slices),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[
                _description(number, name, algorithm)
                for number, name in enumerate(class_names, start=1)
            ],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="FedCT",
            manufacturer_model_name="FedCT",
            software_versions=algorithm.software_version,
            device_serial_number=algorithm.version[:TEXT_LIMIT],
            series_description=_text(f"{algorithm.name}, {RESEARCH_ONLY}"),
            content_label="PREDICTION",
            omit_empty_frames=bool(mask.array.any()),
            content_description=_text(f"Predicted by a model, {RESEARCH_ONLY}"),
        )
        content = io.BytesIO()
        seg.save_as(content, enforce_file_format=True)
    write_private(path, content.getvalue())


def _check(mask: Volume, series: DicomSeries, class_names: Sequence[str]) -> None:
    absent = missing_identity(series)
    if absent is not None:
        raise LabelError(
            f"SEG export got a series without {absent}, expected one in every image, "
            "because a SEG must name what it belongs to; write NIfTI instead"
        )
    highest = int(mask.array.max())
    if mask.array.dtype != np.uint8 or highest > len(class_names):
        raise LabelError(
            f"SEG export got a {mask.array.dtype} mask with class {highest}, expected "
            f"uint8 with at most {len(class_names)}, one name per class"
        )
    placed = [plane.position_mm for plane in series.slices]
    starts = (
        mask.grid.affine
        @ np.array([(d, 0.0, 0.0, 1.0) for d in range(mask.grid.shape[0])]).T
    )
    if len(placed) != starts.shape[1] or any(p is None for p in placed):
        raise GeometryError(
            f"SEG export got a mask of {starts.shape[1]} slices for a series of "
            f"{len(placed)}, expected the series' own grid"
        )
    apart = np.linalg.norm(np.array(placed, dtype=np.float64) - starts[:3].T, axis=1)
    turned = np.abs(_axes_of(series.slices[0]) - mask.grid.affine[:3, 1:3]).max()
    spacing_mm = mask.grid.spacing_mm
    if apart.max() > 0.5 * spacing_mm[0] or turned > 0.1 * min(spacing_mm):
        raise GeometryError(
            f"SEG export got a mask whose slices lie up to {apart.max():.3g} mm from "
            "the images, expected the series' own grid; bring it back to that grid"
        )


def _axes_of(plane: SliceHeader) -> np.ndarray:
    """Steps in mm along H and W, as columns (PS3.3 equation C.7.6.2.1-1)."""
    assert plane.orientation is not None
    assert plane.pixel_spacing_mm is not None
    along_w, along_h = np.reshape(plane.orientation, (2, 3))
    row_mm, column_mm = plane.pixel_spacing_mm
    return np.stack([along_h * row_mm, along_w * column_mm], axis=1)


def _source_images(series: DicomSeries, grid: Grid) -> list[Dataset]:
    """What highdicom copies from: one whole head, and the places of the others."""
    head = pydicom.dcmread(series.slices[0].path, stop_before_pixels=True)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in head:
            setattr(head, keyword, "")
    if len({plane.path for plane in series.slices}) == 1 and len(series.slices) > 1:
        _set_measures(_shared_measures(head), grid)
        return [head]
    _set_measures(head, grid)
    return [head, *(_place(plane, head) for plane in series.slices[1:])]


def _place(plane: SliceHeader, head: Dataset) -> Dataset:
    """The part of an image's head that says which it is and where it lies."""
    assert plane.position_mm is not None
    image = Dataset()
    for keyword in (
        "Rows",
        "Columns",
        "ImageOrientationPatient",
        "FrameOfReferenceUID",
    ):
        setattr(image, keyword, head[keyword].value)
    image.SOPClassUID = plane.sop_class_uid
    image.SOPInstanceUID = plane.sop_instance_uid
    image.StudyInstanceUID = plane.study_uid
    image.SeriesInstanceUID = plane.series_uid
    image.ImagePositionPatient = [_number(value) for value in plane.position_mm]
    return image


def _shared_measures(head: Dataset) -> Dataset:
    return head.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]


def _set_measures(measures: Dataset, grid: Grid) -> None:
    """A voxel of the SEG is as thick as slices are apart, whatever the tags say."""
    measures.SliceThickness = _number(grid.spacing_mm[0])
    measures.SpacingBetweenSlices = _number(grid.spacing_mm[0])


def _in_file_order(
    array: UInt8[np.ndarray, "D H W"], planes: Sequence[SliceHeader]
) -> UInt8[np.ndarray, "D H W"]:
    """Frames of a multi-frame file in the file's order; single files as they are."""
    if len({plane.path for plane in planes}) == len(planes):
        return array
    return array[np.argsort([plane.frame for plane in planes])]


def _description(
    number: int, name: str, algorithm: Algorithm
) -> hd.seg.SegmentDescription:
    plain = "".join(letter for letter in name.casefold() if letter.isalpha())
    category, kind = _CODED.get(plain, _CODED.get(plain.removesuffix("s"), _UNKNOWN))
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=_text(name),
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=_text(algorithm.name),
            family=codes.cid7162.ArtificialIntelligence,
            version=_text(algorithm.version),
        ),
        tracking_uid=hd.UID(),
        tracking_id=_text(name),
    )


def _text(value: str) -> str:
    """Fit for a LO value: no backslash (it parts values), not too long."""
    return value.replace("\\", "/")[:TEXT_LIMIT]


def _number(value: float) -> DSfloat:
    """A decimal string that fits its 16 characters."""
    return DSfloat(float(value) + 0.0, auto_format=True)
