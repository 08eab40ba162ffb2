"""The content address of a case: sha256 over its voxels, its grid and its labels.

Two cases with one digest train alike. The type in which values are stored does not
count (int16 -5 equals float32 -5.0), the names of segments do, and the paths, UIDs and
the patient do not. The same scan from DICOM and from NIfTI has one digest where its
voxels are in one order and its position survives NIfTI's float32 within the rounding.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from client.intake.decode import plane_digest
from common.case import Segment
from common.volume import Volume


def case_digest(
    volume: Volume,
    segments: Sequence[Segment],
    planes: Sequence[bytes] | None = None,
) -> str:
    """Lower-case hex sha256 of voxels, grid and masks.

    Args:
        volume: Values, hashed plane by plane along D (`plane_digest`); its affine,
            hashed in steps of 1e-4 mm, which is below what any format keeps.
        segments: Names and masks, in order.
        planes: The digest of each plane, where decoders have already made them.
    """
    digest = hashlib.sha256()
    digest.update(np.array(volume.grid.shape, dtype="<i8").tobytes())
    affine = np.rint(volume.grid.affine * 1e4)
    digest.update(affine.astype("<i8").tobytes())
    for plane in map(plane_digest, volume.array) if planes is None else planes:
        digest.update(plane)
    for segment in segments:
        name = segment.name.encode()
        digest.update(len(name).to_bytes(8, "little") + name)
        for plane in segment.mask:
            digest.update(np.packbits(plane).data)
    return digest.hexdigest()
