"""From HU on the scanner's grid to model space; `client.predictor` goes back.

There is one path for training, evaluation and prediction, so that a model never meets
pixels that were prepared in another way than those it learnt from: closest LPS axes
(`common.volume.canonical`), resampling, then the grey window. HU are resampled before
they are cut off by the window, because interpolation of clipped values thickens bone
and air.

The result is float16: in -1..1 it resolves 1/2048 of half a window (0.4 HU in a window
of 1400 HU), well below the noise of any CT, in half the bytes.
"""

import hashlib
import json

import numpy as np
from jaxtyping import Float16, Num, UInt8

from common.case import IntakeCase, PreparedCase, Target
from common.errors import GeometryError
from common.plan import Plan, Preprocessing
from common.tasks.catalog import task_of
from common.volume import (
    Grid,
    Volume,
    canonical,
    canonical_order,
    reorder_grid,
    resample,
    with_spacing,
)

PREPROCESSING_VERSION = 1
"""Raise it when the same HU give other model-space values: stores then prepare anew."""


def model_grid(grid: Grid, pre: Preprocessing) -> Grid:
    """The model-space grid that a series on `grid` will be prepared on."""
    closest = reorder_grid(grid, canonical_order(grid))
    return with_spacing(closest, pre.spacing_mm) if pre.spacing_mm else closest


def prepare(
    volume: Volume, pre: Preprocessing, *, mask: Volume | None = None
) -> tuple[Float16[np.ndarray, "D H W"], UInt8[np.ndarray, "D H W"] | None, Grid]:
    """Bring a volume, and the mask on its grid, to model space.

    Args:
        volume: HU (or grey values) on the series' own grid.
        pre: Spacing and window of the plan.
        mask: Class per voxel on the same grid.

    Returns:
        Image in -1..1, mask (nearest voxel) and the grid of both, C-contiguous.

    Raises:
        GeometryError: The mask lies on another grid than the volume.
    """
    grid = model_grid(volume.grid, pre)
    if mask is not None and not mask.grid.same_as(volume.grid):
        raise GeometryError(
            f"preprocessing got a mask of shape {mask.grid.shape} that is not on the "
            f"grid of its volume {volume.grid.shape}, expected one grid for both"
        )
    hu = resample(canonical(volume), grid, nearest=False, outside=pre.window_hu[0])
    classes = None
    if mask is not None:
        moved = resample(canonical(mask), grid, nearest=True, outside=0)
        classes = np.ascontiguousarray(moved.array, dtype=np.uint8)
    return windowed(hu.array, pre.window_hu), classes, grid


def prepare_case(
    case: IntakeCase, target: Target, plan: Plan, *, case_id: str, patient_id: str
) -> PreparedCase:
    """A case and its target in model space, without `foreground`.

    Args:
        case: Accepted by intake.
        target: What the plan's task wants learnt from it, on the case's grid.
        plan: Gives spacing and window.
        case_id: What the case is called from here on.
        patient_id: What its patient is called.
    """
    given = target.mask
    mask = None if given is None else Volume(given, case.volume.grid)
    image, classes, grid = prepare(case.volume, plan.preprocessing, mask=mask)
    return PreparedCase(
        case_id=case_id,
        patient_id=patient_id,
        image=image,
        grid=grid,
        source_grid=case.volume.grid,
        mask=classes,
        label=target.label,
        attributes=target.attributes,
        has_spacing=case.has_spacing,
    )


def windowed(
    hu: Num[np.ndarray, "D H W"], window_hu: tuple[float, float]
) -> Float16[np.ndarray, "D H W"]:
    """Grey values: -1 at or below the window, +1 at or above it, linear between.

    Slice by slice, so that the only array of the volume's size is the result.
    """
    low, high = window_hu
    image = np.empty(hu.shape, dtype=np.float16)
    for values, out in zip(hu, image, strict=True):
        grey = values.astype(np.float32)
        grey -= np.float32(low)
        grey *= np.float32(2.0 / (high - low))
        grey -= np.float32(1.0)
        out[...] = np.clip(grey, -1.0, 1.0, out=grey)
    return image


def recipe_digest(plan: Plan) -> str:
    """sha256 (hex) of all in a plan that decides what a prepared case looks like.

    That is the preprocessing, the rules that turn labels into a target and the versions
    of this module and of those rules. Patch size, model, loss and rounds do not matter:
    plans that differ only there share prepared cases.
    """
    rules = plan.task.model_dump(mode="json", exclude={"lesions"})
    rules["classes"] = list(
        rules["classes"].items()  # the order of classes numbers them
        if isinstance(rules["classes"], dict)
        else rules["classes"]
    )
    recipe = {
        "version": PREPROCESSING_VERSION,
        "target_version": task_of(plan).target_version,
        "preprocessing": plan.preprocessing.model_dump(mode="json"),
        "task": rules,
    }
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
