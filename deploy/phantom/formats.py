"""Phantoms as researchers exchange them: pictures, NIfTI pairs, MetaImages.

The pictures have the layout of nodule collections cut from LIDC-IDRI (96x96 grey PNG
round each nodule, a mask, `manifest.csv` by vendor with diameter and malignancy), the
MetaImages that of LUNA16 (`.mhd` with `.raw`, nodules as rows of `annotations.csv`), so
that plans for those can be tried without any patient.
"""

import csv
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from jaxtyping import Float32, UInt8
from PIL import Image

from common.volume import Grid, Volume
from deploy.phantom.anatomy import Nodule, Patient, Phantom, imagine, render
from deploy.phantom.hospital import scan, sized
from deploy.phantom.identity import uid_of
from deploy.phantom.scanner import HOSPITALS, Hospital, acquire, axial_grid

COLUMNS = (
    "image",
    "mask",
    "patient",
    "nodule",
    "slice",
    "is_central",
    "vendor",
    "scanner_model",
    "n_raters",
    "diameter_mm",
    "malignancy",
)
"""Of `manifest.csv`, in the order of the collections it imitates."""
PICTURE, PIXEL_MM, STEP_MM = 96, 0.7, 2.5
"""Pixels a side, their size, and the distance of neighbouring pictures."""
WINDOW_HU = (-1000.0, 400.0)
"""Black and white of the 8-bit pictures."""


def write_images(
    out: Path,
    *,
    hospitals: Sequence[Hospital] = HOSPITALS,
    patients: int = 10,
    seed: int = 0,
) -> None:
    """Pictures of every nodule: the central slice and both neighbours.

    Args:
        out: Gets `images/`, `masks/` and `manifest.csv`.
        hospitals: Column `vendor` tells them apart.
        patients: In each hospital.
        seed: Decides everything.
    """
    for folder in ("images", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with (out / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for hospital in hospitals:
            for number in range(patients):
                table.writerows(_write_pictures(out, hospital, number, seed))


def _write_pictures(
    out: Path, hospital: Hospital, number: int, seed: int
) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng([seed, zlib.crc32(hospital.name.encode()), number])
    patient = imagine(rng, hospital.anatomy)
    name = f"PHANTOM-{hospital.name.upper()}-{number + 1:04d}"
    for index in range(len(patient.nodules)):
        grey, mask, nodule = _cut_out(patient, index, hospital, rng)
        raters = int(rng.integers(2, 5))
        score = _malignancy(nodule.malignant, raters, rng)
        for position in range(3):
            if not mask[position].any():
                continue
            file = f"{name}_n{index:02d}_s{position:02d}.png"
            Image.fromarray(grey[position]).save(out / "images" / file)
            Image.fromarray(mask[position]).save(out / "masks" / file)
            yield {
                "image": f"images/{file}",
                "mask": f"masks/{file}",
                "patient": name,
                "nodule": index,
                "slice": position,
                "is_central": int(position == 1),
                "vendor": hospital.scanner.vendor,
                "scanner_model": hospital.scanner.model,
                "n_raters": raters,
                "diameter_mm": f"{nodule.diameter_mm:.3f}",
                "malignancy": score,
            }


def _cut_out(
    patient: Patient, index: int, hospital: Hospital, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "3 H W"], UInt8[np.ndarray, "3 H W"], Nodule]:
    """Three pictures round one nodule, with its mask as 0 and 255.

    The middle of the picture is off the nodule's by up to two pixels, as in crops that
    were centred on outlines drawn by hand.
    """
    centre = np.asarray(patient.nodules[index].centre) * patient.scale
    centre[:2] += rng.uniform(-2.0, 2.0, 2) * PIXEL_MM
    grid = axial_grid(
        (3, PICTURE, PICTURE),
        (STEP_MM, PIXEL_MM, PIXEL_MM),
        (float(centre[0]), float(centre[1]), float(centre[2])),
    )
    phantom = render(patient, grid)
    hu = acquire(phantom.volume, hospital.scanner, rng).array
    nodule = phantom.nodules[index]
    return _windowed(hu), nodule.mask.astype(np.uint8) * np.uint8(255), nodule


def _windowed(hu: Float32[np.ndarray, "D H W"]) -> UInt8[np.ndarray, "D H W"]:
    low, high = WINDOW_HU
    grey = (hu - low) * (255.0 / (high - low))
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _malignancy(malignant: bool, raters: int, rng: np.random.Generator) -> float:
    """Mean of the raters' scores 1-5; never 3, so that each nodule has a side."""
    scores = rng.integers(3, 6, raters) if malignant else rng.integers(1, 4, raters)
    scores[0] = 4 if malignant else 2
    return float(scores.mean())


def write_nifti(
    out: Path, *, patients: int = 3, seed: int = 0, size: str = "small"
) -> None:
    """Pairs `images/NAME.nii.gz` and `labels/NAME.nii.gz` (0, or 1 in a nodule)."""
    for folder in ("images", "labels"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for phantom, name in _patients(patients, seed, size):
        label = np.any([nodule.mask for nodule in phantom.nodules], axis=0)
        mask = Volume(label.astype(np.uint8), phantom.volume.grid)
        hu = Volume(phantom.volume.array.astype(np.int16), phantom.volume.grid)
        nib.save(nifti_image(hu), out / "images" / f"{name}.nii.gz")
        nib.save(nifti_image(mask), out / "labels" / f"{name}.nii.gz")


def nifti_image(volume: Volume) -> nib.Nifti1Image:
    """The volume with axes W, H, D and an affine to RAS, as NIfTI has them."""
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine = (to_ras @ volume.grid.affine)[:, [2, 1, 0, 3]]
    return nib.Nifti1Image(volume.array.transpose(2, 1, 0), affine)


def write_metaimage(
    out: Path, *, patients: int = 3, seed: int = 0, size: str = "small"
) -> None:
    """`UID.mhd` with `UID.raw`, and `annotations.csv` with each nodule's ball."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "annotations.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm"))
        for phantom, name in _patients(patients, seed, size):
            uid = uid_of(seed, name, "series")
            SimpleITK.WriteImage(metaimage(phantom.volume), str(out / f"{uid}.mhd"))
            for nodule in phantom.nodules:
                table.writerow((uid, *nodule.centre_mm, nodule.diameter_mm))


def metaimage(volume: Volume) -> SimpleITK.Image:
    """The volume as ITK has it: LPS, spacing along W, H, D."""
    grid: Grid = volume.grid
    image = SimpleITK.GetImageFromArray(volume.array.astype(np.int16))
    image.SetSpacing(grid.spacing_mm[::-1])
    axes = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    image.SetDirection(axes[:, ::-1].ravel().tolist())
    image.SetOrigin(grid.affine[:3, 3].tolist())
    return image


def _patients(count: int, seed: int, size: str) -> Iterator[tuple[Phantom, str]]:
    hospital = sized(HOSPITALS[0], size)
    return (scan(hospital, number, seed) for number in range(count))
