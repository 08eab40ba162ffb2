"""How a label says no: one exception inside, one finding outside.

A label that can't be read, or that does not lie on the image's grid, refuses the whole
series: training on an image whose label was silently lost teaches the network that a
tumour is background. Overlapping or empty segments are notes.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError

from client.intake.verdict import Code, Finding
from common.case import Segment
from common.errors import LabelError

MASK_BYTES_LIMIT = 16 * 2**30
"""Most bytes that the masks of one label object may take: segments times voxels."""

_UNREADABLE = (
    InvalidDicomError,
    BytesLengthException,
    AttributeError,
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pydicom, nibabel and numpy raise on damaged or truncated files."""


class LabelRefusedError(LabelError):
    """A label that refuses its series; becomes a finding at the reader's door."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.finding = Finding(code, sentence, refuses=True)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns every failure of a file parser into LABEL_UNREADABLE.

    The cause is named by its class alone, and pydicom's warnings are off meanwhile:
    both quote tag values.
    """
    mode = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LabelRefusedError:
        raise
    except _UNREADABLE as cause:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE,
            f"{what} can't be read ({type(cause).__name__}), expected a complete and "
            f"valid object; export it again",
        ) from cause
    finally:
        pydicom.config.settings.reading_validation_mode = mode


def require_mask_room(what: str, segments: int, shape: tuple[int, int, int]) -> None:
    """Refuses a label whose masks would not fit, before any is made."""
    size_bytes = segments * int(np.prod(shape, dtype=np.int64))
    if size_bytes > MASK_BYTES_LIMIT:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE,
            f"{what} has {segments} segments, {size_bytes} bytes as masks, expected at "
            f"most {MASK_BYTES_LIMIT}; export fewer segments",
        )


def notes_on(
    what: str, segments: Sequence[Segment], *, disjoint: bool = False
) -> tuple[Finding, ...]:
    """Notes on segments that were read: empty ones, and ones that overlap.

    Args:
        what: What the segments are of, for the sentence.
        segments: On one grid.
        disjoint: They can't overlap by the nature of the format, so nobody looks.
    """
    notes = []
    empty = [str(n) for n, s in enumerate(segments, start=1) if not s.mask.any()]
    if empty or not segments:
        which = f"segment {', '.join(empty)} of {what}" if empty else what
        notes.append(Finding(Code.LABEL_EMPTY, f"{which} marks no voxel", False))
    shared = 0 if disjoint else overlap_voxels(segments)
    if shared:
        notes.append(
            Finding(
                Code.LABEL_OVERLAP,
                f"segments of {what} overlap in {shared} voxels; each is kept whole",
                refuses=False,
            )
        )
    return tuple(notes)


def overlap_voxels(segments: Sequence[Segment]) -> int:
    """Voxels that belong to more than one segment."""
    if len(segments) < 2:
        return 0
    seen = segments[0].mask.copy()
    twice = np.zeros_like(seen)
    for segment in segments[1:]:
        twice |= seen & segment.mask
        seen |= segment.mask
    return int(twice.sum())
