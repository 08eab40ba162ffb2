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
    """Byte offset of the PixelData element in the file, or in the inflated data set of
    a deflated file."""
    file_bytes: int
    """Size of the file when its head was read."""


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
    lossy: bool
    """LossyImageCompression is 01."""
    undecodable_text: bool
    """PatientID holds bytes that its declared character set does not have."""
    executable_preamble: bool
    """The 128-byte preamble starts like a PE or ELF program (CVE-2019-11687)."""
    pixels: PixelFormat | None
    """None where the file has no pixel data, or says too little to read it."""
