"""Drawing inline SVG: elements, scales and axes, and nothing more.

Charts are built as XML elements and not as text, so that a name with `<` in it is
escaped by construction. Colours are CSS classes: one drawing serves light, dark and
print. A chart carries a title and a description for a screen reader; what it shows is
also in a table of the report.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup


@dataclass(frozen=True)
class Scale:
    """A linear map from values to pixels."""

    low: float
    """Value at the first pixel."""
    high: float
    """Value at the last pixel; above `low`."""
    first_px: float
    """Pixel of `low`."""
    last_px: float
    """Pixel of `high`; may be smaller (y grows downwards in SVG)."""

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.first_px + share * (self.last_px - self.first_px)


@dataclass(frozen=True)
class Words:
    """What names a chart: for its ids and for a screen reader."""

    identity: str
    """Unique in the page."""
    title: str
    """A few words."""
    description: str
    """What it shows, in a sentence."""


def canvas(words: Words, width: int, height: float) -> ET.Element:
    """An empty drawing, in pixels, with the words for those who can't see it.

    Args:
        words: Names of the chart.
        width: Of the view box; the page may scale it.
        height: Of the view box.
    """
    root = ET.Element(
        "svg",
        {
            "viewBox": f"0 0 {width} {height:.0f}",
            "role": "img",
            "aria-labelledby": f"{words.identity}-title {words.identity}-desc",
            "style": f"max-width:{width * 1.25:.0f}px",
        },
    )
    draw(root, "title", words.title, id=f"{words.identity}-title")
    draw(root, "desc", words.description, id=f"{words.identity}-desc")
    return root


def draw(
    parent: ET.Element, tag: str, text: str = "", /, **attributes: str | float
) -> ET.Element:
    """Add an element; `class_` means `class`, `stroke_width` means `stroke-width`."""
    named = {
        name.rstrip("_").replace("_", "-"): f"{value:.1f}"
        if isinstance(value, float)
        else str(value)
        for name, value in attributes.items()
    }
    child = ET.SubElement(parent, tag, named)
    child.text = text or None
    return child


def markup(root: ET.Element) -> Markup:
    """The finished drawing, safe to put in a page."""
    # ElementTree has escaped every text and attribute.
    return Markup(ET.tostring(root, encoding="unicode"))


def scale_around(
    values: Sequence[float], first_px: float, last_px: float, *, floor: float | None
) -> Scale:
    """A scale that holds all values with some air, ending on whole ticks.

    Args:
        values: Finite; may be empty.
        first_px: Pixel of the low end.
        last_px: Pixel of the high end.
        floor: The scale does not start below it, where no value does.
    """
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
    bottom = low - air
    if floor is not None and low >= floor:
        bottom = max(floor, bottom)
    step = _tick_step(bottom, high + air)
    return Scale(
        math.floor(bottom / step + 1e-9) * step,
        math.ceil((high + air) / step - 1e-9) * step,
        first_px,
        last_px,
    )


def ticks(scale: Scale) -> list[tuple[float, str]]:
    """Round values within a scale, and how they are written."""
    step = _tick_step(scale.low, scale.high)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(scale.low / step - 1e-9)
    last = math.floor(scale.high / step + 1e-9)
    return [(n * step, f"{n * step:.{digits}f}") for n in range(first, last + 1)]


def round_ticks(last: int, most: int) -> list[int]:
    """Round numbers to write along an axis: 1, whole steps, never more than `most`."""
    step = next(
        (s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500) if last / s <= most),
        max(1, last // most),
    )
    # Beside 2 a 1 would be crowded; before 5 or 10 it says where the axis starts.
    first = {1} if step != 2 else set()
    return sorted({*first, *range(step, last + 1, step)})


def shorten(text: str, most: int) -> str:
    """The text, or its beginning where it would not fit."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _tick_step(low: float, high: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that gives at most six steps."""
    rough = (high - low) / 6.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * n for n in (1.0, 2.0, 5.0, 10.0) if power * n >= rough * 0.999)
