"""Phantoms as DICOM: CT series and segmentations, as valid as a scanner's own.

Position and orientation are written straight from the volume's affine, so sagittal,
flipped and oblique series come from the same ten lines as axial ones. UIDs and dates
come from the seed: two runs give the same files.

Not covered here: broken series (`deploy.phantom.awkward`).
"""

import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import highdicom as hd
import numpy as np
import pydicom
from jaxtyping import Bool, Int16, UInt16
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.sr.codedict import codes
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
)
from pydicom.valuerep import DSfloat

from common.volume import Volume
from deploy.phantom.identity import DATE, IMPLEMENTATION_UID, TIME, uid_of
from deploy.phantom.scanner import Scanner

SegKind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
"""Flavours of DICOM SEG (0062,0001)."""


def write_series(
    folder: Path,
    volume: Volume,
    *,
    scanner: Scanner,
    patient: str,
    seed: int,
    transfer_syntax: UID | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Write a volume as one CT series.

    Args:
        folder: Made if absent.
        volume: HU; one file per step along D.
        scanner: Goes into the tags; its number format codes the pixels.
        patient: PatientID; the name follows from it.
        seed: With the patient, decides all UIDs.
        transfer_syntax: None takes the scanner's.
        names: File names along D; None numbers them.

    Returns:
        The files, in order of D.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = names or [f"{d + 1:04d}.dcm" for d in range(volume.grid.shape[0])]
    syntax = transfer_syntax or scanner.transfer_syntax
    header = series_header(volume, scanner, patient, seed)
    stored = stored_values(volume, scanner)
    shared = {
        id(element): _element_bytes(element, syntax.is_implicit_VR)
        for element in header
    }
    paths = []
    for d, name in enumerate(names):
        slice_ = slice_dataset(header, volume, stored, d)
        encode(slice_, syntax)
        (folder / name).write_bytes(file_bytes(slice_, shared))
        paths.append(folder / name)
    return paths


def file_bytes(
    ds: Dataset, shared: Mapping[int, bytes] = MappingProxyType({})
) -> bytes:
    """A slice as `Dataset.save_as` would write it, at a third of the time.

    Args:
        ds: The slice with its file meta.
        shared: Bytes of the header's elements by identity: most elements of a slice
            are the header's own objects, so they are encoded once a series.
    """
    syntax = ds.file_meta.TransferSyntaxUID
    body = b"".join(
        shared.get(id(element)) or _element_bytes(element, syntax.is_implicit_VR)
        for element in ds
    )
    if syntax.is_deflated:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)  # no header: PS3.5 A.5
        body = deflate.compress(body) + deflate.flush()
        body += bytes(len(body) % 2)
    return file_start(ds.file_meta) + body


def file_start(meta: FileMetaDataset) -> bytes:
    """Preamble and file meta information: all that comes before the data set."""
    file = DicomBytesIO(b"")
    file.is_implicit_VR, file.is_little_endian = False, True
    write_file_meta_info(file, meta)
    return bytes(128) + b"DICM" + file.getvalue()


def _element_bytes(element: DataElement, implicit_vr: bool) -> bytes:
    file = DicomBytesIO(b"")
    file.is_implicit_VR, file.is_little_endian = implicit_vr, True
    write_data_element(file, element, ["utf-8"])
    return file.getvalue()


def stored_values(
    volume: Volume, scanner: Scanner
) -> Int16[np.ndarray, "D H W"] | UInt16[np.ndarray, "D H W"]:
    """HU as the scanner stores them: signed as they are, or unsigned from -1024."""
    whole = np.rint(volume.array)
    if scanner.signed:
        return whole.astype("<i2")
    return (np.clip(whole, -1024.0, 3071.0) + 1024.0).astype("<u2")


def series_header(volume: Volume, scanner: Scanner, patient: str, seed: int) -> Dataset:
    """All that the slices of a series have in common."""
    ds = Dataset()
    _add_subject(ds, patient, seed)
    ds.SOPClassUID = CTImageStorage
    ds.Modality = "CT"
    ds.SeriesInstanceUID = uid_of(seed, patient, "series")
    ds.FrameOfReferenceUID = uid_of(seed, patient, "frame of reference")
    ds.SeriesNumber, ds.AcquisitionNumber = 2, 1
    ds.SeriesDescription = f"Phantom {scanner.slice_thickness_mm} {scanner.kernel}"
    ds.ProtocolName, ds.BodyPartExamined = "Phantom chest", "CHEST"
    ds.PatientPosition, ds.PositionReferenceIndicator = "HFS", ""
    ds.Manufacturer, ds.ManufacturerModelName = scanner.manufacturer, scanner.model
    ds.SoftwareVersions, ds.DeviceSerialNumber = "phantom", "0"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImageComments = "Synthetic image, no patient"
    ds.KVP, ds.ConvolutionKernel = "120", scanner.kernel
    ds.SliceThickness = number(scanner.slice_thickness_mm)
    ds.ImageOrientationPatient = [number(c) for c in _in_plane(volume)]
    _, row_mm, column_mm = volume.spacing_mm
    ds.PixelSpacing = [number(row_mm), number(column_mm)]
    _add_pixel_format(ds, volume, scanner)
    return ds


def _add_subject(ds: Dataset, patient: str, seed: int) -> None:
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = "Phantom^" + patient.title().replace("-", " ")
    ds.PatientID, ds.PatientBirthDate, ds.PatientSex = patient, "", "O"
    ds.StudyInstanceUID = uid_of(seed, patient, "study")
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "", ""
    ds.StudyDescription = "Phantom"
    for event in ("Study", "Series", "Acquisition", "Content"):
        setattr(ds, f"{event}Date", DATE)
        setattr(ds, f"{event}Time", TIME)


def _add_pixel_format(ds: Dataset, volume: Volume, scanner: Scanner) -> None:
    _, ds.Rows, ds.Columns = volume.grid.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 16 if scanner.signed else 12
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits, bits - 1
    ds.PixelRepresentation = int(scanner.signed)
    ds.RescaleSlope, ds.RescaleType = "1", "HU"
    ds.RescaleIntercept = "0" if scanner.signed else "-1024"
    ds.WindowCenter, ds.WindowWidth = "-550", "1500"


def _in_plane(volume: Volume) -> list[float]:
    """Direction of W (along a row), then of H (down a column): C.7.6.2.1.1."""
    axes = volume.grid.affine[:3, :3] / np.asarray(volume.spacing_mm)
    return [float(c) for c in (*axes[:, 2], *axes[:, 1])]


def number(value: float) -> DSfloat:
    """A decimal string that fits its 16 characters."""
    return DSfloat(float(value) + 0.0, auto_format=True)


def slice_dataset(
    header: Dataset, volume: Volume, stored: np.ndarray, d: int
) -> Dataset:
    """One slice: the header with position, number and raw pixels. Shares no state."""
    ds = Dataset()
    ds.update(header)
    place = volume.grid.affine @ (d, 0.0, 0.0, 1.0)
    ds.ImagePositionPatient = [number(c) for c in place[:3]]
    normal = np.cross(*np.reshape(_in_plane(volume), (2, 3)))
    ds.SliceLocation = number(float(place[:3] @ normal))
    ds.InstanceNumber = d + 1
    ds.SOPInstanceUID = uid_of(header.SeriesInstanceUID, "slice", d)
    ds.PixelData = stored[d].tobytes()
    ds["PixelData"].VR = "OW"
    return ds


def encode(ds: Dataset, syntax: UID) -> None:
    """Give the slice its file meta and code its raw pixels, in place."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    raw = ExplicitVRLittleEndian if syntax.is_encapsulated else syntax
    meta.TransferSyntaxUID = raw
    ds.file_meta = meta
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)


def write_seg(
    path: Path,
    series_paths: Sequence[Path],
    segments: Sequence[tuple[str, Bool[np.ndarray, "D H W"]]],
    *,
    kind: SegKind = "BINARY",
) -> Path:
    """Write masks as one DICOM SEG that refers to the slices it has marks on.

    Args:
        path: The file to write.
        series_paths: The series' files in order of D.
        segments: Name and mask of each, on the series' grid; at least one not empty.
        kind: BINARY is what everybody reads; FRACTIONAL stores shares of a voxel;
            LABELMAP is the newest and needs masks that do not overlap.
    """
    pixels: np.ndarray = np.stack([mask for _, mask in segments], axis=-1)
    marked = np.nonzero(pixels.any(axis=(1, 2, 3)))[0]
    rows = slice(marked[0], marked[-1] + 1)
    images = [pydicom.dcmread(p, stop_before_pixels=True) for p in series_paths[rows]]
    series, pixels = images[0].SeriesInstanceUID, pixels[rows]
    if kind == "LABELMAP":
        pixels = (pixels * np.arange(1, len(segments) + 1)).max(axis=-1)
    dtype = np.float32 if kind == "FRACTIONAL" else np.uint8
    names = [name for name, _ in segments]
    with warnings.catch_warnings():
        # highdicom warns of tags that a phantom leaves empty.
        warnings.simplefilter("ignore")
        seg = hd.seg.Segmentation(
            source_images=images,
            pixel_array=pixels.astype(dtype),
            segmentation_type=hd.seg.SegmentationTypeValues(kind),
            segment_descriptions=_descriptions(series, names),
            series_instance_uid=uid_of(series, "seg series"),
            series_number=300,
            sop_instance_uid=uid_of(series, "seg"),
            instance_number=1,
            manufacturer="FedCT",
            manufacturer_model_name="Phantom",
            software_versions="1",
            device_serial_number="0",
            series_description="Nodules (phantom, research use only)",
            content_label="NODULES",
        )
    _fix_chance(seg, series)
    seg.save_as(path, enforce_file_format=True)
    return path


def _descriptions(series: str, names: Sequence[str]) -> list[hd.seg.SegmentDescription]:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="phantom", version="1", family=codes.cid7162.ArtificialIntelligence
    )
    return [
        hd.seg.SegmentDescription(
            segment_number=number_,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=uid_of(series, "nodule", name),
            tracking_id=name,
        )
        for number_, name in enumerate(names, start=1)
    ]


def _fix_chance(seg: Dataset, series: str) -> None:
    """Replace what highdicom takes from the clock and from chance."""
    organization = uid_of(series, "dimensions")
    for item in seg.DimensionOrganizationSequence:
        item.DimensionOrganizationUID = organization
    for item in seg.DimensionIndexSequence:
        item.DimensionOrganizationUID = organization
    for item in seg.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = DATE + TIME
    seg.ContentDate, seg.ContentTime = DATE, TIME
    seg.SeriesDate, seg.SeriesTime = DATE, TIME
    seg.InstanceCreationDate, seg.InstanceCreationTime = DATE, TIME
