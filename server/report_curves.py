"""The report's learning curves: a metric or loss over the rounds of a run.

Curves differ by dash as well as by colour, and each is named at its end and not in a
legend apart. Void rounds are shaded: a flat stretch there is no plateau of learning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from markupsafe import Markup

from server.report_format import show
from server.report_svg import (
    Scale,
    Words,
    canvas,
    draw,
    markup,
    round_ticks,
    scale_around,
    shorten,
    ticks,
)

LABEL_CHARS = 13
"""Longest name at the end of a curve."""
MOST_LABELS = 12
"""With more curves only the means are named; hover and table name the others."""


@dataclass(frozen=True)
class Line:
    """One curve over rounds."""

    label: str
    """At its end, and on hover."""
    style: str
    """CSS class: "mean", "pooled", or "s0" to "s7" for sites."""
    points: tuple[tuple[int, float], ...]
    """Round and value; finite, in order of rounds."""


def line_chart(
    words: Words,
    lines: Sequence[Line],
    void: Sequence[int],
    final: int | None,
    last: int,
    width: int,
) -> Markup:
    """Curves over rounds; void rounds are shaded, the final one is marked.

    Args:
        words: Names of the chart.
        lines: The mean (drawn on top) and one per site.
        void: Rounds in which the model did not change.
        final: Round of the final model.
        last: Last round on the axis.
        width: In pixels.
    """
    longest = max((len(line.label) for line in lines), default=0)
    right = 22.0 + 7.0 * min(longest, LABEL_CHARS)
    top, bottom, left = 24.0, 226.0, 46.0
    root = canvas(words, width, 268)
    values = [value for line in lines for _, value in line.points]
    y = scale_around(values, bottom, top, floor=0.0)
    x = Scale(0.5, max(1.5, last + 0.5), left, width - right)
    for value, text in ticks(y):
        draw(
            root, "line", class_="grid", x1=left, x2=x.last_px, y1=y(value), y2=y(value)
        )
        draw(root, "text", text, class_="tick end", x=left - 7, y=y(value) + 4)
    for number in round_ticks(last, 12 if width > 400 else 7):
        draw(root, "text", str(number), class_="tick mid", x=x(number), y=bottom + 17)
    draw(
        root,
        "text",
        "round",
        class_="axis mid",
        x=(left + x.last_px) / 2,
        y=bottom + 36,
    )
    _rounds_marked(root, void, final, x, (top, bottom))
    for line in sorted(lines, key=lambda line: line.style == "mean"):
        _curve(root, line, x, y)
    _end_labels(root, lines, x, y)
    if not values:
        draw(root, "text", "no values", class_="axis mid", x=width / 2, y=130)
    return markup(root)


def _rounds_marked(
    root: ET.Element,
    void: Sequence[int],
    final: int | None,
    x: Scale,
    span: tuple[float, float],
) -> None:
    top, bottom = span
    wide = min(x(2) - x(1), 26.0)
    written = [] if final is None else [x(final)]
    if final is not None:
        middle = x(final)
        draw(root, "line", class_="final", x1=middle, x2=middle, y1=top, y2=bottom)
        draw(root, "text", "final", class_="note mid", x=middle, y=top - 6)
    for number in void:
        middle = x(number)
        box = {"x": middle - wide / 2, "y": top, "width": wide}
        draw(root, "rect", class_="void", height=bottom - top, **box)
        if all(abs(middle - other) > 28 for other in written):
            draw(root, "text", "void", class_="note mid", x=middle, y=top - 6)
            written.append(middle)


def _curve(root: ET.Element, line: Line, x: Scale, y: Scale) -> None:
    places = [(x(number), y(value)) for number, value in line.points]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
    draw(root, "polyline", class_=f"line {line.style}", points=path)
    radius = 3.6 if line.style == "mean" else 2.0
    for (number, value), (px, py) in zip(line.points, places, strict=True):
        dot = draw(root, "circle", class_=f"dot {line.style}", cx=px, cy=py, r=radius)
        dot.set("data-tip", f"{line.label} · round {number}: {show(value)}")


def _end_labels(root: ET.Element, lines: Sequence[Line], x: Scale, y: Scale) -> None:
    """Names at the right end of the curves, each with a thread to its last point."""
    wanted = [line for line in lines if line.points]
    if len(wanted) > MOST_LABELS:
        wanted = [line for line in wanted if line.style in ("mean", "pooled")]
    wanted.sort(key=lambda line: (y(line.points[-1][1]), line.label))
    ends = [y(line.points[-1][1]) for line in wanted]
    for line, end, place in zip(
        wanted, ends, _apart(ends, y.first_px + 6), strict=True
    ):
        start, stop = x(line.points[-1][0]) + 5, x.last_px + 10
        points = f"{start:.1f},{end:.1f} {stop - 5:.1f},{place:.1f} {stop},{place:.1f}"
        draw(root, "polyline", class_=f"thread {line.style}", points=points)
        label = shorten(line.label, LABEL_CHARS)
        style = f"label {line.style}"
        draw(root, "text", label, class_=style, x=stop + 4, y=place + 4)


def _apart(places: Sequence[float], lowest: float, gap_px: float = 13.0) -> list[float]:
    """Rising places, moved down and then up until none touches the one below it."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap_px) if moved else place)
    ceiling = lowest
    for number in reversed(range(len(moved))):
        moved[number] = min(moved[number], ceiling)
        ceiling = moved[number] - gap_px
    return moved
