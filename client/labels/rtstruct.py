"""RTSTRUCT contours to masks on the image's grid.

Points are brought to voxel indices by the grid's affine, so axial, sagittal and oblique
series are one case: a contour must lie in one plane of the D axis. Slices are found by
position; ContourImageSequence is often absent and is not needed.

The pixel rule: a voxel is inside when its centre is. In one slice the even-odd rule
runs over all contours of a structure together, so an inner contour is a hole (XOR), and
a "keyhole" contour works as drawn. A contour on the centre itself counts on the upper
and left side and not on the lower and right, so two structures that share an edge share
no voxel. Contours without an area (POINT, OPEN_PLANAR) mark nothing and leave a note.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64
from pydicom import Dataset

from client.intake.verdict import Code, Finding
from client.labels.file import read_dicom
from client.labels.refusal import (
    LabelRefusedError,
    notes_on,
    reading,
    require_mask_room,
)
from common.case import Segment
from common.volume import Grid

WHAT = "the RTSTRUCT"
OFF_PLANE_VOXELS = 0.25
"""How far a point may lie off its slice, in slice distances. Contours drawn on another
series of the same patient lie anywhere between."""
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def read_rtstruct(
    path: Path, grid: Grid, *, frame_of_reference: str | None = None
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    """Masks of the structures of an RTSTRUCT, in the order of its ROIs.

    Args:
        path: An RT Structure Set file.
        grid: The image series' own grid; its D axis is the slice axis.
        frame_of_reference: FrameOfReferenceUID of the image. Structures that name
            another one are refused. None: not compared.

    Returns:
        Segments and notes; or no segment and one refusing finding.
    """
    try:
        with reading(WHAT):
            dataset = read_dicom(path)
            rois = list(dataset.StructureSetROISequence)
            _check_frame(rois, frame_of_reference)
            require_mask_room(WHAT, len(rois), grid.shape)
            drawn = {
                int(item.ReferencedROINumber): list(item.get("ContourSequence") or ())
                for item in dataset.ROIContourSequence
            }
            segments, notes = [], []
            for roi in rois:
                contours = drawn.get(int(roi.ROINumber), [])
                mask, found = _rasterise(contours, grid)
                name = str(roi.get("ROIName", "") or roi.ROINumber)
                segments.append(Segment(name, mask))
                notes += found
    except LabelRefusedError as refusal:
        return (), (refusal.finding,)
    return tuple(segments), (*notes, *notes_on(WHAT, segments))


def _check_frame(rois: Iterable[Dataset], frame_of_reference: str | None) -> None:
    named = {str(roi.get("ReferencedFrameOfReferenceUID") or "") for roi in rois} - {""}
    if frame_of_reference is not None and named - {frame_of_reference}:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has structures in another frame of reference than the image, "
            f"expected the image's own; their positions can't be compared",
        )


def _rasterise(
    contours: list[Dataset], grid: Grid
) -> tuple[Bool[np.ndarray, "D H W"], list[Finding]]:
    """One structure's mask, and what was left out of it."""
    mask = np.zeros(grid.shape, dtype=bool)
    flat = [c for c in contours if c.get("ContourGeometricType") in CLOSED]
    by_slice: dict[int, dict[bytes, Float64[np.ndarray, "N 2"]]] = {}
    clipped = 0
    for contour in flat:
        d, points = _on_slice(contour, grid)
        clipped += int(_leaves(points, grid.shape))
        # A contour stored twice would cancel itself under the even-odd rule.
        by_slice.setdefault(d, {})[points.round(3).tobytes()] = points
    _check_stride(sorted(by_slice))
    for d, polygons in by_slice.items():
        mask[d] = fill(list(polygons.values()), grid.shape[1:])
    return mask, _left_out(len(contours) - len(flat), clipped)


def _on_slice(contour: Dataset, grid: Grid) -> tuple[int, Float64[np.ndarray, "N 2"]]:
    """The slice that a contour lies on, and its points as (h, w) indices."""
    points = np.array(contour.ContourData, dtype=np.float64).reshape(-1, 3)
    if not np.isfinite(points).all():
        raise ValueError("contour with a point that is not finite")
    to_voxel = np.linalg.inv(grid.affine)
    indices = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
    d = int(np.rint(indices[:, 0].mean()))
    off = float(np.abs(indices[:, 0] - d).max())
    if off > OFF_PLANE_VOXELS:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has a contour {off:.2f} slices off the nearest slice, expected at "
            f"most {OFF_PLANE_VOXELS}; was it drawn on another series?",
        )
    if not 0 <= d < grid.shape[0]:
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has a contour on slice {d}, expected 0 to {grid.shape[0] - 1}; "
            f"are slices missing, or was it drawn on another series?",
        )
    return d, indices[:, 1:]


def _leaves(points: Float64[np.ndarray, "N 2"], shape: tuple[int, int, int]) -> bool:
    """Whether a contour runs more than a voxel beyond the image."""
    size = np.array(shape[1:])
    if (points.max(axis=0) < -0.5).any() or (points.min(axis=0) > size - 0.5).any():
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has a contour that lies wholly beyond the image, expected it "
            f"inside; was it drawn on another series?",
        )
    return bool((points < -1.0).any() or (points > size).any())


def _check_stride(slices: list[int]) -> None:
    """Refuses contours on every second or third slice: drawn on a coarser series.

    Then all distances are multiples of the least, which comes more than once. Lesions
    of one slice each are apart in any way, and are taken.
    """
    if len(slices) < 3:
        return
    steps = np.diff(slices)
    least = int(steps.min())
    if least >= 2 and (steps == least).sum() >= 2 and not (steps % least).any():
        raise LabelRefusedError(
            Code.LABEL_GRID_MISMATCH,
            f"{WHAT} has contours on one of every {least} slices, expected every "
            f"slice; it was drawn on a coarser series, interpolate it there",
        )


def _left_out(without_area: int, clipped: int) -> list[Finding]:
    notes = []
    if without_area:
        sentence = f"{WHAT} has {without_area} points or open lines, which mark nothing"
        notes.append(Finding(Code.LABEL_VALUE, sentence, refuses=False))
    if clipped:
        sentence = f"{WHAT} has {clipped} contours that were cut at the image's edge"
        notes.append(Finding(Code.LABEL_GRID_MISMATCH, sentence, refuses=False))
    return notes


def fill(
    polygons: list[Float64[np.ndarray, "N 2"]], shape: tuple[int, ...]
) -> Bool[np.ndarray, "H W"]:
    """Voxels whose centre is inside an odd number of polygons (even-odd rule).

    Args:
        polygons: Points as (h, w) in voxel indices, centres on whole numbers; the last
            point is joined to the first.
        shape: H and W of the slice; what lies beyond is cut.

    Every edge switches inside and outside for all centres to its right, in each row
    whose centre line it crosses; a running sum along the row gives the parity.
    """
    rows, columns = shape
    switches = np.zeros((rows, columns + 1), dtype=np.int32)
    start = np.concatenate(polygons)
    end = np.concatenate([np.roll(p, -1, axis=0) for p in polygons])
    upward = start[:, 0] > end[:, 0]
    start[upward], end[upward] = end[upward], start[upward].copy()
    # Half-open: an edge from h0 to h1 crosses the rows h0 <= row < h1.
    first = np.clip(np.ceil(start[:, 0]), 0, rows).astype(np.intp)
    last = np.clip(np.ceil(end[:, 0]), 0, rows).astype(np.intp)
    counts = last - first
    edge = np.repeat(np.arange(len(start)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    along = (row - start[edge, 0]) / (end[edge, 0] - start[edge, 0])
    crossing = start[edge, 1] + along * (end[edge, 1] - start[edge, 1])
    column = np.clip(np.ceil(crossing), 0, columns).astype(np.intp)
    np.add.at(switches, (row, column), 1)
    return (np.cumsum(switches, axis=1)[:, :columns] % 2).astype(bool)
