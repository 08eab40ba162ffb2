"""Values of DICOM elements as plain Python, or None where they can't be had.

Runs in the decoder processes only.
"""

import struct
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

_TEXT_KINDS = ("AE", "CS", "DS", "IS", "LO", "SH", "UI")


def text(data: Dataset, keyword: str) -> str | None:
    """A text value, several joined by a backslash; None where empty or unreadable."""
    value = _value(data, keyword)
    if value is None:
        return None
    parts = [value] if isinstance(value, str) else list(_items(value))
    return "\\".join(str(part).strip("\0 ") for part in parts) or None


def number(data: Dataset, keyword: str) -> float | None:
    """A number, NaN and infinity included; None where empty or malformed."""
    value = _value(data, keyword)
    try:
        return None if value is None else float(next(_items(value)))
    except (TypeError, ValueError, StopIteration):
        return None


def numbers(data: Dataset, keyword: str, count: int) -> Any:
    """A tuple of exactly `count` numbers, or None."""
    value = _value(data, keyword)
    try:
        found = () if value is None else tuple(float(part) for part in _items(value))
    except (TypeError, ValueError):
        return None
    return found if len(found) == count else None


def whole(data: Dataset, keyword: str) -> int | None:
    """A whole number, or None."""
    value = number(data, keyword)
    return int(value) if value is not None and abs(value) < 2**53 else None


def _value(data: Dataset, keyword: str) -> Any:
    """A value as pydicom converts it, or for the commonest types at once.

    pydicom's conversion of one element costs 10 us, and a CT head has thirty.
    """
    tag, kind = _tag_and_kind(keyword)
    try:
        if tag not in data:
            return None
        raw = data.get_item(tag)
        if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes):
            plain = raw.value.isascii() and b"\x1b" not in raw.value
            if plain and kind in _TEXT_KINDS:
                return _split(raw.value.decode("ascii"))
            if kind in ("US", "US or SS") and len(raw.value) == 2:
                (word,) = struct.unpack(
                    "<H" if raw.is_little_endian else ">H", raw.value
                )
                return word
        value = data.get(keyword)
    except MemoryError:
        raise
    except Exception:  # a malformed value; pydicom raises many types here
        return None
    return None if value is None or value == "" else value


@cache
def _tag_and_kind(keyword: str) -> tuple[int, str]:
    tag = tag_for_keyword(keyword)
    assert tag is not None
    return tag, dictionary_VR(tag)


def _split(text: str) -> str | list[str] | None:
    parts = [part.strip(" \0") for part in text.split("\\")]
    return (parts[0] or None) if len(parts) == 1 else parts


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        yield value
    else:
        yield from value


def sequence(data: Dataset | None, keyword: str) -> list[Dataset]:
    """The items of a sequence; none where it is absent or no sequence."""
    value = None if data is None else _value(data, keyword)
    return [item for item in _items(value) if isinstance(item, Dataset)]
