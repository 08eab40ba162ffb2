"""A prediction at a glance: one PNG that a radiologist can judge in seconds.

Upper row: the three planes through the middle of the largest finding. Lower row: the
slices below which a sixth, a half and five sixths of the prediction lie. All is drawn
as radiologists look (the patient's right on the left, head and anterior up), in the
plan's own grey window, with square millimetres. Oblique series are shown along their
own closest axes.

Colours are Okabe and Ito's (2008), which people with any colour vision tell apart. No
tag of the source is drawn: no name, no date, no id.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float32, Num, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from client.private_files import write_private
from common.package import RESEARCH_ONLY
from common.preprocess import windowed
from common.volume import Volume, canonical

TILE = 340
"""Side of one square picture, in pixels."""
BAND = 30
"""Height of a line of text, in pixels."""
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)
LEGEND_CLASSES = 6
"""Classes named in the legend, the largest first; as many as there are colours."""
_FILL = 0.18
"""How much of a class's colour lies over the grey inside its outline."""
_STROKE = 5
"""Size of the filter that finds edges; lines are half as wide, rounded down."""
_GAP = 4
_INK, _FAINT, _PAPER = (235, 235, 235), (150, 150, 150), (16, 16, 18)
# Ends of a plane's sides: left, right, top, bottom.
_LETTERS = {0: ("R", "L", "A", "P"), 1: ("R", "L", "H", "F"), 2: ("A", "P", "H", "F")}
_PLANES = {0: "axial", 1: "coronal", 2: "sagittal"}

Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Cut:
    """One plane through a volume in closest LPS axes."""

    axis: int
    """The axis it is perpendicular to: 0 axial, 1 coronal, 2 sagittal."""
    index: int
    """Voxel along that axis."""


def segmentation_preview(
    volume: Volume,
    mask: Volume,
    class_names: Sequence[str],
    window_hu: tuple[float, float],
    *,
    has_spacing: bool = True,
) -> Picture:
    """Draw a mask over its image.

    Args:
        volume: HU on the series' own grid.
        mask: UInt8 class per voxel on the same grid, 0 background.
        class_names: Names of classes 1, 2, ...
        window_hu: HU shown as black and as white.
        has_spacing: False for stacks of pictures, where only the slices make sense.
    """
    image, classes = canonical(volume), canonical(mask)
    areas = np.count_nonzero(classes.array, axis=(1, 2))
    rows = [[Cut(0, d) for d in _spread(areas)]]
    if has_spacing:
        middle = _middle_of_largest(classes.array)
        rows.insert(0, [Cut(axis, middle[axis]) for axis in range(3)])
    depth = len(image.array)
    tiles = [
        [
            _lettered(
                _tile(image, classes, cut, window_hu), *_texts(cut, depth, has_spacing)
            )
            for cut in row
        ]
        for row in rows
    ]
    voxel_ml = mask.grid.voxel_mm3 / 1000.0 if has_spacing else None
    return _page(tiles, _legend(classes.array, class_names, voxel_ml))


def classification_preview(
    grey: Float32[np.ndarray, "h w"],
    warmth: Float32[np.ndarray, "h w"],
    spacing_mm: tuple[float, float],
    probabilities: Mapping[str, float],
) -> Picture:
    """Draw where a classifier looked, beside the plain image, and what it said.

    Args:
        grey: One slice in model space, -1..1.
        warmth: Grad-CAM of the most likely class on it, 0..1.
        spacing_mm: Pixel spacing H, W.
        probabilities: Class to probability.
    """
    levels = _levels(grey)
    plain = np.repeat(_fit(levels, spacing_mm)[..., None], 3, axis=2)
    glow = 0.65 * _fit(np.asarray(warmth, np.float32), spacing_mm)[..., None]
    warm = ((1.0 - glow) * plain + glow * np.array(COLOURS[0])).astype(np.uint8)
    ordered = sorted(probabilities.items(), key=lambda item: -item[1])
    said = [
        (COLOURS[0] if place == 0 else _INK, f"{name} {100 * value:.1f} %")
        for place, (name, value) in enumerate(ordered[:LEGEND_CLASSES])
    ]
    return _page([[_framed(plain), _framed(warm)]], said)


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture as a PNG of mode 0600, whole or not at all."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, format="PNG", optimize=True)
    write_private(path, content.getvalue())


def _spread(areas: Num[np.ndarray, " D"]) -> list[int]:
    """Slices from feet to head below which 1/6, 1/2 and 5/6 of the foreground lie.

    Of a volume without foreground: the same of the volume itself.
    """
    below = np.cumsum(areas if areas.any() else np.ones(len(areas), dtype=np.int64))
    shares = np.array([1, 3, 5]) / 6.0 * below[-1]
    return sorted({int(d) for d in np.searchsorted(below, shares)})


def _middle_of_largest(classes: UInt8[np.ndarray, "D H W"]) -> tuple[int, int, int]:
    """A voxel of the largest connected part, near its centre; else the middle."""
    if not classes.any():
        d, h, w = (n // 2 for n in classes.shape)
        return d, h, w
    parts, _ = ndimage.label(classes > 0)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    voxels = np.argwhere(parts == int(sizes.argmax()))
    near = int(((voxels - voxels.mean(axis=0)) ** 2).sum(axis=1).argmin())
    d, h, w = (int(v) for v in voxels[near])
    return d, h, w


def _tile(
    image: Volume, classes: Volume, cut: Cut, window_hu: tuple[float, float]
) -> Picture:
    """One plane in grey with the classes outlined in their colours."""
    rest = [axis for axis in range(3) if axis != cut.axis]
    spacing_mm = (image.spacing_mm[rest[0]], image.spacing_mm[rest[1]])
    plane = np.take(image.array, cut.index, axis=cut.axis)
    inside = np.take(classes.array, cut.index, axis=cut.axis)
    if cut.axis != 0:  # the first axis of what is left is D: head up
        plane, inside = plane[::-1], inside[::-1]
    levels = _fit(_levels(windowed(plane[None], window_hu)[0]), spacing_mm)
    picture = np.repeat(levels[..., None], 3, axis=2).astype(np.float32)
    labels = _fit(inside, spacing_mm, nearest=True)
    edge = labels != ndimage.minimum_filter(labels, _STROKE)
    edge |= labels != ndimage.maximum_filter(labels, _STROKE)
    for number in np.unique(labels[labels > 0]):
        colour = np.array(COLOURS[(int(number) - 1) % len(COLOURS)], np.float32)
        own = labels == number
        picture[own] = (1 - _FILL) * picture[own] + _FILL * colour
        picture[own & edge] = colour
    return _framed(picture.astype(np.uint8))


def _levels(grey: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """-1..1 to 0..255."""
    level = (np.clip(grey.astype(np.float32), -1.0, 1.0) + 1.0) * 127.5
    return np.rint(level).astype(np.uint8)


def _fit(
    plane: np.ndarray, spacing_mm: tuple[float, float], *, nearest: bool = False
) -> np.ndarray:
    """The plane with square pixels, as large as a tile allows."""
    extent = np.array(plane.shape) * np.array(spacing_mm)
    height, width = np.maximum(1, np.rint(TILE * extent / extent.max())).astype(int)
    how = Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR
    source = Image.fromarray(np.ascontiguousarray(plane))
    return np.asarray(source.resize((int(width), int(height)), how))


def _framed(picture: Picture) -> Picture:
    """The picture in the middle of a black square tile."""
    tile = np.zeros((TILE, TILE, 3), dtype=np.uint8)
    height, width = picture.shape[:2]
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = picture
    return tile


def _texts(cut: Cut, depth: int, has_place: bool) -> tuple[tuple[str, ...], str]:
    """Ends of the sides (R L A P H F), and which plane it is.

    Pictures have no place in a patient: nobody knows which way they run.
    """
    number = f" {cut.index + 1}/{depth}" if cut.axis == 0 else ""
    if not has_place:
        return ("", "", "", ""), f"slice{number}"
    return _LETTERS[cut.axis], f"{_PLANES[cut.axis]}{number}"


def _lettered(tile: Picture, ends: tuple[str, ...], where: str) -> Picture:
    """The tile with letters at its left, right, top and bottom, and a name."""
    canvas = Image.fromarray(tile)
    draw, font = ImageDraw.Draw(canvas), _font(13)
    half, edge = TILE // 2, TILE - 4
    places = [(4, half), (edge, half), (half, 4), (half, edge), (6, edge)]
    anchors = ("lm", "rm", "mt", "mb", "lb")
    for place, anchor, text in zip(places, anchors, (*ends, where), strict=True):
        draw.text(
            place, text, _INK, font, anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )
    return np.asarray(canvas)


def _legend(
    classes: UInt8[np.ndarray, "D H W"],
    class_names: Sequence[str],
    voxel_ml: float | None,
) -> list[tuple[tuple[int, int, int], str]]:
    """Colour and words for each class that was found, the largest first."""
    counts = np.bincount(classes.ravel(), minlength=len(class_names) + 1)[1:]
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i] > 0]
    if not order:
        return [(_INK, "nothing found")]
    said = []
    for i in order[:LEGEND_CLASSES]:
        size = f"{counts[i]} voxels"
        if voxel_ml is not None:
            size = f"{counts[i] * voxel_ml:.3g} ml"
        said.append((COLOURS[i % len(COLOURS)], f"{class_names[i]} {size}"))
    if len(order) > LEGEND_CLASSES:
        said.append((_FAINT, f"and {len(order) - LEGEND_CLASSES} more"))
    return said


def _page(
    rows: Sequence[Sequence[Picture]], said: Sequence[tuple[tuple[int, int, int], str]]
) -> Picture:
    """Tiles in rows, then the legend, then what it may be used for."""
    across = max(len(row) for row in rows)
    width = across * (TILE + _GAP) + _GAP
    lines = _wrap(said, width - 2 * _GAP)
    height = len(rows) * (TILE + _GAP) + _GAP + (len(lines) + 1) * BAND
    canvas = Image.new("RGB", (width, height), _PAPER)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            place = (_GAP + c * (TILE + _GAP), _GAP + r * (TILE + _GAP))
            canvas.paste(Image.fromarray(tile), place)
    draw = ImageDraw.Draw(canvas)
    top = len(rows) * (TILE + _GAP) + _GAP + BAND // 2
    for line in lines:
        for left, colour, text in line:
            draw.rectangle((left, top - 6, left + 12, top + 6), fill=colour)
            draw.text((left + 20, top), text, _INK, _font(15), anchor="lm")
        top += BAND
    note = f"predicted by a model, {RESEARCH_ONLY}, not for diagnosis"
    draw.text((2 * _GAP, top), note, _FAINT, _font(13), anchor="lm")
    return np.asarray(canvas)


def _wrap(
    said: Sequence[tuple[tuple[int, int, int], str]], width: int
) -> list[list[tuple[int, tuple[int, int, int], str]]]:
    """Lines of (left edge, colour, text) that fit the width."""
    lines: list[list[tuple[int, tuple[int, int, int], str]]] = [[]]
    left = 2 * _GAP
    for colour, whole in said:
        text = _shortened(whole, width - 40)
        needs = 20 + int(_font(15).getlength(text)) + 18
        if lines[-1] and left + needs > width:
            lines.append([])
            left = 2 * _GAP
        lines[-1].append((left, colour, text))
        left += needs
    return lines


def _shortened(text: str, width: int) -> str:
    """The text, cut so that it fits a line."""
    kept = text
    while len(kept) > 1 and _font(15).getlength(kept) > width:
        kept = kept[:-2] + "…"
    return kept


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and has most letters."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)
