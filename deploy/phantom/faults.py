"""Faults of single series that intake must catch, each as one small edit.

An edit takes the slices of a sound series (raw pixels, not yet coded) and gives back
broken ones. The table says which verdict code is expected: the same codes that a
hospital will read, so the table doubles as a list of what real exports do wrong.

Not covered here: faults of files and folders (`deploy.phantom.awkward`).
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from client.intake.verdict import Code
from deploy.phantom.dicom import number
from deploy.phantom.identity import uid_of

Slices = list[Dataset]
"""Slices of one series in order of position."""

SOUND = "ACCEPT"
"""What is expected of a series without a fault."""


@dataclass(frozen=True)
class Fault:
    """One way in which a series is wrong."""

    name: str
    """Names the folder and the patient."""
    expected: str
    """A `Code`, or "ACCEPT"."""
    edit: Callable[[Slices], Slices]
    """Breaks the slices."""
    noted: bool = False
    """Whether the series is still accepted, with a note."""
    syntax: UID = ExplicitVRLittleEndian
    """How pixels are coded."""


def _set(**values: object) -> Callable[[Slices], Slices]:
    """An edit that sets attributes of all slices."""

    def edit(slices: Slices) -> Slices:
        for ds in slices:
            for keyword, value in values.items():
                setattr(ds, keyword, value)
        return slices

    return edit


def _set_in_half(**values: object) -> Callable[[Slices], Slices]:
    """An edit that sets attributes of the upper half of the slices."""

    def edit(slices: Slices) -> Slices:
        middle = len(slices) // 2
        return slices[:middle] + _set(**values)(slices[middle:])

    return edit


def _delete(keyword: str) -> Callable[[Slices], Slices]:
    def edit(slices: Slices) -> Slices:
        for ds in slices:
            delattr(ds, keyword)
        return slices

    return edit


def _same(slices: Slices) -> Slices:
    return slices


def _without_one(slices: Slices) -> Slices:
    return slices[:7] + slices[8:]


def _first_two(slices: Slices) -> Slices:
    return slices[:2]


def _copied(slices: Slices) -> Slices:
    return [*slices, deepcopy(slices[5])]


def _copied_with_other_pixels(slices: Slices) -> Slices:
    other = deepcopy(slices[5])
    other.PixelData = slices[6].PixelData
    return [*slices, other]


def _scanned_twice(slices: Slices) -> Slices:
    again = deepcopy(slices[5])
    again.SOPInstanceUID = uid_of(again.SOPInstanceUID, "again")
    return [*slices, again]


def _shifted(slices: Slices) -> Slices:
    """The upper slices lie 0.3 of a gap too high."""
    gap = _gap(slices)
    for ds in slices[9:]:
        _move(ds, (0.0, 0.0, 0.3 * gap))
    return slices


def _tilted(slices: Slices) -> Slices:
    """Positions sheared by 15 degrees, as a tilted gantry leaves them."""
    gap = _gap(slices)
    for index, ds in enumerate(slices):
        ds.GantryDetectorTilt = "15"
        _move(ds, (0.0, index * gap * math.tan(math.radians(15.0)), 0.0))
    return slices


def _turned(slices: Slices) -> Slices:
    return _set_in_half(ImageOrientationPatient=[1, 0, 0, 0, 0, -1])(slices)


def _cropped(slices: Slices) -> Slices:
    for ds in slices[-3:]:
        ds.PixelData = _pixels(ds)[:, :-8].tobytes()
        ds.Columns -= 8
    return slices


def _padded(slices: Slices) -> Slices:
    """A round field of view, with -2000 outside it."""
    for ds in slices:
        pixels = _pixels(ds)
        y, x = (
            np.indices(pixels.shape) - (np.array(pixels.shape)[:, None, None] - 1) / 2
        )
        pixels[x * x + y * y > (ds.Rows / 2) ** 2] = -2000
        ds.PixelPaddingValue, ds.PixelData = -2000, pixels.tobytes()
        ds["PixelPaddingValue"].VR = "SS"
    return slices


def _as_mr(slices: Slices) -> Slices:
    return _set(SOPClassUID=MRImageStorage, Modality="MR")(slices)


def _as_localizer(slices: Slices) -> Slices:
    return _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])(slices[:2])


def _as_capture(slices: Slices) -> Slices:
    kind = ["DERIVED", "SECONDARY"]
    classed = _set(SOPClassUID=SecondaryCaptureImageStorage, ImageType=kind)
    return classed(slices[:1])


def _as_enhanced(slices: Slices) -> Slices:
    """All frames in one file that does not say where each of them lies."""
    ds = slices[0]
    ds.SOPClassUID, ds.NumberOfFrames = EnhancedCTImageStorage, len(slices)
    ds.PixelData = b"".join(one.PixelData for one in slices)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(ds, keyword)
    return [ds]


def _pixels(ds: Dataset) -> np.ndarray:
    flat = np.frombuffer(ds.PixelData, "<i2")
    return flat.reshape(ds.Rows, ds.Columns).copy()


def _gap(slices: Slices) -> float:
    """Distance between axial slices, mm."""
    first, second = (ds.ImagePositionPatient for ds in slices[:2])
    return float(second[2]) - float(first[2])


def _move(ds: Dataset, by_mm: tuple[float, float, float]) -> None:
    place = zip(ds.ImagePositionPatient, by_mm, strict=True)
    ds.ImagePositionPatient = [number(float(old) + step) for old, step in place]


FAULTS: tuple[Fault, ...] = (
    Fault("sound-explicit", SOUND, _same),
    Fault("sound-implicit", SOUND, _same, syntax=ImplicitVRLittleEndian),
    Fault("sound-rle", SOUND, _same, syntax=RLELossless),
    Fault("sound-jpegls", SOUND, _same, syntax=JPEGLSLossless),
    Fault("sound-j2k", SOUND, _same, syntax=JPEG2000Lossless),
    Fault("missing-slice", Code.MISSING_SLICES, _without_one),
    Fault("same-file-twice", Code.DUPLICATE_SAME, _copied, noted=True),
    Fault("same-uid-twice", Code.DUPLICATE_DIFFERENT, _copied_with_other_pixels),
    Fault("same-place-twice", Code.DUPLICATE_SLICES, _scanned_twice),
    Fault("uneven", Code.NON_UNIFORM_SPACING, _shifted),
    Fault("tilted", Code.GANTRY_TILT, _tilted),
    Fault("turned", Code.MIXED_ORIENTATION, _turned),
    Fault("cropped", Code.MIXED_MATRIX, _cropped),
    Fault(
        "two-kernels", Code.MIXED_KERNEL, _set_in_half(ConvolutionKernel="PHANTOM BONE")
    ),
    Fault(
        "two-frames",
        Code.MIXED_FRAME_OF_REFERENCE,
        _set_in_half(FrameOfReferenceUID=uid_of("another frame of reference")),
    ),
    Fault(
        "two-patients",
        Code.MIXED_PATIENTS,
        _set_in_half(PatientID="PHANTOM-AWKWARD-SOMEONE-ELSE"),
    ),
    Fault("no-position", Code.NO_POSITION, _delete("ImagePositionPatient")),
    Fault(
        "bad-orientation",
        Code.BAD_ORIENTATION,
        _set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
    ),
    Fault("no-spacing", Code.NO_PIXEL_SPACING, _delete("PixelSpacing")),
    Fault(
        "stale-spacing",
        Code.SPACING_TAG_STALE,
        _set(SpacingBetweenSlices="1"),
        noted=True,
    ),
    Fault("two-slices", Code.TOO_FEW_SLICES, _first_two),
    Fault("no-rescale", Code.RESCALE_MISSING, _delete("RescaleSlope")),
    Fault("zero-rescale", Code.RESCALE_INVALID, _set(RescaleSlope="0")),
    Fault("nan-rescale", Code.RESCALE_INVALID, _set(RescaleSlope="NaN")),
    Fault("far-too-bright", Code.HU_RANGE, _set(RescaleIntercept="9000")),
    Fault("padded", Code.PIXEL_PADDING, _padded, noted=True),
    Fault("lossy", Code.LOSSY, _set(LossyImageCompression="01"), noted=True),
    Fault("mr", Code.NOT_CT, _as_mr),
    Fault("localizer", Code.LOCALIZER, _as_localizer),
    Fault("capture", Code.SECONDARY_CAPTURE, _as_capture),
    Fault("enhanced", Code.ENHANCED_MULTIFRAME, _as_enhanced),
    Fault("no-series-uid", Code.EMPTY_UID, _set(SeriesInstanceUID=""), noted=True),
    Fault("no-patient-id", Code.EMPTY_PATIENT_ID, _set(PatientID=""), noted=True),
    Fault(
        "non-ascii",
        Code.NON_ASCII,
        _set(PatientID="PHANTOM-ÄWKWARD-Ω", PatientName="Phantöm^Ärger"),
        noted=True,
    ),
)
"""One series each, with the finding that must be among its own."""
