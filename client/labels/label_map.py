"""A label map in a volume file (NIfTI, MetaImage, NRRD) to masks on the image's grid.

The map must be the image's own grid, up to the order and direction of its axes, which
differ between formats and are put right here without moving a voxel. A map over the
same box of tissue with another spacing is refused, not resampled.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK
from jaxtyping import Integer, Num
from scipy import ndimage

from client.intake.meta_file import SUFFIXES as META_SUFFIXES
from client.intake.meta_file import load_metaimage
from client.intake.nifti_file import SUFFIXES as NIFTI_SUFFIXES
from client.intake.nifti_file import VOXELS_LIMIT, load_nifti
from client.intake.refusal import RefusedError
from client.intake.verdict import Code, Finding
from client.labels.lattice import TOLERANCE_VOXELS, lattice_map
from client.labels.refusal import (
    LabelRefusedError,
    notes_on,
    reading,
    require_mask_room,
)
from common.case import Segment
from common.volume import AxisOrder, Grid, Volume, reorder

WHAT = "the label map"
VALUE_LIMIT = 65535
"""Largest label number; above it, the file is an image and no label map."""


def read_label_map(
    path: Path,
    grid: Grid,
    *,
    names: Mapping[int, str] | None = None,
    structure: str | None = None,
) -> tuple[tuple[Segment, ...], tuple[Finding, ...]]:
    """Masks of a label map, one for each number above 0 that occurs, ascending.

    Args:
        path: A `.nii`, `.nii.gz`, `.mhd`, `.mha` or `.nrrd` file of whole numbers.
        grid: The image's grid.
        names: Names of numbers. A named number that does not occur is an empty segment;
            a number without a name is called by its digits.
        structure: What the file shows, where each structure has a file of its own: the
            name of its one segment (any number, or none), and `structure-5` for 5 where
            it has several after all.

    Returns:
        Segments and notes; or no segment and one refusing finding.
    """
    try:
        with reading(WHAT):
            array = _whole_numbers(_on_grid(_load(path), grid).array)
            segments = _split(array, names or {}, structure)
    except LabelRefusedError as refusal:
        return (), (refusal.finding,)
    return segments, notes_on(WHAT, segments, disjoint=True)


def _load(path: Path) -> Volume:
    try:
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            return load_nifti(path)
        if path.name.lower().endswith(META_SUFFIXES):
            return load_metaimage(path)
        return _load_nrrd(path)
    except RefusedError as refusal:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE, f"{WHAT}: {refusal.finding.sentence}"
        ) from refusal


def _load_nrrd(path: Path) -> Volume:
    """A NRRD by SimpleITK, whose images are LPS with axes x y z, seen as z y x."""
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("NrrdImageIO")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    size = reader.GetSize()
    if len(size) != 3 or int(np.prod(size, dtype=np.int64)) > VOXELS_LIMIT:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE,
            f"{WHAT} has shape {size}, expected 3-D, at most {VOXELS_LIMIT} voxels",
        )
    affine = np.eye(4)
    direction = np.array(reader.GetDirection()).reshape(3, 3)
    affine[:3, :3] = (direction * np.array(reader.GetSpacing()))[:, ::-1]
    affine[:3, 3] = reader.GetOrigin()
    array = SimpleITK.GetArrayFromImage(reader.Execute())
    return Volume(array, Grid((size[2], size[1], size[0]), affine))


def _on_grid(volume: Volume, grid: Grid) -> Volume:
    """The map with the axes of the grid; refuses another lattice or another box."""
    steps = lattice_map(volume.grid.affine, volume.grid.shape, grid)
    if steps is not None:
        source = [int(np.abs(row).argmax()) for row in steps[:, :3]]
        flip = [bool(row.sum() < 0) for row in steps[:, :3]]
        order = AxisOrder(
            (source[0], source[1], source[2]), (flip[0], flip[1], flip[2])
        )
        turned = reorder(volume, order)
        tolerance_mm = TOLERANCE_VOXELS * min(grid.spacing_mm)
        if turned.grid.same_as(grid, tolerance_mm):
            return turned
    raise LabelRefusedError(
        Code.LABEL_GRID_MISMATCH,
        f"{WHAT} has {volume.grid.shape} voxels at {_mm(volume.grid)} mm, expected the "
        f"image's {grid.shape} at {_mm(grid)} in the same place; resample it on the "
        f"image and look at the result",
    )


def _mm(grid: Grid) -> str:
    return "x".join(f"{v:.3f}" for v in grid.spacing_mm)


def _whole_numbers(array: Num[np.ndarray, "D H W"]) -> Integer[np.ndarray, "D H W"]:
    if not np.isfinite(array).all():
        raise LabelRefusedError(
            Code.LABEL_VALUE, f"{WHAT} has values that are not finite, expected numbers"
        )
    if array.min() < 0 or array.max() > VALUE_LIMIT:
        raise LabelRefusedError(
            Code.LABEL_VALUE,
            f"{WHAT} has values outside 0 to {VALUE_LIMIT}, expected label numbers; is "
            f"it the image?",
        )
    whole = np.asarray(array).astype(np.uint16)
    if (whole != array).any():
        raise LabelRefusedError(
            Code.LABEL_VALUE,
            f"{WHAT} has fractions, expected whole numbers; was it resampled with "
            f"interpolation? Use nearest neighbour",
        )
    return whole


def _split(
    array: Integer[np.ndarray, "D H W"], names: Mapping[int, str], structure: str | None
) -> tuple[Segment, ...]:
    # Only the box around a structure is written; the rest stays untouched zero pages.
    boxes = dict(enumerate(ndimage.find_objects(array), start=1))
    found = {number for number, box in boxes.items() if box is not None}
    require_mask_room(WHAT, len(found), array.shape)
    if structure is not None and len(found) < 2:
        return (Segment(structure, array > 0),)
    prefix = "" if structure is None else f"{structure}-"
    segments = []
    for number in sorted(found | (set(names) - {0})):
        mask = np.zeros(array.shape, dtype=bool)
        if box := boxes.get(number):
            mask[box] = array[box] == number
        segments.append(Segment(names.get(number, f"{prefix}{number}"), mask))
    return tuple(segments)
