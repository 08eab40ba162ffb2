"""Real label files, and CT headers at any angle to hang written labels on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from common.volume import Grid
from tests import real_ct


@pytest.fixture(scope="session")
def data() -> Path:
    return real_ct.data()


@pytest.fixture(scope="session")
def seg_data(data: Path) -> Path:
    return data / "dicom_seg" / "dcmqi_segmentations"


def grid_of(headers: Sequence[Dataset]) -> tuple[Grid, dict[str, int]]:
    """Grid of a series, and the D index of each SOPInstanceUID, from its headers."""
    cosines = np.array(headers[0].ImageOrientationPatient, dtype=float)
    normal = np.cross(cosines[:3], cosines[3:])
    ordered = sorted(
        headers, key=lambda h: float(np.dot(normal, h.ImagePositionPatient))
    )
    first, last = ordered[0], ordered[-1]
    origin = np.array(first.ImagePositionPatient, dtype=float)
    affine = np.eye(4)
    affine[:3, 0] = (np.array(last.ImagePositionPatient) - origin) / (len(ordered) - 1)
    affine[:3, 1] = cosines[3:] * float(first.PixelSpacing[0])
    affine[:3, 2] = cosines[:3] * float(first.PixelSpacing[1])
    affine[:3, 3] = origin
    shape = (len(ordered), first.Rows, first.Columns)
    return Grid(shape, affine), {
        str(header.SOPInstanceUID): d for d, header in enumerate(ordered)
    }


@pytest.fixture(scope="session")
def series_grid() -> Callable[[Path, str], tuple[Grid, dict[str, int]]]:
    """Reads the headers of a folder's CT files and returns their grid."""

    def read(folder: Path, pattern: str = "*") -> tuple[Grid, dict[str, int]]:
        files = sorted(folder.glob(pattern))
        return grid_of([pydicom.dcmread(f, stop_before_pixels=True) for f in files])

    return read


@pytest.fixture
def ct_images() -> Callable[[Grid], list[Dataset]]:
    """CT image headers with zero pixels on a grid, planes in the order of D."""

    def make(grid: Grid) -> list[Dataset]:
        depth, rows, columns = grid.shape
        row_mm, column_mm = grid.spacing_mm[1:]
        down = grid.affine[:3, 1] / row_mm
        right = grid.affine[:3, 2] / column_mm
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        images = []
        for d in range(depth):
            image = Dataset()
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID = CTImageStorage
            image.SOPInstanceUID = generate_uid()
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
            image.FrameOfReferenceUID = frame
            image.PatientID, image.PatientName = "P1", ""
            image.PatientBirthDate = image.PatientSex = ""
            image.StudyDate = image.StudyTime = image.StudyID = ""
            image.AccessionNumber = image.ReferringPhysicianName = ""
            image.Modality, image.InstanceNumber = "CT", d + 1
            image.PositionReferenceIndicator = ""
            image.Rows, image.Columns = rows, columns
            image.ImageOrientationPatient = [f"{v:.10f}" for v in (*right, *down)]
            position = (grid.affine @ [d, 0, 0, 1])[:3]
            image.ImagePositionPatient = [f"{v:.8f}" for v in position]
            image.PixelSpacing = [row_mm, column_mm]
            image.SliceThickness = grid.spacing_mm[0]
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.BitsAllocated = image.BitsStored = 16
            image.HighBit, image.PixelRepresentation = 15, 1
            image.PixelData = np.zeros((rows, columns), np.int16).tobytes()
            images.append(image)
        return images

    return make
