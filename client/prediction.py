"""What a model says of one series: the documented, versioned JSON beside mask and PNG.

It names the series, so it is patient data and stays at the hospital.
"""

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from common.package import RESEARCH_ONLY

PREDICTION_VERSION: Final = 1


class Record(BaseModel):
    """A frozen part of a prediction's JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassFinding(Record):
    """How much of one class was found."""

    name: str
    voxels: int
    """Voxels of the series' own grid."""
    volume_ml: float | None
    """Unset where the source knows no millimetres."""


class Prediction(Record):
    """What a model says of one series; the content of its JSON file. Local."""

    format: Literal["fedct-prediction"] = "fedct-prediction"
    prediction_version: Literal[1] = PREDICTION_VERSION
    use: Literal["research use only"] = RESEARCH_ONLY
    plan_name: str
    plan_digest: str
    weights_sha256: str
    """Of the package."""
    series: str
    """SeriesInstanceUID or local name."""
    source: str
    """Where it was found, relative to the source folder."""
    notes: list[str]
    """What intake noted, as "CODE: sentence"."""
    findings: list[ClassFinding] | None = None
    """Segmentation: each class of the plan, in order."""
    probabilities: dict[str, float] | None = None
    """Classification: each class of the plan, in order."""
    files: dict[str, str]
    """"mask" and "preview" to file names in the same folder."""
    why_nifti: str | None = None
    """Why the mask of a DICOM series is no SEG."""
    seconds: float
    """Wall time of network and export, without intake."""
