"""Small pictures of one slice, for reports: grey CT with what is known drawn in.

Colours are blue and orange (Okabe and Ito 2008), which people with any colour vision
tell apart. Model space draws as radiologists look: anterior up, the patient's right on
the left. Pixels become square by their spacing in mm.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from scipy import ndimage

SIDE = 384
"""Longest side of a picture, in pixels."""
BLUE = (86, 180, 233)
ORANGE = (230, 159, 0)
_STROKE = 5
"""Size of the filter that finds edges; lines are half as wide, rounded down."""
_FRAME = 5

Picture = UInt8[np.ndarray, "H W 3"]


def widest_slice(mask: UInt8[np.ndarray, "D H W"]) -> int:
    """Index d of the slice with most foreground; the middle one where there is none."""
    areas = [int(np.count_nonzero(plane)) for plane in mask]
    return int(np.argmax(areas)) if any(areas) else len(areas) // 2


def outlines(
    grey: Float32[np.ndarray, "h w"],
    truth: UInt8[np.ndarray, "h w"],
    predicted: UInt8[np.ndarray, "h w"],
    spacing_mm: tuple[float, float],
) -> Picture:
    """Truth in blue and prediction in orange.

    Truth runs outside its border and prediction inside, so that both are seen where
    they agree.

    Args:
        grey: Grey values -1..1.
        truth: Class per pixel, 0 background.
        predicted: The same of the prediction.
        spacing_mm: Pixel spacing H, W.
    """
    picture = _grey_picture(grey, spacing_mm)
    size = picture.shape[:2]
    outside, inside = _resize(truth, size), _resize(predicted, size)
    picture[inside != ndimage.minimum_filter(inside, _STROKE)] = ORANGE
    picture[outside != ndimage.maximum_filter(outside, _STROKE)] = BLUE
    return picture


def heat(
    grey: Float32[np.ndarray, "h w"],
    warmth: Float32[np.ndarray, "h w"],
    spacing_mm: tuple[float, float],
    *,
    right: bool,
) -> Picture:
    """Where a classifier looked, in orange; a blue frame if it was right, else orange.

    Args:
        grey: Grey values -1..1.
        warmth: Weight per pixel, 0..1.
        spacing_mm: Pixel spacing H, W.
        right: Whether the predicted class is the true one.
    """
    picture = _grey_picture(grey, spacing_mm).astype(np.float32)
    glow = 0.6 * _resize(warmth, (picture.shape[0], picture.shape[1]))[..., None]
    picture = (1.0 - glow) * picture + glow * np.array(ORANGE)
    framed = np.pad(
        np.zeros(np.array(picture.shape[:2]) - 2 * _FRAME), _FRAME, constant_values=1
    )
    picture[framed > 0] = BLUE if right else ORANGE
    return picture.astype(np.uint8)


def _grey_picture(
    grey: Float32[np.ndarray, "h w"], spacing_mm: tuple[float, float]
) -> Picture:
    extent = np.array(grey.shape) * np.array(spacing_mm)
    height, width = np.maximum(1, np.rint(SIDE * extent / extent.max())).astype(int)
    large = _resize(grey, (int(height), int(width)))
    level = np.rint((np.clip(large, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=2)


def _resize(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Another size: linear for grey values, nearest for classes (uint8)."""
    values = torch.from_numpy(plane.astype(np.float32))[None, None]
    if plane.dtype == np.uint8:
        return F.interpolate(values, size, mode="nearest-exact")[0, 0].byte().numpy()
    return F.interpolate(values, size, mode="bilinear", antialias=True)[0, 0].numpy()
