"""Whether the pixels of a label are voxels of the image's grid, and which.

Labels are placed by geometry alone: positions and orientations in mm, never the order
of frames or files, and never SpacingBetweenSlices, which is stale in real files. A
label is placed exactly or refused; it is never resampled here, because a resampled mask
is another label than the one a person drew.
"""

from itertools import product

import numpy as np
from jaxtyping import Bool, Float64, Int64

from common.volume import Grid

TOLERANCE_VOXELS = 0.2
"""How far a label's corner pixel may lie from a voxel centre. Decimal strings round
positions by up to 0.1; a half-pixel convention error is 0.5 and must not pass."""


def lattice_map(
    affine: Float64[np.ndarray, "4 n1"], shape: tuple[int, ...], grid: Grid
) -> Int64[np.ndarray, "3 n1"] | None:
    """The integer map from a label's pixel indices to voxel indices of the grid.

    Args:
        affine: Maps (index along each label axis..., 1) to (x, y, z, 1) in mm, LPS; n
            axes, two for a frame and three for a volume.
        shape: Pixels along each label axis.
        grid: The image's grid.

    Returns:
        A signed permutation with an integer offset, so that
        `map @ (index..., 1) == (d, h, w)`; None when the label has another spacing,
        another orientation or lies between voxels. It may reach beyond the grid.
    """
    to_voxel = (np.linalg.inv(grid.affine) @ affine)[:3]
    corners = [(*ends, 1) for ends in product(*((0, n - 1) for n in shape))]
    steps = np.rint(to_voxel)
    # Along an axis of one pixel the corners can't show a wrong step: look one further.
    further = [(*ends, 1) for ends in product((0, 1), repeat=len(shape))]
    points = np.array(corners + further, dtype=np.float64).T
    if np.abs((to_voxel - steps) @ points).max() > TOLERANCE_VOXELS:
        return None
    turn = np.abs(steps[:, :-1])
    if (turn.sum(axis=0) != 1).any() or (turn.sum(axis=1) > 1).any():
        return None
    return steps.astype(np.int64)


def mark(
    mask: Bool[np.ndarray, "D H W"],
    frame: Bool[np.ndarray, "R C"],
    steps: Int64[np.ndarray, "3 3"],
) -> int:
    """Sets the mask's voxels under the frame's true pixels; counts those beyond it.

    Args:
        mask: Changed in place.
        frame: True inside the segment.
        steps: From `lattice_map`, pixel (r, c) to voxel.
    """
    rows, columns = np.nonzero(frame)
    voxels = steps[:, :2] @ np.stack([rows, columns]) + steps[:, 2:]
    inside = ((voxels >= 0) & (voxels < np.array(mask.shape)[:, None])).all(axis=0)
    d, h, w = voxels[:, inside]
    mask[d, h, w] = True
    return int(inside.size - inside.sum())
