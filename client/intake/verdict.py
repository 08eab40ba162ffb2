"""What intake says of each series, and the case it hands on.

Intake never drops anything in silence: every series (or NIfTI pair, MetaImage, folder
row) that is found in a source ends as exactly one `SeriesVerdict`. Accepted ones come
with one `IntakeCase`; refused ones with at least one finding that refuses.

Everything here is *local*: verdicts hold UIDs and patient ids and never leave the
hospital. What may leave is `IntakeCount`: N of M.
"""

from dataclasses import dataclass
from enum import StrEnum

from common.volume import Grid


class Verdict(StrEnum):
    """The outcome for one series."""

    ACCEPT = "accept"
    NOTE = "accept with a note"
    REFUSE = "refuse"


class Code(StrEnum):
    """Why a series is refused or noted; stable, documented in docs/verdicts.md."""

    # what kind of thing it is
    NOT_CT = "NOT_CT"
    LOCALIZER = "LOCALIZER"
    SECONDARY_CAPTURE = "SECONDARY_CAPTURE"
    ENHANCED_MULTIFRAME = "ENHANCED_MULTIFRAME"
    NOT_DICOM = "NOT_DICOM"
    UNREADABLE = "UNREADABLE"
    EMPTY_FILE = "EMPTY_FILE"
    SPECIAL_FILE = "SPECIAL_FILE"
    UNSAFE_LINK = "UNSAFE_LINK"
    EXECUTABLE_PREAMBLE = "EXECUTABLE_PREAMBLE"
    DICOMDIR_MISSING_FILE = "DICOMDIR_MISSING_FILE"
    # identity
    EMPTY_UID = "EMPTY_UID"
    EMPTY_PATIENT_ID = "EMPTY_PATIENT_ID"
    DUPLICATE_SAME = "DUPLICATE_SAME"
    DUPLICATE_DIFFERENT = "DUPLICATE_DIFFERENT"
    MIXED_PATIENTS = "MIXED_PATIENTS"
    NON_ASCII = "NON_ASCII"
    # geometry
    NO_POSITION = "NO_POSITION"
    BAD_ORIENTATION = "BAD_ORIENTATION"
    MISSING_SLICES = "MISSING_SLICES"
    DUPLICATE_SLICES = "DUPLICATE_SLICES"
    NON_UNIFORM_SPACING = "NON_UNIFORM_SPACING"
    GANTRY_TILT = "GANTRY_TILT"
    MIXED_ORIENTATION = "MIXED_ORIENTATION"
    MIXED_MATRIX = "MIXED_MATRIX"
    MIXED_KERNEL = "MIXED_KERNEL"
    MIXED_FRAME_OF_REFERENCE = "MIXED_FRAME_OF_REFERENCE"
    SPACING_TAG_STALE = "SPACING_TAG_STALE"
    NO_PIXEL_SPACING = "NO_PIXEL_SPACING"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    # values
    RESCALE_MISSING = "RESCALE_MISSING"
    RESCALE_INVALID = "RESCALE_INVALID"
    HU_RANGE = "HU_RANGE"
    PIXEL_PADDING = "PIXEL_PADDING"
    PIXEL_REPRESENTATION = "PIXEL_REPRESENTATION"
    PIXEL_FORMAT = "PIXEL_FORMAT"
    LOSSY = "LOSSY"
    DECODE_FAILED = "DECODE_FAILED"
    DECODE_LIMIT = "DECODE_LIMIT"
    # labels
    LABEL_MISSING = "LABEL_MISSING"
    LABEL_UNREADABLE = "LABEL_UNREADABLE"
    LABEL_GRID_MISMATCH = "LABEL_GRID_MISMATCH"
    LABEL_OVERLAP = "LABEL_OVERLAP"
    LABEL_EMPTY = "LABEL_EMPTY"
    LABEL_UNREFERENCED = "LABEL_UNREFERENCED"
    LABEL_VALUE = "LABEL_VALUE"
    # fitness for the plan at hand
    TOO_SMALL = "TOO_SMALL"
    NO_SPACING = "NO_SPACING"


@dataclass(frozen=True)
class Finding:
    """One reason, for people to read."""

    code: Code
    """The stable code; tables count by it."""
    sentence: str
    """What was found, what was expected, what to do; no names, no tag text."""
    refuses: bool
    """Whether this alone refuses the series."""


def refusal(code: Code, sentence: str) -> Finding:
    """A finding that refuses the series."""
    return Finding(code, sentence, refuses=True)


def note(code: Code, sentence: str) -> Finding:
    """A finding that does not refuse the series."""
    return Finding(code, sentence, refuses=False)


@dataclass(frozen=True)
class SeriesVerdict:
    """One row of the verdict table; local, never sent."""

    series: str
    """SeriesInstanceUID or local name."""
    patient: str
    """PatientID or its stand-in."""
    source: str
    """Where it was found, relative to the source folder (first file)."""
    files: int
    """How many files belong to it."""
    findings: tuple[Finding, ...] = ()
    """All reasons found, refusing ones first."""
    grid: Grid | None = None
    """The grid, when geometry could be worked out."""
    hu_range: tuple[float, float] | None = None
    """Smallest and largest value, when pixels were decoded."""
    labels: tuple[str, ...] = ()
    """Names of the labels found for it."""

    @property
    def verdict(self) -> Verdict:
        """Refuse if any finding refuses; note if any is there; accept otherwise."""
        if any(finding.refuses for finding in self.findings):
            return Verdict.REFUSE
        return Verdict.NOTE if self.findings else Verdict.ACCEPT


@dataclass(frozen=True)
class IntakeCount:
    """N of M: the one thing of intake that may leave the hospital."""

    accepted: int
    """N, image series that became cases."""
    found: int
    """M, image series that were found; localizers and label objects do not count."""
