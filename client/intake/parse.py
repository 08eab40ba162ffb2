"""From a data set to `FileHead`: one plane per frame, the references of a label object.

A value that is absent, empty or malformed becomes None and is judged later, so that one
bad element costs one finding and not the whole file. Geometry of a multi-frame image
comes from its functional groups, per frame first, then shared (PS3.3 C.7.6.16).

Runs in the decoder processes only.
"""

from dataclasses import replace
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from client.intake.container import Container, FileProblemError, read_container
from client.intake.elements import number, numbers, sequence, text, whole
from client.intake.header import FileHead, PixelFormat, SliceHeader
from client.intake.references import directory_entries, label_reference

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
DIRECTORY = "1.2.840.10008.1.3.10"
MAX_FRAMES = 16384
"""Most frames of one file; a whole-body CT at 0.2 mm has 10,000."""

_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "ConvolutionKernel",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "SeriesNumber",
    "PatientID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "GantryDetectorTilt",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "LossyImageCompression",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "DirectoryRecordSequence",
)
_TAGS = tuple(tag for tag in map(tag_for_keyword, _KEYWORDS) if tag is not None)


def read_head(path: Path) -> FileHead:
    """Read one file up to its pixels.

    Raises:
        FileProblemError: The file can't be read at all.
    """
    container = read_container(path, _TAGS)
    data = container.dataset
    sop_class = text(data, "SOPClassUID") or container.media_sop_class_uid
    modality = text(data, "Modality")
    if sop_class is None and modality is None and not len(data):
        raise FileProblemError("NOT_DICOM")
    if sop_class == DIRECTORY or "DirectoryRecordSequence" in data:
        return FileHead(directory=tuple(directory_entries(data)))
    plane = _plane(path, container)
    if (
        sop_class in SEGMENTATION
        or sop_class == STRUCTURE_SET
        or (sop_class is None and modality in ("SEG", "RTSTRUCT"))
    ):
        return FileHead(planes=(plane,), label=label_reference(data))
    return FileHead(planes=_frames(plane, data))


def _plane(path: Path, container: Container) -> SliceHeader:
    data = container.dataset
    lossy = text(data, "LossyImageCompression")
    plane = SliceHeader(
        path=path,
        frame=0,
        sop_class_uid=text(data, "SOPClassUID") or container.media_sop_class_uid,
        sop_instance_uid=text(data, "SOPInstanceUID"),
        series_uid=text(data, "SeriesInstanceUID"),
        study_uid=text(data, "StudyInstanceUID"),
        frame_of_reference_uid=text(data, "FrameOfReferenceUID"),
        patient=text(data, "PatientID"),
        modality=text(data, "Modality"),
        image_type=_image_type(data, "ImageType"),
        series_number=text(data, "SeriesNumber"),
        kernel=None,
        position_mm=None,
        orientation=None,
        pixel_spacing_mm=None,
        thickness_mm=None,
        spacing_between_mm=None,
        tilt_deg=number(data, "GantryDetectorTilt"),
        slope=None,
        intercept=None,
        rescale_type=None,
        lossy=None if lossy is None else lossy.startswith("01"),
        executable_preamble=container.preamble.startswith((b"MZ", b"\x7fELF")),
        pixels=_pixel_format(container),
    )
    return _placed(
        plane,
        position=data,
        orientation=data,
        measures=data,
        rescale=data,
        kernel=data,
    )


def _placed(
    plane: SliceHeader,
    *,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescale: Dataset,
    kernel: Dataset,
) -> SliceHeader:
    """The plane with the geometry and rescale that these data sets hold."""
    return replace(
        plane,
        position_mm=numbers(position, "ImagePositionPatient", 3),
        orientation=numbers(orientation, "ImageOrientationPatient", 6),
        pixel_spacing_mm=numbers(measures, "PixelSpacing", 2),
        thickness_mm=number(measures, "SliceThickness"),
        spacing_between_mm=number(measures, "SpacingBetweenSlices"),
        slope=number(rescale, "RescaleSlope"),
        intercept=number(rescale, "RescaleIntercept"),
        rescale_type=text(rescale, "RescaleType"),
        kernel=text(kernel, "ConvolutionKernel"),
    )


def _frames(plane: SliceHeader, data: Dataset) -> tuple[SliceHeader, ...]:
    """One plane per frame where functional groups say where each frame lies."""
    per_frame = sequence(data, "PerFrameFunctionalGroupsSequence")
    frames = plane.pixels.frames if plane.pixels is not None else 0
    if not per_frame or len(per_frame) != frames or frames > MAX_FRAMES:
        return (plane,)
    shared = next(iter(sequence(data, "SharedFunctionalGroupsSequence")), None)
    nothing = Dataset()

    def macro(index: int, keyword: str) -> Dataset:
        own = sequence(per_frame[index], keyword) or sequence(shared, keyword)
        return own[0] if own else nothing

    return tuple(
        replace(
            _placed(
                plane,
                position=macro(index, "PlanePositionSequence"),
                orientation=macro(index, "PlaneOrientationSequence"),
                measures=macro(index, "PixelMeasuresSequence"),
                rescale=macro(index, "PixelValueTransformationSequence"),
                kernel=macro(index, "CTReconstructionSequence"),
            ),
            frame=index,
            image_type=_image_type(
                macro(index, "CTImageFrameTypeSequence"), "FrameType"
            )
            or plane.image_type,
        )
        for index in range(frames)
    )


def _image_type(data: Dataset, keyword: str) -> tuple[str, ...]:
    joined = text(data, keyword)
    return tuple(part.strip().upper() for part in joined.split("\\")) if joined else ()


def _pixel_format(container: Container) -> PixelFormat | None:
    data = container.dataset
    rows, columns = whole(data, "Rows"), whole(data, "Columns")
    allocated = whole(data, "BitsAllocated")
    representation = whole(data, "PixelRepresentation")
    if container.data_offset is None or not rows or not columns or not allocated:
        return None
    if representation not in (0, 1):
        return None
    stored = whole(data, "BitsStored") or allocated
    high_bit = whole(data, "HighBit")
    return PixelFormat(
        transfer_syntax=container.transfer_syntax,
        rows=rows,
        columns=columns,
        frames=max(1, whole(data, "NumberOfFrames") or 1),
        samples=whole(data, "SamplesPerPixel") or 1,
        photometric=text(data, "PhotometricInterpretation") or "MONOCHROME2",
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=stored - 1 if high_bit is None else high_bit,
        signed=representation == 1,
        padding=_padding(data, allocated, signed=representation == 1),
        data_offset=container.data_offset,
        data_bytes=container.data_bytes,
        dataset_offset=container.dataset_offset,
    )


def _padding(data: Dataset, bits: int, *, signed: bool) -> tuple[int, int] | None:
    """The padding range; the VR (US or SS) is often wrong, so take the bits alone."""
    first = whole(data, "PixelPaddingValue")
    if first is None:
        return None
    last = whole(data, "PixelPaddingRangeLimit")

    def as_stored(value: int) -> int:
        value %= 1 << bits
        return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value

    ends = sorted((as_stored(first), as_stored(first if last is None else last)))
    return ends[0], ends[1]
