"""How the report writes numbers: one way for each kind, wherever it stands.

A number that is not defined (NaN, infinite, absent) is written as a dash and never as
zero: an empty test set must not look like a bad model.
"""

import math
import re

UNDEFINED = "–"
"""Stands where a number is not defined."""

_WORDS = {
    "assd": "ASSD",
    "auc": "AUC",
    "f1": "F1",
    "hd95": "HD95",
    "iou": "IoU",
    "mm": "(mm)",
    "ml": "(ml)",
    "roc": "ROC",
}


def metric_label(key: str) -> str:
    """A metric's key in the words of a reader: `hd95_mm` becomes `HD95 (mm)`."""
    parts = []
    for part in re.split(r"[/.:]", key):
        words = [_WORDS.get(word, word) for word in part.split("_") if word]
        parts.append(" ".join(words))
    label = " · ".join(part for part in parts if part)
    return label[:1].upper() + label[1:]


def arm_label(name: str) -> str:
    """An arm's name in the words of a reader."""
    if name == "federated":
        return "Federated"
    if name == "pooled":
        return "All data in one place"
    return f"{name.removeprefix('local-')} alone" if name.startswith("local-") else name


def finite(value: float | None) -> float | None:
    """The value, or None where it is not a number one can compare."""
    return value if value is not None and math.isfinite(value) else None


def show(value: float | None, digits: int | None = None) -> str:
    """A metric or loss: three decimals below 1, fewer above, none for large counts."""
    value = finite(value)
    if value is None:
        return UNDEFINED
    if digits is None:
        size = abs(value)
        if size > 1.0 and value == round(value):
            return show_count(round(value))
        digits = 3 if size < 10.0 else 2 if size < 100.0 else 1
    return f"{value:,.{digits}f}".replace("-", "−")


def show_difference(value: float | None, digits: int = 3) -> str:
    """A signed difference; what rounds to zero has no sign."""
    value = finite(value)
    if value is None:
        return UNDEFINED
    text = f"{value:+,.{digits}f}"
    if float(text.replace(",", "")) == 0.0:
        return f"±{0.0:.{digits}f}"
    return text.replace("-", "−")


def show_count(value: int) -> str:
    """A whole number with separated thousands."""
    return f"{value:,}".replace("-", "−")


def show_share(value: float) -> str:
    """A share 0 to 1 as per cent."""
    return f"{100.0 * value:.1f} %"


def show_bytes(size_bytes: int | None) -> str:
    """A size in powers of 1000, three figures; a dash if it was not counted."""
    if size_bytes is None:
        return UNDEFINED
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        # 999.5 would be written as 1000 in three figures.
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{_three(size)} {unit}"
        size /= 1000.0
    return f"{_three(size)} TB"


def show_seconds(seconds_s: float) -> str:
    """A duration as a reader says it: `0.42 s`, `17 s`, `4 min 12 s`, `2 h 05 min`."""
    if not math.isfinite(seconds_s):
        return UNDEFINED
    if seconds_s < 9.995:
        return f"{seconds_s:.2f} s"
    whole = round(seconds_s)
    if whole < 60:
        return f"{seconds_s:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def join_words(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def plural(count: int, noun: str) -> str:
    """`1 round`, `2 rounds`, `3 series`."""
    many = noun if noun.endswith("s") else f"{noun}s"
    return f"{show_count(count)} {noun if count == 1 else many}"


def _three(size: float) -> str:
    return (
        f"{size:.2f}"
        if size < 9.995
        else f"{size:.1f}"
        if size < 99.95
        else f"{size:.0f}"
    )
