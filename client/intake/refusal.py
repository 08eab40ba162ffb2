"""How one file of a source says no: an exception inside, a finding outside.

A reader raises `RefusedError` where it sees the fault; the loop over the source turns
it into the row's finding. So one bad file never ends an intake, and no reader returns
half a result.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from client.intake.verdict import Code, Finding
from common.errors import GeometryError, IntakeError

_UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    GeometryError,
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
"""What nibabel, SimpleITK, Pillow and numpy raise on damaged or truncated files."""


class RefusedError(IntakeError):
    """One file or case that is refused, with the finding that says why."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(sentence)
        self.finding = Finding(code, sentence, refuses=True)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns every failure of a file parser into UNREADABLE.

    The cause is named by its class alone: parsers quote paths and values.
    """
    try:
        yield
    except RefusedError:
        raise
    except _UNREADABLE as cause:
        raise RefusedError(
            Code.UNREADABLE,
            f"{what} can't be read ({type(cause).__name__}), expected a complete and "
            f"valid file; copy or export it again",
        ) from cause
