"""A hospital's export on disk: many patients, as an archive hands them out.

Files lie in nested folders with opaque names, without extension and not in slice order,
and segmentations lie among them, because that is what intake meets. One hospital's
export is a CD: 8.3 names and a DICOMDIR.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UsageError
from common.volume import Grid
from deploy.phantom.anatomy import Anatomy, Phantom, imagine, render
from deploy.phantom.dicom import SegKind, write_seg, write_series
from deploy.phantom.dicomdir import write_dicomdir
from deploy.phantom.identity import uid_of
from deploy.phantom.scanner import (
    HOSPITALS,
    SIZES,
    Hospital,
    Scanner,
    acquire,
    axial_grid,
)

Progress = Callable[[str, int, int], None]
"""Told after each patient: hospital, patients done, patients in all."""


def write_hospitals(
    out: Path,
    *,
    hospitals: Sequence[Hospital] = HOSPITALS,
    patients: int | None = None,
    seed: int = 0,
    size: str = "full",
    progress: Progress | None = None,
) -> None:
    """Write several hospitals, each into the folder of its name.

    Args:
        out: Parent of the hospitals' folders; made if absent.
        hospitals: Which.
        patients: In each; None leaves it to the hospital.
        seed: Decides everything.
        size: "tiny", "small" or "full": voxels along each axis.
        progress: Called after each patient.

    Raises:
        UsageError: The size is unknown or a hospital's folder is not empty.
    """
    for hospital in hospitals:
        chosen = replace(hospital, patients=patients) if patients else hospital
        folder = out / hospital.name
        write_hospital(folder, chosen, seed=seed, size=size, progress=progress)


def write_hospital(
    out: Path,
    hospital: Hospital,
    *,
    seed: int,
    size: str = "full",
    progress: Progress | None = None,
) -> None:
    """Write one hospital's patients: a CT series and its SEG each.

    Args:
        out: Its folder; must be empty or absent.
        hospital: Scanner, patients, ways.
        seed: With the hospital's name, decides everything.
        size: "tiny", "small" or "full".
        progress: Called after each patient.

    Raises:
        UsageError: The size is unknown or the folder is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise UsageError(
            "phantom writer got a folder that is not empty, "
            "expected a new one; choose another or remove it"
        )
    fitted = sized(hospital, size)
    out.mkdir(parents=True, exist_ok=True)
    for number in range(hospital.patients):
        phantom, patient = scan(fitted, number, seed)
        _write_patient(out, fitted, phantom, patient, seed)
        if progress is not None:
            progress(hospital.name, number + 1, hospital.patients)
    if hospital.dicomdir:
        files = sorted(p for p in (out / "DICOM").rglob("*") if p.is_file())
        write_dicomdir(out, [(path, path.relative_to(out)) for path in files])


def sized(hospital: Hospital, size: str) -> Hospital:
    """The hospital with fewer voxels, smaller patients or both.

    "small" sees the same chest in coarser voxels; "tiny" has patients of half the size
    in still coarser ones, so that a nodule keeps a few voxels.
    """
    if size not in SIZES:
        raise UsageError(
            f"phantom writer got size {size!r}, expected one of {', '.join(SIZES)}"
        )
    share, scale, branches = SIZES[size]
    scanner = hospital.scanner
    coarser = scale / share
    smaller = replace(
        scanner,
        matrix=8 * max(1, round(scanner.matrix * share / 8)),
        slices=max(8, round(scanner.slices * share)),
        pixel_spacing_mm=round(scanner.pixel_spacing_mm * coarser, 4),
        slice_thickness_mm=round(scanner.slice_thickness_mm * coarser, 4),
    )
    anatomy = replace(hospital.anatomy, scale=scale, branches=branches)
    return replace(hospital, scanner=smaller, anatomy=anatomy)


def scan(hospital: Hospital, number: int, seed: int) -> tuple[Phantom, str]:
    """One patient of a hospital as its scanner sees it, and the PatientID.

    Patients whose nodules all fall between voxels are drawn again, so every series has
    a label.
    """
    scanner = hospital.scanner
    rng = np.random.default_rng([seed, zlib.crc32(hospital.name.encode()), number])
    grid = scan_grid(scanner, hospital.anatomy)
    while True:
        phantom = render(imagine(rng, hospital.anatomy), grid)
        seen = tuple(n for n in phantom.nodules if n.mask.any())
        if seen:
            break
    volume = acquire(phantom.volume, scanner, rng)
    name = f"PHANTOM-{hospital.name.upper()}-{number + 1:03d}"
    return Phantom(volume, seen), name


def scan_grid(scanner: Scanner, anatomy: Anatomy) -> Grid:
    """The axial grid of a chest scan: both lungs with the top of the belly."""
    pixel = scanner.pixel_spacing_mm
    shape = (scanner.slices, scanner.matrix, scanner.matrix)
    centre = (0.0, 0.0, -8.0 * anatomy.scale)
    return axial_grid(shape, (scanner.slice_thickness_mm, pixel, pixel), centre)


def _write_patient(
    out: Path, hospital: Hospital, phantom: Phantom, patient: str, seed: int
) -> None:
    count = phantom.volume.grid.shape[0]
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    order = rng.permutation(count + 1)
    if hospital.dicomdir:
        folder = out / "DICOM" / f"PAT{zlib.crc32(patient.encode()) % 10**5:05d}"
        names = [f"IM{n:06d}" for n in order]
    else:
        key = f"{uid_of(seed, patient, 'folder')}"
        folder = out / key[5:9] / key[9:17] / key[17:25]
        names = [f"{zlib.crc32(f'{key}{n}'.encode()):08X}" for n in order]
    volume = phantom.volume
    paths = write_series(
        folder,
        volume,
        scanner=hospital.scanner,
        patient=patient,
        seed=seed,
        names=names[:count],
    )
    segments = [(nodule.name, nodule.mask) for nodule in phantom.nodules]
    kind: SegKind = "FRACTIONAL" if hospital.fractional else "BINARY"
    write_seg(folder / names[count], paths, segments, kind=kind)
