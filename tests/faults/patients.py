"""A few tiny patients per hospital as DICOM, and what must never leave with them.

Noise with a bright ball in it and a SEG of the ball: enough for intake and training,
written in a tenth of a second. Every name, number and UID of a patient is a needle.
"""

from pathlib import Path

import numpy as np
import pydicom

from common.volume import Volume
from deploy.phantom.dicom import write_seg, write_series
from deploy.phantom.scanner import Scanner, axial_grid

_SHAPE, _SPACING_MM = (16, 32, 32), (4.0, 4.0, 4.0)
_IDENTITY = (
    "PatientName",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
)


def write_patients(folder: Path, site: str, count: int) -> None:
    """Write patients, each a CT series and its SEG, below `folder`."""
    scanner = Scanner(matrix=_SHAPE[1], slices=_SHAPE[0], slice_thickness_mm=4.0)
    d, h, w = np.ogrid[: _SHAPE[0], : _SHAPE[1], : _SHAPE[2]]
    for number in range(count):
        patient = f"CANARY-{site.upper()}-PATIENT-{number + 1:04d}"
        rng = np.random.default_rng([number, *site.encode()])
        centre = rng.integers((5, 10, 10), (11, 22, 22))
        away = (d - centre[0]) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2
        ball = away < 16
        hu = rng.normal(-800.0, 20.0, _SHAPE).astype(np.float32) + 850.0 * ball
        volume = Volume(hu.astype(np.float32), axial_grid(_SHAPE, _SPACING_MM))
        where = folder / f"canary-folder-of-{patient.lower()}"
        names = [f"canary-file-{site}-{number}-{i}.dcm" for i in range(_SHAPE[0])]
        slices = write_series(
            where, volume, scanner=scanner, patient=patient, seed=number, names=names
        )
        write_seg(where / f"canary-seg-{site}-{number}", slices, [("nodule", ball)])


def needles(folder: Path) -> set[str]:
    """Every identity of the patients below `folder`, and every name on its disk."""
    found: set[str] = set()
    for path in folder.rglob("*"):
        found.add(path.name)
        if path.is_file():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            found |= {str(header.get(key, "")) for key in _IDENTITY} - {""}
    return found
