"""One NIfTI file to a volume and back; a header is checked before any voxel is read.

NIfTI stores axes i j k with i fastest, in RAS millimetres. Here the array becomes
D H W = k j i, as a view and without a flip, and the affine becomes LPS. So D is the
file's third axis, and what `nifti_bytes` wrote comes back as it was.

The file's word is taken where it is clear and refused where it is not: no orientation,
an sform and a qform that disagree, units other than mm.
"""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float64, Num

from client.intake.refusal import RefusedError, reading
from client.intake.verdict import Code
from common.volume import Grid, Volume

VOXELS_LIMIT = 2**31
"""2048 slices of 1024 x 1024; bounds what a small compressed file may unpack to."""
SUFFIXES = (".nii", ".nii.gz")
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_FORMS_AGREE_VOXELS = 0.1


def load_nifti(path: Path) -> Volume:
    """A NIfTI file's values, scaled as its header says, on its own grid.

    Returns:
        Values in the file's own type, floating where the header scales.

    Raises:
        RefusedError: Unreadable, not 3-D, too large, not located, not plain numbers.
    """
    with reading("the NIfTI file"):
        image = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Image):
            raise RefusedError(
                Code.UNREADABLE,
                f"the file is {type(image).__name__}, expected NIfTI; convert it",
            )
        shape = _spatial_shape(image.header)
        affine = _affine_ras(image.header, shape)
        stored = np.asanyarray(image.dataobj).reshape(shape)
        return Volume(stored.transpose(2, 1, 0), grid_from_ras(affine, shape))


def nifti_bytes(volume: Volume) -> bytes:
    """A `.nii.gz` of the volume on its own grid, axes i j k = W H D, affine to RAS.

    Without a time stamp, so that equal volumes give equal files.
    """
    affine = ras_affine(volume.grid)
    image = nibabel.Nifti1Image(volume.array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    by_qform = grid_from_ras(image.get_qform(), image.shape)
    if not volume.grid.same_as(by_qform):
        # A quaternion can't hold shear, as of rounded positions: the sform alone.
        image.set_qform(None, code="unknown")
    return gzip.compress(image.to_bytes(), compresslevel=3, mtime=0)


def grid_from_ras(
    affine: Float64[np.ndarray, "4 4"], shape: tuple[int, int, int]
) -> Grid:
    """The D H W grid in LPS of a file with axes i j k in RAS."""
    kji = affine[:, [2, 1, 0, 3]]
    return Grid((shape[2], shape[1], shape[0]), RAS_TO_LPS @ kji)


def ras_affine(grid: Grid) -> Float64[np.ndarray, "4 4"]:
    """The way back: maps (w, h, d, 1), which is (i, j, k, 1), to mm in RAS."""
    kji = RAS_TO_LPS @ grid.affine
    return np.asarray(kji[:, [2, 1, 0, 3]])


def compact(array: Num[np.ndarray, "D H W"]) -> Num[np.ndarray, "D H W"]:
    """Values as int16 where they are whole numbers in its range, else as float32."""
    if np.issubdtype(array.dtype, np.integer):
        limits = np.iinfo(np.int16)
        if array.min() >= limits.min and array.max() <= limits.max:
            return array.astype(np.int16)
    return array.astype(np.float32)


def _spatial_shape(header: nibabel.Nifti1Header) -> tuple[int, int, int]:
    dtype, dims = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "iuf":
        raise RefusedError(
            Code.PIXEL_FORMAT,
            f"the NIfTI file holds {dtype.name} values, expected plain numbers",
        )
    if len(dims) < 3 or any(n != 1 for n in dims[3:]) or min(dims) < 1:
        raise RefusedError(
            Code.PIXEL_FORMAT,
            f"the NIfTI file has shape {tuple(dims)}, expected one 3-D volume; split "
            f"it by its fourth axis",
        )
    if int(np.prod(dims, dtype=np.int64)) > VOXELS_LIMIT:
        raise RefusedError(
            Code.DECODE_LIMIT,
            f"the NIfTI file has shape {tuple(dims)}, expected at most {VOXELS_LIMIT} "
            f"voxels",
        )
    return int(dims[0]), int(dims[1]), int(dims[2])


def _affine_ras(
    header: nibabel.Nifti1Header, shape: tuple[int, int, int]
) -> Float64[np.ndarray, "4 4"]:
    """The sform, or else the qform; refused when there is none or they disagree."""
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        raise RefusedError(
            Code.NO_PIXEL_SPACING,
            f"the NIfTI file is in {unit}, expected mm; write it again in mm",
        )
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None and qform is None:
        raise RefusedError(
            Code.NO_POSITION,
            "the NIfTI file has neither sform nor qform, expected one; without it left "
            "and right can't be told apart",
        )
    if sform is None or qform is None:
        return np.asarray(qform if sform is None else sform, dtype=np.float64)
    ours = grid_from_ras(sform, shape)
    tolerance_mm = _FORMS_AGREE_VOXELS * min(ours.spacing_mm)
    if not ours.same_as(grid_from_ras(qform, shape), tolerance_mm):
        raise RefusedError(
            Code.BAD_ORIENTATION,
            "the NIfTI file's sform and qform place it differently, expected the same; "
            "decide which is right and write it again",
        )
    return np.asarray(sform, dtype=np.float64)
