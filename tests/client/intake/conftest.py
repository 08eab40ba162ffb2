"""Small DICOM series with known voxels, written on the spot; real CT where it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from client.intake.dicom import read_dicom
from client.intake.pool import DecodeLimits, DecoderPool
from client.intake.verdict import Code, SeriesVerdict, Verdict
from common.case import IntakeCase
from tests import real_ct

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass
class Written:
    """A series as it was meant: HU in D H W order, and its data sets along D."""

    hu: np.ndarray
    images: list[Dataset]
    paths: list[Path]


@pytest.fixture(scope="session")
def data() -> Path:
    return real_ct.data()


@pytest.fixture(scope="session")
def pool() -> Iterator[DecoderPool]:
    with DecoderPool(DecodeLimits()) as kept:
        yield kept


@pytest.fixture
def read(pool: DecoderPool) -> Callable[..., list[tuple[SeriesVerdict, IntakeCase]]]:
    """All rows of a folder, with the cases."""

    def run(root: Path, **options):
        rows = list(read_dicom(root, pool=options.pop("pool", pool), **options))
        for row, case in rows:
            assert (case is None) == (row.verdict is Verdict.REFUSE)
        return rows

    return run


@pytest.fixture
def refusals(read) -> Callable[[Path], set[Code]]:
    """Codes that refuse the one image series of a folder; empty when it is accepted."""

    def run(root: Path) -> set[Code]:
        rows = [row for row, _ in read(root) if not row.series.startswith("files:")]
        assert len(rows) == 1, [row.series for row in rows]
        return {finding.code for finding in rows[0].findings if finding.refuses}

    return run


def _body(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """Air around soft tissue with noise: HU that pass for a body."""
    hu = np.random.default_rng(seed).integers(-60, 90, shape)
    hu[:, :2], hu[:, :, :3] = -1000, -1000
    return hu.astype(np.int16)


def _image(hu: np.ndarray, shift: int) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.Modality, image.PatientID = "CT", "P1"
    image.ConvolutionKernel = "B30f"
    image.PixelSpacing, image.SliceThickness = [0.7, 0.8], 2.5
    image.Rows, image.Columns = hu.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.PixelRepresentation = 0
    image.RescaleSlope, image.RescaleIntercept = 1, shift
    image.PixelData = (hu - shift).astype("<u2").tobytes()
    return image


@pytest.fixture
def write_series() -> Callable[..., Written]:
    """Writes a valid series; `edit(image, d)` may spoil each image before it is saved.

    `edit` returns False to leave an image out.
    """

    def write(
        folder: Path,
        *,
        slices: int = 5,
        size: tuple[int, int] = (24, 20),
        orientation: tuple[float, ...] = AXIAL,
        spacing_mm: float = 2.0,
        edit: Callable[[Dataset, int], bool | None] = lambda _image, _d: None,
        syntax: str | None = None,
        seed: int = 0,
        names: Callable[[int], str] = "IM{:04d}".format,
    ) -> Written:
        hu = _body((slices, *size), seed)
        study, series, frame = generate_uid(), generate_uid(), generate_uid()
        normal = np.cross(orientation[:3], orientation[3:])
        images, paths = [], []
        for d in range(slices):
            image = _image(hu[d], -1024)
            image.StudyInstanceUID, image.SeriesInstanceUID = study, series
            image.FrameOfReferenceUID, image.InstanceNumber = frame, d + 1
            image.ImageOrientationPatient = [round(float(v), 8) for v in orientation]
            position = np.array([-90.0, -80.0, 100.0]) + d * spacing_mm * normal
            image.ImagePositionPatient = [round(float(v), 6) for v in position]
            if edit(image, d) is False:
                continue
            if syntax is not None:
                image.compress(syntax, generate_instance_uid=False)
            path = folder / names(d)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save_as(path, enforce_file_format=True)
            images.append(image)
            paths.append(path)
        return Written(hu, images, paths)

    return write
