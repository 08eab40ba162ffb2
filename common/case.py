"""The three forms of a case on its way from a source to a patch.

`IntakeCase` is what intake accepted, on the scanner's grid in HU. `Target` is what the
plan's task wants learnt from it. `PreparedCase` is both in model space, as the store
hands them out; its arrays may be memory maps, so that reading a patch touches only the
pages it needs. All arrays are to be treated as read-only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float16, Int32, UInt8

from common.volume import Grid, Volume


@dataclass(frozen=True)
class Segment:
    """One labelled structure on the image's own grid."""

    name: str
    """SegmentLabel, ROIName, or the number of a label map as text."""
    mask: Bool[np.ndarray, "D H W"]
    """True inside."""


@dataclass(frozen=True)
class IntakeCase:
    """One accepted image with its labels, before any preprocessing."""

    series: str
    """SeriesInstanceUID, or a stable local name where the format has none."""
    patient: str
    """PatientID or its stand-in: what the split keeps together."""
    volume: Volume
    """HU on the series' own grid (grey values where `has_hu` is false)."""
    segments: tuple[Segment, ...] = ()
    """Labels on the volume's grid, in file order; may overlap."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Labels of the whole image and columns of a manifest, as text."""
    has_hu: bool = True
    """False for 8-bit picture sources, whose window was applied by somebody else."""
    has_spacing: bool = True
    """False where the source knows no millimetres; the grid then says 1 mm."""
    digest: str = ""
    """sha256 over the decoded voxels, grid and labels: the content address."""


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """One case in model space (closest LPS axes, resampled, windowed to -1..1)."""

    case_id: str
    """HMAC of the series UID with the site's secret, hex."""
    patient_id: str
    """HMAC of the patient id with the site's secret, hex."""
    image: Float16[np.ndarray, "D H W"]
    """Grey values, -1 at the window's low end, +1 at its high end."""
    grid: Grid
    """The model-space grid, in patient space (mm, LPS)."""
    source_grid: Grid
    """The grid of the source series, where predictions are written back to."""
    mask: UInt8[np.ndarray, "D H W"] | None = None
    """Class per voxel, 0 background; unset where the task has no voxel labels."""
    foreground: Int32[np.ndarray, "N 3"] | None = None
    """Indices (d, h, w) of at most 4096 foreground voxels, for balanced patches."""
    label: int | None = None
    """Class of the whole case; unset where the task has none."""
    attributes: Mapping[str, float] = field(default_factory=dict)
    """Numbers known without the image (a diameter), for baselines."""
    has_spacing: bool = True
    """Whether millimetres mean something (false for pictures without spacing)."""


@dataclass(frozen=True, eq=False)
class Target:
    """What a task wants learnt from one case, on the image's own grid."""

    mask: UInt8[np.ndarray, "D H W"] | None = None
    """Class per voxel, 0 background."""
    label: int | None = None
    """Class of the whole case."""
    attributes: Mapping[str, float] = field(default_factory=dict)
    """Numbers that travel with the case (baseline_attribute)."""
    left_out: str | None = None
    """Why the case can't serve this task (no class fits); unset if it can."""
    overlap_voxels: int = 0
    """Voxels claimed by two classes, given to the later one."""
