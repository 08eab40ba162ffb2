"""What intake reads from the head of one DICOM image: plain numbers, no pixels.

This module knows only the facts, because it is also imported by the decoder processes
(`client.intake.worker`), which parse untrusted files and must start fast. What the
facts mean for a series is decided in the parent, in `client.intake.geometry`.

Values are kept as the file has them: None is "absent, empty or not a number", and
nothing is repaired here.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PixelFormat:
    """How the stored values of an image lie in its file (PS3.3 C.7.6.3)."""

    transfer_syntax: str
    """TransferSyntaxUID; Implicit VR Little Endian where the file has no meta group."""
    rows: int
    columns: int
    frames: int
    """NumberOfFrames, 1 where absent."""
    samples: int
    """SamplesPerPixel; 1 for CT."""
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    """PixelRepresentation is 1."""
    padding: tuple[int, int] | None
    """Lowest and highest stored value that PixelPaddingValue and
    PixelPaddingRangeLimit declare as padding, read with the sign of the pixels."""
    data_offset: int
    """Byte offset of PixelData's value in the file; for a deflated file, in its
    inflated data set."""
    data_bytes: int | None
    """Length of that value; None where it is undefined (encapsulated frames)."""
    dataset_offset: int
    """Byte offset of the data set in the file: where a deflate stream begins."""


@dataclass(frozen=True)
class SliceHeader:
    """One plane of a series: a single-frame file, or one frame of a multi-frame one."""

    path: Path
    """The file, absolute."""
    frame: int
    """Index of the frame in the file, from 0."""
    sop_class_uid: str | None
    sop_instance_uid: str | None
    """SOPInstanceUID; shared by all frames of one file."""
    series_uid: str | None
    study_uid: str | None
    frame_of_reference_uid: str | None
    patient: str | None
    """PatientID."""
    modality: str | None
    image_type: tuple[str, ...]
    """ImageType, or FrameType of a multi-frame file."""
    series_number: str | None
    kernel: str | None
    """ConvolutionKernel, its values joined by a backslash."""
    position_mm: tuple[float, float, float] | None
    """ImagePositionPatient: centre of the first voxel, LPS."""
    orientation: tuple[float, float, float, float, float, float] | None
    """ImageOrientationPatient: unit vectors along a row (+W) and down a column (+H)."""
    pixel_spacing_mm: tuple[float, float] | None
    """PixelSpacing: between rows (H), between columns (W)."""
    thickness_mm: float | None
    spacing_between_mm: float | None
    """SpacingBetweenSlices; often stale, never used for geometry."""
    tilt_deg: float | None
    """GantryDetectorTilt."""
    slope: float | None
    intercept: float | None
    rescale_type: str | None
    lossy: bool | None
    """LossyImageCompression: True for 01, False for 00."""
    executable_preamble: bool
    """The 128-byte preamble starts like a PE or ELF program (CVE-2019-11687)."""
    pixels: PixelFormat | None
    """None where the file has no pixel data, or says too little to read it."""


@dataclass(frozen=True)
class LabelReference:
    """What a SEG or RTSTRUCT file refers to."""

    series_uid: str | None
    """SeriesInstanceUID of the first image series it names."""
    sop_uids: tuple[str, ...]
    """SOPInstanceUIDs of the images it names, sorted, each once."""
    frame_of_reference_uid: str | None
    """Its own FrameOfReferenceUID, or the first one it refers to (RTSTRUCT)."""


@dataclass(frozen=True)
class DirectoryEntry:
    """One file that a DICOMDIR names."""

    components: tuple[str, ...]
    """ReferencedFileID, as written: never used as a path before it is checked."""
    series_uid: str | None
    """SeriesInstanceUID of the series record it stands under."""


@dataclass(frozen=True)
class FileHead:
    """All that one file says before its pixels."""

    planes: tuple[SliceHeader, ...] = ()
    """One for a single-frame image or any other object, one per frame for a multi-frame
    image with functional groups."""
    label: LabelReference | None = None
    """Set for SEG and RTSTRUCT."""
    directory: tuple[DirectoryEntry, ...] | None = None
    """Set for a DICOMDIR."""
    problem: str | None = None
    """Name of a verdict code, where the file can't be read."""
