"""Scanners and hospitals: what makes the same patient look different elsewhere.

A scanner turns a noise-free phantom into what a reconstruction would show: blur or
overshoot of its kernel, noise with that kernel's grain (correlated for soft kernels,
bristly for sharp ones), more of it where the rays cross more tissue. Four hospitals
differ as real ones do: maker, kernel, dose, slice thickness, pixel size, file coding,
number of patients and which nodules they see.

Makers are named as on real files, because intake and harmonisation look at those words;
every model name says "Phantom", so that no file can be taken for a real one.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from scipy import ndimage

from common.volume import Grid, Volume
from deploy.phantom.anatomy import Anatomy
from deploy.phantom.nodules import NoduleMix


@dataclass(frozen=True)
class Scanner:
    """One scanner with the protocol its hospital uses."""

    manufacturer: str = "GE MEDICAL SYSTEMS"
    """Manufacturer (0008,0070)."""
    model: str = "Phantom 64"
    """ManufacturerModelName (0008,1090)."""
    kernel: str = "STANDARD"
    """ConvolutionKernel (0018,1210)."""
    sharpness: float = 0.0
    """-1 blurs by a pixel or so, 0 leaves alone, 1 overshoots as bone kernels do."""
    noise_hu: float = 15.0
    """Standard deviation of the noise, mean over soft tissue."""
    slice_thickness_mm: float = 3.0
    """SliceThickness; slices are as far apart."""
    pixel_spacing_mm: float = 2.75
    """PixelSpacing, both ways."""
    matrix: int = 128
    """Rows and Columns."""
    slices: int = 96
    """How many slices cover the chest."""
    transfer_syntax: UID = ExplicitVRLittleEndian
    """How pixels are coded."""
    signed: bool = True
    """PixelRepresentation 1 with intercept 0, or 0 with intercept -1024."""

    @property
    def vendor(self) -> str:
        """The maker's short name: GE, Siemens, Philips, Toshiba."""
        first = self.manufacturer.split()[0]
        return first if len(first) < 3 else first.capitalize()


@dataclass(frozen=True)
class Hospital:
    """A scanner, its patients, and how its archive exports."""

    name: str
    """Short lower-case name; becomes the folder's name."""
    scanner: Scanner
    """What it scans with."""
    patients: int
    """How many there are unless asked otherwise."""
    anatomy: Anatomy = field(default_factory=Anatomy)
    """Who its patients are."""
    dicomdir: bool = False
    """Whether the export has a DICOMDIR, as from a CD, with 8.3 names."""
    fractional: bool = False
    """Whether its SEG objects are fractional in place of binary ones."""


HOSPITALS: tuple[Hospital, ...] = (
    Hospital(
        "north",
        Scanner(noise_hu=22.0, pixel_spacing_mm=2.9),
        patients=8,
        anatomy=Anatomy(contrast=0.2),
    ),
    Hospital(
        "east",
        Scanner(
            manufacturer="SIEMENS",
            model="Phantom Definition",
            kernel="B30f",
            sharpness=-0.7,
            noise_hu=12.0,
            slice_thickness_mm=2.5,
            pixel_spacing_mm=2.8,
            slices=104,
            matrix=132,
            transfer_syntax=JPEGLSLossless,
            signed=False,
        ),
        patients=8,
        anatomy=Anatomy(contrast=0.6, nodules=NoduleMix(contrast_hu=-15.0)),
    ),
    Hospital(
        "south",
        Scanner(
            manufacturer="Philips",
            model="Phantom Brilliance",
            kernel="C",
            sharpness=-0.2,
            noise_hu=17.0,
            pixel_spacing_mm=2.9,
            transfer_syntax=RLELossless,
        ),
        patients=8,
        anatomy=Anatomy(
            contrast=0.1, nodules=NoduleMix((1, 2), (10.0, 30.0), malignant=0.65)
        ),
        dicomdir=True,
    ),
    Hospital(
        "west",
        Scanner(
            manufacturer="TOSHIBA",
            model="Phantom Aquilion",
            kernel="FC51",
            sharpness=0.8,
            noise_hu=36.0,
            pixel_spacing_mm=3.0,
            matrix=124,
            transfer_syntax=JPEG2000Lossless,
            signed=False,
        ),
        patients=8,
        anatomy=Anatomy(
            contrast=0.3, nodules=NoduleMix((1, 4), (8.0, 20.0), malignant=0.3)
        ),
        fractional=True,
    ),
)
"""Four hospitals, four makers, four ways to code pixels."""

SIZES: dict[str, tuple[float, float, int]] = {
    "tiny": (0.3, 0.5, 24),
    "small": (0.6, 1.0, 110),
    "full": (1.0, 1.0, 170),
}
"""Share of voxels along an axis, size of the patients, tips of each vessel tree."""


def axial_grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Grid:
    """An axial grid in standard order round a point: D, H, W along +z, +y, +x."""
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = spacing_mm
    middle = (np.asarray(shape) - 1.0) / 2.0
    affine[:3, 3] = np.asarray(centre_mm) - affine[:3, :3] @ middle
    affine[3, 3] = 1.0
    return Grid(shape, affine)


def acquire(volume: Volume, scanner: Scanner, rng: np.random.Generator) -> Volume:
    """What the scanner shows of noise-free tissue.

    Args:
        volume: HU on the grid the scanner reconstructs; H and W are its image plane.
        scanner: Its kernel and noise.
        rng: Noise; spent in voxel order.

    Returns:
        Whole HU in [-1024, 3071], float32.
    """
    hu = volume.array.astype(np.float32, copy=True)
    noise = grain(rng, volume.grid.shape, scanner.sharpness)
    if scanner.sharpness > 0:
        soft = _blur(hu, 0.8)
        hu += np.float32(0.9 * scanner.sharpness) * (hu - soft)
    elif scanner.sharpness < 0:
        hu = _blur(hu, -0.9 * scanner.sharpness)
    noise *= _noise_map(volume.array) * np.float32(scanner.noise_hu)
    hu += noise
    return Volume(np.clip(np.rint(hu), -1024.0, 3071.0), volume.grid)


def grain(
    rng: np.random.Generator, shape: tuple[int, int, int], sharpness: float
) -> Float32[np.ndarray, "D H W"]:
    """Noise of unit variance with the texture of a kernel, correlated in the plane."""
    white = rng.standard_normal(shape, dtype=np.float32)
    if sharpness > 0:
        white -= np.float32(0.85 * sharpness) * _blur(white, 0.9)
    else:
        white = _blur(white, 0.55 - 0.5 * sharpness)
    white *= np.float32(1.0) / white.std()
    return white


def _blur(
    array: Float32[np.ndarray, "D H W"], sigma: float
) -> Float32[np.ndarray, "D H W"]:
    """Gaussian over H and W by a short kernel."""
    reach = 2 if sigma < 0.9 else 3
    tap = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    tap /= tap.sum()
    once = ndimage.correlate1d(array, tap, axis=2, mode="nearest")
    out: Float32[np.ndarray, "D H W"] = ndimage.correlate1d(
        once, tap, axis=1, mode="nearest"
    )
    return out


def _noise_map(hu: Float32[np.ndarray, "D H W"]) -> Float32[np.ndarray, "D H W"]:
    """Relative noise, 1 on average in tissue; grows with what rows and columns cross.

    An attenuation integral would do the same at far higher cost; what matters is that
    shoulders are noisier than lungs, and air round the body quieter.
    """
    dense = np.clip((hu + 1000.0) * np.float32(1e-3), 0.0, 2.0)
    rows, columns = dense.mean(axis=2), dense.mean(axis=1)
    path = rows[:, :, None] * np.float32(1.2) + columns[:, None, :] * np.float32(0.6)
    out: Float32[np.ndarray, "D H W"] = np.exp(
        np.minimum(path, np.float32(1.6)) * np.float32(1.3)
    )
    tissue = out[dense > 0.8]
    out /= tissue.mean() if tissue.size else np.float32(1.0)
    return out
