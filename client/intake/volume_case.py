"""From one volume file and its labels to a verdict and a case, in any file format.

Values are judged here, because files that are no DICOM don't say what their numbers
mean. HU of any body have air or fat below 0 and span hundreds; values from 0 up are
stored values, a window or a probability, and would train a network on another scale.
"""

from collections.abc import Callable, Sequence

import numpy as np

from client.intake.decode import HIGHEST_HU, LOWEST_HU
from client.intake.digest import case_digest
from client.intake.nifti_file import compact
from client.intake.refusal import RefusedError
from client.intake.verdict import Code, Finding, SeriesVerdict
from common.case import IntakeCase, Segment
from common.volume import Grid, Volume

LEAST_RANGE_HU = 100.0
"""Between the lowest and highest value of any part of a body; 0 to 1 is no CT."""

Settled = tuple[SeriesVerdict, IntakeCase | None]
"""One row of the table, and the case where it was accepted."""
Labels = tuple[tuple[Segment, ...], tuple[Finding, ...]]


def settle(
    row: SeriesVerdict, load: Callable[[], Volume], label: Callable[[Grid], Labels]
) -> Settled:
    """Load, judge and label one image.

    Args:
        row: Series, patient, source and files; the rest is filled in here.
        load: Reads the image; may raise RefusedError.
        label: Reads its labels on its grid. Not called when the image is refused.
    """
    try:
        volume = load()
        low, high = _finite_range(volume)
    except RefusedError as refusal:
        return _verdict(row, [refusal.finding]), None
    findings = hu_findings(low, high)
    segments: tuple[Segment, ...] = ()
    if not any(finding.refuses for finding in findings):
        segments, found = label(volume.grid)
        findings += found
    verdict = _verdict(row, findings, volume.grid, (low, high), segments)
    if any(finding.refuses for finding in findings):
        return verdict, None
    volume = Volume(compact(volume.array), volume.grid)
    digest = case_digest(volume, segments)
    case = IntakeCase(row.series, row.patient, volume, segments, digest=digest)
    return verdict, case


def hu_findings(low: float, high: float) -> list[Finding]:
    """What the smallest and largest value say about whether they are HU."""
    if low >= 0 or high - low < LEAST_RANGE_HU or high < -LEAST_RANGE_HU:
        return [
            Finding(
                Code.HU_RANGE,
                f"values run from {low:g} to {high:g}, expected HU (air near -1000, "
                f"tissue near 0); convert from the DICOM with rescale applied",
                refuses=True,
            )
        ]
    if low < LOWEST_HU or high > HIGHEST_HU:
        return [
            Finding(
                Code.HU_RANGE,
                f"values run from {low:g} to {high:g}, expected {LOWEST_HU} to "
                f"{HIGHEST_HU}; padding, metal or overshoot of resampling",
                refuses=False,
            )
        ]
    return []


def _finite_range(volume: Volume) -> tuple[float, float]:
    low, high = float(volume.array.min()), float(volume.array.max())
    if not (np.isfinite(low) and np.isfinite(high)):  # min and max pass NaN on
        raise RefusedError(
            Code.HU_RANGE, "some values are not finite, expected HU everywhere"
        )
    return low, high


def _verdict(
    row: SeriesVerdict,
    findings: Sequence[Finding],
    grid: Grid | None = None,
    hu_range: tuple[float, float] | None = None,
    segments: Sequence[Segment] = (),
) -> SeriesVerdict:
    return SeriesVerdict(
        row.series,
        row.patient,
        row.source,
        row.files,
        findings=tuple(sorted(findings, key=lambda finding: not finding.refuses)),
        grid=grid,
        hu_range=hu_range,
        labels=tuple(segment.name for segment in segments),
    )
