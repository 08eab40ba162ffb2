"""Each fault of a series with its code, each oddity with its note."""

import warnings

import numpy as np
import pytest
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless

from client.intake.verdict import Code, Verdict


def _codes(row) -> set[Code]:
    return {finding.code for finding in row.findings}


def _set(**values):
    def edit(image: Dataset, d: int) -> None:
        for keyword, value in values.items():
            setattr(image, keyword, value)

    return edit


def _one(d_faulty: int = 2, **values):
    def edit(image: Dataset, d: int) -> None:
        if d == d_faulty:
            _set(**values)(image, d)

    return edit


def _without(*keywords):
    def edit(image: Dataset, d: int) -> None:
        for keyword in keywords:
            del image[keyword]

    return edit


def _move(offset_mm: float, axis: int = 2, each: bool = False):
    def edit(image: Dataset, d: int) -> None:
        position = list(image.ImagePositionPatient)
        position[axis] += offset_mm * (d if each else d == 2)
        image.ImagePositionPatient = position

    return edit


def _leave_out(d_absent: int):
    return lambda _image, d: d != d_absent


def _raw(words: np.ndarray):
    return words.astype("<u2").tobytes()


FAULTS = [
    (Code.MISSING_SLICES, _leave_out(2)),
    (Code.DUPLICATE_SLICES, _move(2.0)),
    (Code.NON_UNIFORM_SPACING, _move(0.5)),
    (Code.GANTRY_TILT, _move(0.5, axis=1, each=True)),
    (Code.GANTRY_TILT, _set(GantryDetectorTilt="15")),
    (Code.MIXED_ORIENTATION, _one(ImageOrientationPatient=[0, 1, 0, -1, 0, 0])),
    (Code.MIXED_MATRIX, _one(PixelSpacing=[0.9, 0.9])),
    (Code.MIXED_KERNEL, _one(ConvolutionKernel="B70f")),
    (Code.MIXED_FRAME_OF_REFERENCE, _one(FrameOfReferenceUID="1.2.3")),
    (Code.MIXED_PATIENTS, _one(PatientID="P2")),
    (Code.NO_POSITION, _without("ImagePositionPatient")),
    (Code.NO_POSITION, _one(ImagePositionPatient=None)),
    (Code.NO_PIXEL_SPACING, _without("PixelSpacing")),
    (Code.NO_PIXEL_SPACING, _set(PixelSpacing=[0, 0.7])),
    (Code.BAD_ORIENTATION, _without("ImageOrientationPatient")),
    (Code.BAD_ORIENTATION, _set(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])),
    (Code.BAD_ORIENTATION, _set(ImageOrientationPatient=[2, 0, 0, 0, 1, 0])),
    (Code.TOO_FEW_SLICES, lambda _image, d: d < 2),
    (Code.RESCALE_MISSING, _without("RescaleSlope")),
    (Code.RESCALE_MISSING, _without("RescaleIntercept")),
    (Code.RESCALE_INVALID, _set(RescaleSlope="0")),
    (Code.RESCALE_INVALID, _set(RescaleType="MGML")),
    (Code.HU_RANGE, _set(RescaleIntercept="-3000")),
    (Code.HU_RANGE, _set(RescaleSlope="20")),
    (Code.PIXEL_FORMAT, _set(SamplesPerPixel=3)),
    (Code.PIXEL_FORMAT, _set(BitsAllocated=32)),
    (Code.PIXEL_FORMAT, _set(Rows=240)),
    (Code.PIXEL_FORMAT, _set(HighBit=15)),
    (Code.PIXEL_FORMAT, _without("PixelRepresentation")),
    (Code.PIXEL_FORMAT, _one(PixelData=_raw(np.full((24, 20), 0x7400)))),
    (Code.PIXEL_PADDING, _set(PixelPaddingValue=1024)),
    (Code.DECODE_LIMIT, _set(Rows=40000, Columns=40000)),
]


@pytest.mark.parametrize(
    ("code", "edit"), FAULTS, ids=[f"{n}-{code}" for n, (code, _) in enumerate(FAULTS)]
)
def test_each_fault_is_refused_with_its_code(
    tmp_path, write_series, refusals, code, edit
):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the values we write wrongly
        write_series(tmp_path, edit=edit)
    assert refusals(tmp_path) == {code}


def test_a_rescale_slope_that_is_no_number_is_refused(tmp_path, write_series, refusals):
    write_series(tmp_path, edit=_set(RescaleSlope="1.125"))
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes().replace(b"1.125 ", b"NaN   "))
    assert refusals(tmp_path) == {Code.RESCALE_INVALID}


def _empty_sop_uids(image: Dataset, d: int) -> None:
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.SOPInstanceUID = image.SOPClassUID = ""


NOTES = [
    (Code.SPACING_TAG_STALE, _set(SpacingBetweenSlices="3")),
    (Code.LOSSY, _set(LossyImageCompression="01")),
    (Code.EMPTY_PATIENT_ID, _set(PatientID="")),
    (Code.EMPTY_UID, _set(SeriesInstanceUID="")),
    (Code.EMPTY_UID, _empty_sop_uids),
    (Code.NON_ASCII, _set(SpecificCharacterSet="ISO_IR 192", PatientID="Jürgen")),
    (Code.PIXEL_PADDING, _set(PixelPaddingValue=24)),
    (Code.RESCALE_INVALID, _set(RescaleType="US")),
]


@pytest.mark.parametrize(
    ("code", "edit"), NOTES, ids=[f"{n}-{code}" for n, (code, _) in enumerate(NOTES)]
)
def test_each_oddity_is_accepted_with_a_note(tmp_path, write_series, read, code, edit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_series(tmp_path, edit=edit)
    [(row, case)] = read(tmp_path)
    assert row.verdict is Verdict.NOTE
    assert _codes(row) == {code}
    assert case.patient
    assert case.series


def test_declared_padding_becomes_air_and_nothing_else_changes(
    tmp_path, write_series, read
):
    def edit(image: Dataset, d: int) -> None:
        words = np.frombuffer(image.PixelData, "<u2").copy().reshape(24, 20)
        words[:4] = 63536  # -2000 as an unsigned word, above the 12 bits stored
        image.PixelData, image.PixelPaddingValue = _raw(words), 63536

    written = write_series(tmp_path, edit=edit)
    [(row, case)] = read(tmp_path)
    assert _codes(row) == {Code.PIXEL_PADDING}
    assert (case.volume.array[:, :4] == -1024).all()
    np.testing.assert_array_equal(case.volume.array[:, 4:], written.hu[:, 4:])


def test_undeclared_padding_is_told_from_a_wrong_rescale(tmp_path, write_series, read):
    def pad(image: Dataset, d: int) -> None:
        words = np.frombuffer(image.PixelData, "<u2").astype(np.int16).reshape(24, 20)
        words[:4] = -2000
        image.PixelData = words.astype("<i2").tobytes()
        image.PixelRepresentation, image.BitsStored, image.HighBit = 1, 16, 15

    written = write_series(tmp_path, edit=pad)
    [(row, case)] = read(tmp_path)
    assert _codes(row) == {Code.PIXEL_PADDING}
    assert row.verdict is Verdict.NOTE
    assert (case.volume.array[:, :4] == -1024).all()
    np.testing.assert_array_equal(case.volume.array[:, 4:], written.hu[:, 4:])
    assert row.hu_range == (-1024, written.hu.max())


def _stream(*, signed_stream: bool, signed_tag: bool, shift: int = 0):
    """12-bit HU in a JPEG 2000 stream whose sign is not that of the attribute."""

    def edit(image: Dataset, d: int) -> None:
        words = np.frombuffer(image.PixelData, "<u2").astype(np.int16)
        hu = (words - 1024 + shift).reshape(image.Rows, image.Columns)
        # The true values are signed; an unsigned stream holds their two's complement.
        array = hu if signed_stream else (hu & 0x0FFF).astype(np.uint16)
        image.PixelData = encapsulate([encode_array(array, bits_stored=12)])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless
        image.PixelRepresentation, image.RescaleIntercept = int(signed_tag), 0

    return edit


@pytest.mark.parametrize(
    ("signed_stream", "signed_tag"), [(False, True), (True, False)]
)
def test_a_wrong_sign_is_put_right_where_only_one_reading_is_a_body(
    tmp_path, write_series, read, signed_stream, signed_tag
):
    edit = _stream(signed_stream=signed_stream, signed_tag=signed_tag)
    written = write_series(tmp_path, size=(40, 36), edit=edit)
    [(row, case)] = read(tmp_path)
    assert _codes(row) == {Code.PIXEL_REPRESENTATION}
    np.testing.assert_array_equal(case.volume.array, written.hu)
    assert case.volume.array.dtype == np.int16


def test_a_wrong_sign_that_proves_nothing_is_refused(tmp_path, write_series, refusals):
    # Fat and air below 0 in one reading, bone below 4000 in the other: who can say?
    edit = _stream(signed_stream=False, signed_tag=True, shift=-150)

    def no_water(image: Dataset, d: int) -> None:
        words = np.frombuffer(image.PixelData, "<u2").clip(700, 900)
        image.PixelData = words.tobytes()
        edit(image, d)

    write_series(tmp_path, size=(40, 36), edit=no_water)
    assert refusals(tmp_path) == {Code.PIXEL_REPRESENTATION}
