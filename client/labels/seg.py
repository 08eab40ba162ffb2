"""DICOM Segmentation objects to masks on the image's grid.

Each frame is placed by its own PlanePositionSequence, PlaneOrientationSequence and
PixelMeasuresSequence (PS3.3 C.8.20.2). The order of frames, InstanceNumber, Dimension
indices and SpacingBetweenSlices are not looked at: they are stale or missing in real
files. Frames are decoded one at a time.

BINARY and FRACTIONAL frames belong to one segment each, so segments may overlap. In a
LABELMAP (SOP class ...66.7) the pixel value is the segment number; segment 0 is the
background, and the pixel padding value stands for "not looked at".
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Num
from pydicom import Dataset

from client.intake.verdict import Code, Finding
from client.labels.file import read_dicom
from client.labels.frames import frames
from client.labels.lattice import lattice_map, mark
from client.labels.refusal import (
    LabelRefusedError,
    notes_on,
    reading,
    require_mask_room,
)
from common.case import Segment
from common.volume import Grid

WHAT = "the DICOM SEG"
FRACTION = 0.5
"""A FRACTIONAL pixel is inside from this share of MaximumFractionalValue on."""
PIXELS_LIMIT = 2**33
"""Most pixels of all frames together; 104 organs of 600 slices of 512x512 are 2**34,
but such objects are stored as label maps or with empty frames left out."""
LABEL_MAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"


def read_seg(
    path: Path, grid: Grid, *, slice_of: Mapping[str, int] | None = None
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    """Masks of a SEG on a grid, in order of segment number.

    Args:
        path: A DICOM file of one of the two Segmentation Storage classes.
        grid: The image series' own grid.
        slice_of: SOPInstanceUID of each image to its index along D. Frames that name
            their source images are checked against it.

    Returns:
        Segments and notes; or no segment and one refusing finding.
    """
    try:
        with reading(WHAT):
            dataset = read_dicom(path)
            segments = _segments(path, dataset, grid, slice_of or {})
    except LabelRefusedError as refusal:
        return (), (refusal.finding,)
    return segments, notes_on(WHAT, segments)


def _segments(
    path: Path, dataset: Dataset, grid: Grid, slice_of: Mapping[str, int]
) -> tuple[Segment, ...]:
    names = {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "") or item.SegmentNumber)
        for item in dataset.SegmentSequence
    }
    if _is_label_map(dataset):
        names.pop(0, None)
    _require_room(dataset)
    require_mask_room(WHAT, len(names), grid.shape)
    masks = {number: np.zeros(grid.shape, dtype=bool) for number in sorted(names)}
    beyond = 0
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    for group, pixels in zip(groups, frames(path, dataset), strict=True):
        steps = _place(dataset, group, pixels.shape, grid)
        inside = _inside(dataset, group, pixels, names)
        if not any(frame.any() for frame in inside.values()):
            continue
        _check_source(group, steps, slice_of)
        for number, frame in inside.items():
            beyond += mark(masks[number], frame, steps)
    if beyond:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} marks {beyond} pixels beyond the image, expected none; is it the "
            f"label of another series, or are slices missing?",
        )
    return tuple(Segment(names[number], mask) for number, mask in masks.items())


def _is_label_map(dataset: Dataset) -> bool:
    return bool(
        dataset.SOPClassUID == LABEL_MAP_CLASS
        or dataset.get("SegmentationType") == "LABELMAP"
    )


def _require_room(dataset: Dataset) -> None:
    """Refuses objects whose frames are more than any real label, before decoding."""
    pixels = int(dataset.NumberOfFrames) * int(dataset.Rows) * int(dataset.Columns)
    if pixels > PIXELS_LIMIT:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE,
            f"{WHAT} has {pixels} pixels in all frames, expected at most "
            f"{PIXELS_LIMIT}; store it as a label map or leave empty frames out",
        )


def _group_item(dataset: Dataset, group: Dataset, keyword: str) -> Dataset:
    """The item of a functional group: the frame's own, or the shared one."""
    if keyword in group:
        return group[keyword].value[0]
    return dataset.SharedFunctionalGroupsSequence[0][keyword].value[0]


def _plane_affine(dataset: Dataset, group: Dataset) -> Float64[np.ndarray, "4 3"]:
    """Maps pixel (row, column, 1) to mm in LPS (PS3.3 equation C.7.6.2.1-1)."""
    measures = _group_item(dataset, group, "PixelMeasuresSequence")
    plane = _group_item(dataset, group, "PlaneOrientationSequence")
    position = _group_item(dataset, group, "PlanePositionSequence")
    cosines = np.array(plane.ImageOrientationPatient, dtype=np.float64)
    row_mm, column_mm = (float(v) for v in measures.PixelSpacing)
    affine = np.zeros((4, 3))
    affine[:3, 0] = cosines[3:] * row_mm
    affine[:3, 1] = cosines[:3] * column_mm
    affine[:3, 2] = np.array(position.ImagePositionPatient, dtype=np.float64)
    affine[3, 2] = 1.0
    return affine


def _place(
    dataset: Dataset, group: Dataset, shape: tuple[int, ...], grid: Grid
) -> np.ndarray:
    steps = lattice_map(_plane_affine(dataset, group), shape, grid)
    if steps is None:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has a frame whose pixels are no voxels of the image, expected the "
            f"image's own grid; export it on the grid of the series it was drawn on",
        )
    return steps


def _inside(
    dataset: Dataset,
    group: Dataset,
    pixels: Num[np.ndarray, "R C"],
    names: Mapping[int, str],
) -> dict[int, Bool[np.ndarray, "R C"]]:
    """For each segment that the frame speaks of, its true pixels."""
    if _is_label_map(dataset):
        padding = dataset.get("PixelPaddingValue")
        found = {int(v) for v in np.unique(pixels)} - {0, padding}
        _require_known(found, names)
        return {number: pixels == number for number in found}
    item = _group_item(dataset, group, "SegmentIdentificationSequence")
    number = int(item.ReferencedSegmentNumber)
    _require_known({number}, names)
    if dataset.SegmentationType == "FRACTIONAL":
        return {number: pixels >= FRACTION * int(dataset.MaximumFractionalValue)}
    return {number: pixels > 0}


def _require_known(found: set[int], names: Mapping[int, str]) -> None:
    unknown = found - set(names)
    if unknown:
        raise LabelRefusedError(
            Code.LABEL_VALUE,
            f"{WHAT} uses segment numbers {sorted(unknown)} that it does not describe, "
            f"expected only {sorted(names)}; export it again",
        )


def _check_source(
    group: Dataset, steps: np.ndarray, slice_of: Mapping[str, int]
) -> None:
    """Refuses a frame that lies on another slice than the images it was drawn on."""
    named = {
        str(source.get("ReferencedSOPInstanceUID"))
        for derivation in group.get("DerivationImageSequence") or ()
        for source in derivation.get("SourceImageSequence") or ()
    }
    slices = {slice_of[uid] for uid in named if uid in slice_of}
    in_plane = steps[0, :2].any()
    if slices and not in_plane and int(steps[0, 2]) not in slices:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has a frame on slice {int(steps[0, 2])} by its position, on "
            f"{sorted(slices)} by its source images, expected the same; which of the "
            f"two is wrong can't be known, export it again",
        )
