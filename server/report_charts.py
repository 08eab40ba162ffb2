"""The report's charts by hospital: results of every model, and who took part.

Shapes say what colours say, so that the charts survive a colour-blind reader and a grey
printer. Each chart is a function of its width: the page holds a wide and a narrow
drawing and shows the one that is legible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
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

Kind = Literal["federated", "pooled", "own", "other"]
"""What a mark stands for; also its CSS class."""


@dataclass(frozen=True)
class Dot:
    """One model's result at one hospital."""

    kind: Kind
    """Gives the shape: circle, diamond, square, small hollow square."""
    value: float
    """The metric; finite."""
    label: str
    """Said on hover, before the value."""


@dataclass(frozen=True)
class DotRow:
    """One hospital, or the mean over all."""

    label: str
    """Left of the row."""
    dots: tuple[Dot, ...]
    """May be empty."""
    strong: bool = False
    """Whether the row is the mean."""


def dot_chart(words: Words, rows: Sequence[DotRow], metric: str, width: int) -> Markup:
    """Results by hospital: a row each, a mark for each model, further right is better.

    Args:
        words: Names of the chart.
        rows: The mean first.
        metric: Written under the axis.
        width: In pixels.
    """
    wide = width > 600
    left, right, row_px, top = (
        (190.0, 64.0, 40.0, 8.0) if wide else (104.0, 46.0, 38.0, 8.0)
    )
    bottom = top + row_px * len(rows)
    root = canvas(words, width, bottom + 44)
    values = [dot.value for row in rows for dot in row.dots]
    x = scale_around(values, left, width - right, floor=0.0)
    for value, text in ticks(x):
        draw(root, "line", class_="grid", x1=x(value), x2=x(value), y1=top, y2=bottom)
        draw(root, "text", text, class_="tick mid", x=x(value), y=bottom + 16)
    draw(
        root,
        "text",
        f"{metric} on test patients",
        class_="axis mid",
        x=(x.first_px + x.last_px) / 2,
        y=bottom + 35,
    )
    for number, row in enumerate(rows):
        _dot_row(root, row, x, top + row_px * (number + 0.5), width)
    return markup(root)


def _dot_row(root: ET.Element, row: DotRow, x: Scale, y: float, width: int) -> None:
    strong = " strong" if row.strong else ""
    if row.strong:
        draw(root, "rect", class_="band", x=0, y=y - 19, width=width, height=38, rx=6)
    narrow = width <= 600
    label = (
        "Mean" if row.strong and narrow else shorten(row.label, 13 if narrow else 24)
    )
    draw(root, "text", label, class_=f"row{strong}", x=8, y=y + 4.5)
    if not row.dots:
        draw(root, "text", "no result", class_="tick", x=x.first_px + 8, y=y + 4)
        return
    ends = [x(dot.value) for dot in row.dots]
    draw(root, "line", class_="rail", x1=min(ends), x2=max(ends), y1=y, y2=y)
    order = ("other", "own", "pooled", "federated")
    for dot in sorted(row.dots, key=lambda dot: order.index(dot.kind)):
        tip = f"{row.label} · {dot.label}: {show(dot.value)}"
        _mark(root, dot.kind, x(dot.value), y + _nudge(dot, row, x), tip)
        if dot.kind == "federated":
            draw(
                root,
                "text",
                show(dot.value),
                class_=f"value end{strong}",
                x=width - 8,
                y=y + 4.5,
            )


def _nudge(dot: Dot, row: DotRow, x: Scale) -> float:
    """Pixels that keep a mark from hiding behind the federated one: up, or down."""
    away_px = {"pooled": -9.0, "own": 9.0}.get(dot.kind, 0.0)
    hidden = any(
        other.kind == "federated" and abs(x(other.value) - x(dot.value)) < 14.0
        for other in row.dots
    )
    return away_px if hidden else 0.0


def _mark(root: ET.Element, kind: Kind, x: float, y: float, tip: str) -> None:
    name = {"class": f"mark {kind}", "data-tip": tip}
    if kind == "federated":
        ET.SubElement(
            root, "circle", {**name, "cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "7.5"}
        )
        return
    half = {"pooled": 6.2, "own": 6.2, "other": 3.6}[kind]
    shape = {
        "x": f"{x - half:.1f}",
        "y": f"{y - half:.1f}",
        "width": f"{2 * half:.1f}",
        "height": f"{2 * half:.1f}",
        "rx": "1.5",
    }
    if kind == "pooled":
        shape["transform"] = f"rotate(45 {x:.1f} {y:.1f})"
    ET.SubElement(root, "rect", {**name, **shape})


def takes_part_chart(
    words: Words,
    sites: Sequence[str],
    outcomes: Sequence[Mapping[str, tuple[str, str]]],
    void: Sequence[int],
    width: int,
) -> Markup:
    """Who took part: a row per hospital, a column per round.

    Args:
        words: Names of the chart.
        sites: Names, from the top.
        outcomes: Per round, from round 1: site to outcome ("accepted", "refused",
            "failed", "late") and its reason.
        void: Rounds in which the model did not change.
        width: In pixels.
    """
    left, top, row_px = (150.0 if width > 600 else 104.0), 6.0, 26.0
    bottom = top + row_px * len(sites)
    root = canvas(words, width, bottom + 38)
    last = len(outcomes)
    x = Scale(0.5, max(1.5, last + 0.5), left, min(width - 8.0, left + 44.0 * last + 1))
    side = min(18.0, (x(2) - x(1)) * 0.8)
    for number in void:
        box = {"x": x(number) - side / 2 - 2, "y": top - 4, "width": side + 4}
        draw(root, "rect", class_="void", height=bottom - top + 6, **box)
    for row, site in enumerate(sites):
        middle = top + row_px * (row + 0.5)
        label = shorten(site, 20 if width > 600 else 13)
        draw(root, "text", label, class_="row", x=8, y=middle + 4.5)
        for number, replies in enumerate(outcomes, start=1):
            outcome, reason = replies.get(site, ("absent", ""))
            tip = f"{site} · round {number}: {outcome}" + (f", {reason}" * bool(reason))
            _reply(root, outcome, x(number), middle, side, tip)
    for number in round_ticks(last, 24 if width > 600 else 8):
        draw(root, "text", str(number), class_="tick mid", x=x(number), y=bottom + 17)
    middle = (x.first_px + x.last_px) / 2
    draw(root, "text", "round", class_="axis mid", x=middle, y=bottom + 33)
    return markup(root)


def _reply(
    root: ET.Element, outcome: str, x: float, y: float, side: float, tip: str
) -> None:
    group = draw(root, "g", class_=f"reply {outcome}")
    group.set("data-tip", tip)
    half = side / 2
    box = {"x": x - half, "y": y - half, "width": side, "height": side}
    draw(group, "rect", rx=3, **box)
    cross = half * 0.45
    lines = {
        "refused": ((-1, -1, 1, 1), (-1, 1, 1, -1)),
        "failed": ((-1, 0, 1, 0),),
        "late": ((0, -1, 0, 0.3), (0, 0.3, 1, 0.3)),
    }
    for x1, y1, x2, y2 in lines.get(outcome, ()):
        ends = {"x1": x + x1 * cross, "x2": x + x2 * cross}
        draw(group, "line", y1=y + y1 * cross, y2=y + y2 * cross, **ends)
