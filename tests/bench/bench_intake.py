"""DICOM series to HU volume with all checks, against SimpleITK's bare series reader.

`python tests/bench/bench_intake.py` writes one chest-sized series per transfer syntax
into a temporary folder and times both readers in turn, so that whatever else the
machine does hits both. Ours does the whole road: list the folder, parse every head,
group, check geometry, decode, rescale, check values, digest. SimpleITK gets the file
names, already in the right order, and nothing else to do. Decoder processes are started
before the clock, as they are once per intake.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from client.intake.dicom import read_dicom
from client.intake.pool import DecodeLimits, DecoderPool

Read = TypeVar("Read")
SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "J2K": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
    "RLE": RLELossless,
}


def write_series(folder: Path, slices: int, syntax: str) -> list[str]:
    """A 512 x 512 body with scanner-like noise; paths in the order of D."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:512j, -1:1:512j]
    body = np.where((rows / 0.6) ** 2 + (columns / 0.85) ** 2 < 1, 40.0, -1000.0)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    noise = ndimage.gaussian_filter(rng.normal(0, 60, (slices, 512, 512)), (0, 1, 1))
    paths = []
    for d in range(slices):
        image = Dataset()
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = frame
        image.Modality, image.PatientID = "CT", "P1"
        image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [-180, -180, 1.5 * d]
        image.PixelSpacing, image.SliceThickness = [0.7, 0.7], 1.5
        image.Rows = image.Columns = 512
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
        image.PixelRepresentation = 0
        image.RescaleSlope, image.RescaleIntercept = 1, -1024
        stored = np.clip(np.rint(body + noise[d]) + 1024, 0, 4095).astype("<u2")
        image.PixelData = stored.tobytes()
        if syntax != ExplicitVRLittleEndian:
            image.compress(syntax, generate_instance_uid=False)
        path = folder / f"IM{d:04d}"
        image.save_as(path, enforce_file_format=True)
        paths.append(str(path))
    return paths


def timed(action: Callable[[], Read]) -> tuple[float, Read]:
    """Seconds of wall time, and what was read."""
    start = time.perf_counter()
    volume = action()
    return time.perf_counter() - start, volume


def compare(folder: Path, paths: list[str], pool: DecoderPool, repeats: int) -> str:
    """One line of the table: medians and their ratio."""

    def ours() -> np.ndarray:
        [(row, case)] = read_dicom(folder, pool=pool)
        assert case is not None, row.findings
        return case.volume.array

    def theirs() -> SimpleITK.Image:
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(paths)
        return reader.Execute()

    ours(), theirs()
    mine, itk = [], []
    for _ in range(repeats):
        seconds, volume = timed(ours)
        mine.append(seconds)
        seconds, other = timed(theirs)
        itk.append(seconds)
        assert np.array_equal(volume, SimpleITK.GetArrayFromImage(other))
    first, second = statistics.median(mine), statistics.median(itk)
    return f"{first:8.3f} s {second:8.3f} s {first / second:8.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{options.slices} slices of 512 x 512, median of {options.repeats}")
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start")
    print(f"{'':14}{'intake':>10} {'SimpleITK':>10} {'ratio':>8}")
    with DecoderPool(DecodeLimits()) as pool:
        for name, syntax in SYNTAXES.items():
            with tempfile.TemporaryDirectory() as folder:
                paths = write_series(Path(folder), options.slices, syntax)
                line = compare(Path(folder), paths, pool, options.repeats)
                print(f"{name:14}{line}", flush=True)


if __name__ == "__main__":
    main()
