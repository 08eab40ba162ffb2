"""Where the planes of a series lie, or why they do not make a volume.

Readers in common use average a spacing over a missing slice and say nothing, so
geometry is worked out here before any voxel is decoded, and from two attributes alone:
ImagePositionPatient and ImageOrientationPatient. InstanceNumber, file names,
SliceThickness and SpacingBetweenSlices decide nothing.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from client.intake.header import SliceHeader
from client.intake.verdict import Code, Finding, note, refusal
from common.volume import Grid

MIN_SLICES = 3
"""Fewest planes of a volume: with two, even spacing can't be checked."""
SPACING_TOLERANCE = 0.01
"""How much a gap may differ from the median gap, as a share of it."""
POSITION_TOLERANCE_MM = 0.011
"""Positions are often written with two decimals; a gap then is off by as much."""
ORIENTATION_TOLERANCE = 1e-3
"""Direction cosines are often written with four decimals."""
TILT_TOLERANCE_DEG = 0.1

Planes = tuple[SliceHeader, ...]


def sort_planes(planes: Sequence[SliceHeader]) -> Planes:
    """Planes by projection of their position on the slice normal, ascending.

    Planes without a position or orientation make any order meaningless; all are then
    returned by path and frame.
    """
    by_name = sorted(planes, key=lambda p: (str(p.path), p.frame))
    axes = _axes(by_name)
    if axes is None or any(p.position_mm is None for p in by_name):
        return tuple(by_name)
    offsets = _positions(by_name) @ axes[2]
    order = np.argsort(offsets, kind="stable")
    return tuple(by_name[i] for i in order)


def check_attributes(planes: Planes) -> tuple[Finding, ...]:
    """What differs between planes that must agree, and what is absent or invalid."""
    found = [
        _mixed(planes, Code.MIXED_PATIENTS, "PatientID", lambda p: p.patient),
        _mixed(
            planes,
            Code.MIXED_FRAME_OF_REFERENCE,
            "FrameOfReferenceUID",
            lambda p: p.frame_of_reference_uid,
        ),
        _mixed(planes, Code.MIXED_KERNEL, "ConvolutionKernel", lambda p: p.kernel),
        _mixed(planes, Code.MIXED_MATRIX, "Rows, Columns or PixelSpacing", _matrix),
        _orientation_finding(planes),
    ]
    without = sum(p.position_mm is None or not _finite(p.position_mm) for p in planes)
    if without:
        found.append(
            refusal(
                Code.NO_POSITION,
                f"{without} of {len(planes)} slices have no usable "
                "ImagePositionPatient, expected one each; export the original images",
            )
        )
    if any(not _is_spacing(p.pixel_spacing_mm) for p in planes):
        found.append(
            refusal(
                Code.NO_PIXEL_SPACING,
                "PixelSpacing is absent or not positive, expected millimetres; "
                "export the original images",
            )
        )
    tilts = [abs(p.tilt_deg) for p in planes if p.tilt_deg is not None]
    if tilts and max(tilts) > TILT_TOLERANCE_DEG:
        found.append(
            _tilt_finding(f"the gantry was tilted by {max(tilts):.1f} degrees")
        )
    return tuple(finding for finding in found if finding is not None)


def check_spacing(planes: Planes) -> tuple[Finding, ...]:
    """Missing, repeated or unevenly spaced slices, and shear, of sorted planes.

    Expects planes that passed `check_attributes`.
    """
    if len(planes) < MIN_SLICES:
        sentence = (
            f"{len(planes)} slices found, expected at least {MIN_SLICES}; "
            "check whether the export is complete"
        )
        few = refusal(Code.TOO_FEW_SLICES, sentence)
        return (few, *_repeated(_gaps(planes))) if len(planes) > 1 else (few,)
    gaps = _gaps(planes)
    repeated = _repeated(gaps)
    if repeated:
        return repeated
    found = [*_uneven(gaps), *_sheared(planes, gaps)]
    tags = [p.spacing_between_mm for p in planes if p.spacing_between_mm]
    spacing = float(gaps.mean())
    if any(abs(abs(tag) - spacing) > _tolerance(spacing) for tag in tags):
        found.append(
            note(
                Code.SPACING_TAG_STALE,
                f"SpacingBetweenSlices differs from the {spacing:.4g} mm between the "
                "slice positions; the positions were used",
            )
        )
    return tuple(found)


def series_grid(planes: Planes) -> Grid:
    """The grid of sorted, checked planes: D along the normal, H down, W across.

    The D axis runs from the first to the last position, so that the rounding of single
    positions does not add up.
    """
    axes = _axes(planes)
    first = planes[0]
    assert axes is not None
    assert first.pixels is not None
    assert first.pixel_spacing_mm is not None
    positions = _positions(planes)
    along_w, along_h, _ = axes
    affine = np.eye(4)
    affine[:3, 0] = (positions[-1] - positions[0]) / (len(planes) - 1)
    affine[:3, 1] = along_h * first.pixel_spacing_mm[0]
    affine[:3, 2] = along_w * first.pixel_spacing_mm[1]
    affine[:3, 3] = positions[0]
    return Grid((len(planes), first.pixels.rows, first.pixels.columns), affine)


def _axes(planes: Sequence[SliceHeader]) -> Float64[np.ndarray, "3 3"] | None:
    """Unit vectors along W, along H and along the normal, as rows; None if invalid."""
    known = [p.orientation for p in planes if p.orientation is not None]
    if len(known) < len(planes) or not known:
        return None
    pair = np.asarray(min(known), dtype=np.float64).reshape(2, 3)
    if not _is_orthonormal(pair[None]):
        return None
    row, column = pair / np.linalg.norm(pair, axis=1, keepdims=True)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    return np.stack([row, np.cross(normal, row), normal])


def _is_orthonormal(pairs: Float64[np.ndarray, "N 2 3"]) -> bool:
    """Whether all pairs of rows are perpendicular unit vectors; false for NaN."""
    lengths = np.linalg.norm(pairs, axis=2)
    cosine = (pairs[:, 0] * pairs[:, 1]).sum(axis=1)
    close = np.abs(lengths - 1.0) <= ORIENTATION_TOLERANCE
    return bool(close.all() and (np.abs(cosine) <= ORIENTATION_TOLERANCE).all())


def _positions(planes: Sequence[SliceHeader]) -> Float64[np.ndarray, "N 3"]:
    return np.array([p.position_mm for p in planes], dtype=np.float64)


def _gaps(planes: Planes) -> Float64[np.ndarray, " N-1"]:
    axes = _axes(planes)
    assert axes is not None
    return np.diff(_positions(planes) @ axes[2])


def _tolerance(spacing_mm: float) -> float:
    return max(SPACING_TOLERANCE * spacing_mm, POSITION_TOLERANCE_MM)


def _repeated(gaps: Float64[np.ndarray, " N"]) -> tuple[Finding, ...]:
    count = int((gaps < min(POSITION_TOLERANCE_MM, 0.5 * float(gaps.max()))).sum())
    count = len(gaps) if gaps.max() <= 0 else count
    if not count:
        return ()
    return (
        refusal(
            Code.DUPLICATE_SLICES,
            f"{count} slices lie where another slice already lies, expected one slice "
            "per position; separate the reconstructions or time points",
        ),
    )


def _uneven(gaps: Float64[np.ndarray, " N"]) -> list[Finding]:
    typical = float(np.median(gaps))
    off = np.abs(gaps - typical) > _tolerance(typical)
    if not off.any():
        return []
    multiples = gaps[off] / typical
    holes = np.abs(multiples - np.rint(multiples)) <= 0.05
    if holes.all() and (np.rint(multiples) >= 2).all():
        missing = int((np.rint(multiples) - 1).sum())
        return [
            refusal(
                Code.MISSING_SLICES,
                f"{missing} slices are missing in {int(off.sum())} gaps of a series "
                f"with {typical:.4g} mm spacing, expected none; repeat the export",
            )
        ]
    return [
        refusal(
            Code.NON_UNIFORM_SPACING,
            f"gaps between slices run from {gaps.min():.4g} to {gaps.max():.4g} mm, "
            "expected one spacing within 1 %; use an evenly reconstructed series",
        )
    ]


def _sheared(planes: Planes, gaps: Float64[np.ndarray, " N"]) -> list[Finding]:
    """Positions that drift sideways as they go along the normal."""
    axes = _axes(planes)
    assert axes is not None
    steps = np.diff(_positions(planes), axis=0)
    drift = np.linalg.norm(steps - gaps[:, None] * axes[2], axis=1)
    if float(drift.max()) <= 2 * _tolerance(float(np.median(gaps))):
        return []
    angle = float(np.degrees(np.arctan2(drift, gaps)).max())
    return [_tilt_finding(f"slices are shifted sideways, by {angle:.1f} degrees")]


def _tilt_finding(what: str) -> Finding:
    return refusal(
        Code.GANTRY_TILT,
        f"{what}, expected slices stacked along their normal; "
        "use a series that was reformatted without tilt",
    )


def _mixed(
    planes: Planes, code: Code, what: str, of: Callable[[SliceHeader], object]
) -> Finding | None:
    counts = Counter(of(p) for p in planes)
    if len(counts) < 2:
        return None
    sizes = ", ".join(str(n) for n in sorted(counts.values(), reverse=True)[:5])
    return refusal(
        code,
        f"{len(counts)} values of {what} in one series ({sizes} slices), expected one; "
        "export them as separate series",
    )


def _matrix(plane: SliceHeader) -> tuple[object, ...]:
    size = None if plane.pixels is None else (plane.pixels.rows, plane.pixels.columns)
    spacing = plane.pixel_spacing_mm
    return size, None if spacing is None else tuple(round(s, 4) for s in spacing)


def _orientation_finding(planes: Planes) -> Finding | None:
    known = [p.orientation for p in planes if p.orientation is not None]
    cosines = np.array(known, dtype=np.float64).reshape(-1, 2, 3)
    if len(known) < len(planes) or not _is_orthonormal(cosines):
        return refusal(
            Code.BAD_ORIENTATION,
            "ImageOrientationPatient is absent or not two perpendicular unit vectors, "
            "expected one per slice; export the original images",
        )
    apart = np.abs(cosines - cosines[0]).max(axis=(1, 2)) > ORIENTATION_TOLERANCE
    if not apart.any():
        return None
    return refusal(
        Code.MIXED_ORIENTATION,
        f"{int(apart.sum())} of {len(planes)} slices are oriented unlike the first, "
        "expected one orientation; export them as separate series",
    )


def _finite(values: Sequence[float]) -> bool:
    return bool(np.isfinite(values).all())


def _is_spacing(spacing: tuple[float, float] | None) -> bool:
    return spacing is not None and _finite(spacing) and min(spacing) > 0
