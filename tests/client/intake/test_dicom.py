import shutil
import subprocess
import warnings
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openjpeg.utils import encode_array
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.intake.dicom import read_dicom, series_headers
from client.intake.group import counts_as_series
from client.intake.pool import DecodeLimits, DecoderPool
from client.intake.verdict import Code, Finding, Segment, Verdict
from common.errors import IntakeError


def _codes(row) -> set[Code]:
    return {finding.code for finding in row.findings}


def _accepted(rows):
    return [(row, case) for row, case in rows if case is not None]


# --- a good series ------------------------------------------------------------------


def test_a_plain_series_becomes_hu_on_its_own_grid(tmp_path, write_series, read):
    written = write_series(tmp_path, slices=6, spacing_mm=2.5)
    [(row, case)] = read(tmp_path)
    assert row.verdict is Verdict.ACCEPT
    assert row.files == 6
    assert row.patient == "P1"
    assert case.volume.array.dtype == np.int16
    np.testing.assert_array_equal(case.volume.array, written.hu)
    assert case.volume.spacing_mm == pytest.approx((2.5, 0.7, 0.8))
    np.testing.assert_allclose(case.volume.grid.affine[:3, 3], [-90, -80, 100])
    np.testing.assert_allclose(case.volume.grid.affine[:3, 0], [0, 0, 2.5])
    np.testing.assert_allclose(case.volume.grid.affine[:3, 1], [0, 0.7, 0])
    np.testing.assert_allclose(case.volume.grid.affine[:3, 2], [0.8, 0, 0])
    assert row.hu_range == (written.hu.min(), written.hu.max())
    assert len(case.digest) == 64


@pytest.mark.parametrize(
    "syntax", [JPEG2000Lossless, JPEGLSLossless, RLELossless], ids=lambda s: s.name
)
def test_every_lossless_syntax_gives_the_same_case(
    tmp_path, write_series, read, syntax
):
    written = write_series(tmp_path / "plain", size=(40, 36))
    write_series(tmp_path / "coded", size=(40, 36), syntax=syntax)
    [(_, plain)] = read(tmp_path / "plain")
    [(row, coded)] = read(tmp_path / "coded")
    assert row.verdict is Verdict.ACCEPT
    np.testing.assert_array_equal(coded.volume.array, written.hu)
    assert coded.digest == plain.digest


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda s: s.name,
)
def test_every_way_to_write_elements_gives_the_same_voxels(
    tmp_path, write_series, read, syntax
):
    def encode(image: Dataset, d: int) -> None:
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            words = np.frombuffer(image.PixelData, "<u2")
            image.PixelData = words.astype(">u2").tobytes()
        image["PixelData"].VR = "OW"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of retired big endian
        written = write_series(tmp_path, edit=encode)
    [(row, case)] = read(tmp_path)
    assert row.verdict is Verdict.ACCEPT
    np.testing.assert_array_equal(case.volume.array, written.hu)


def test_non_integral_rescale_is_kept_in_float32(tmp_path, write_series, read):
    def edit(image: Dataset, d: int) -> None:
        image.RescaleSlope = "0.5"

    written = write_series(tmp_path, edit=edit)
    [(_, case)] = read(tmp_path)
    assert case.volume.array.dtype == np.float32
    stored = written.hu.astype(np.float32) + 1024
    np.testing.assert_array_equal(case.volume.array, stored * 0.5 - 1024)


def test_a_signed_series_keeps_its_sign_bits(tmp_path, write_series, read):
    def edit(image: Dataset, d: int) -> None:
        hu = np.frombuffer(image.PixelData, "<u2").astype(np.int16) - 1024
        # 12-bit two's complement with zeros above the sign bit: valid, often misread
        image.PixelData = (hu & 0x0FFF).astype("<u2").tobytes()
        image.PixelRepresentation, image.RescaleIntercept = 1, 0

    written = write_series(tmp_path, edit=edit)
    [(_, case)] = read(tmp_path)
    np.testing.assert_array_equal(case.volume.array, written.hu)


OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.permutations(range(5)),
    numbers=st.lists(st.integers(0, 999), min_size=5, max_size=5),
    orientation=st.sampled_from(
        [
            (1, 0, 0, 0, 1, 0),
            (0, 1, 0, 0, 0, -1),
            (1, 0, 0, 0, 0, -1),
            (-1, 0, 0, 0, -1, 0),
            (-1, 0, 0, 0, 1, 0),
            OBLIQUE,
        ]
    ),
)
def test_file_names_and_instance_numbers_decide_nothing(
    tmp_path_factory, write_series, read, order, numbers, orientation
):
    def edit(image: Dataset, d: int) -> None:
        image.InstanceNumber = numbers[d]

    folder = tmp_path_factory.mktemp("shuffled")
    written = write_series(
        folder,
        orientation=tuple(map(float, orientation)),
        edit=edit,
        names=lambda d: f"{order[d] % 2}/{order[d]}",
    )
    [(_row, case)] = read(folder)
    np.testing.assert_array_equal(case.volume.array, written.hu)
    affine = case.volume.grid.affine
    along_w, along_h = np.array(orientation, float).reshape(2, 3)
    normal = np.cross(along_w, along_h)
    np.testing.assert_allclose(affine[:3, 0], 2 * normal, atol=1e-5)
    np.testing.assert_allclose(affine[:3, 1], 0.7 * along_h, atol=1e-6)
    np.testing.assert_allclose(affine[:3, 2], 0.8 * along_w, atol=1e-6)
    # A volume on the same voxels has the same content address wherever it is from.
    np.testing.assert_allclose(affine[:3, 3], [-90, -80, 100], atol=1e-5)
    shutil.rmtree(folder)


def test_two_runs_give_the_same_rows_in_the_same_order(tmp_path, write_series, read):
    for seed in range(3):
        write_series(tmp_path / str(seed), seed=seed)
    (tmp_path / "notes.txt").write_text("not an image at all")
    first, second = read(tmp_path), read(tmp_path)
    assert [replace(row, grid=None) for row, _ in first] == [
        replace(row, grid=None) for row, _ in second
    ]
    assert [c and c.digest for _, c in first] == [c and c.digest for _, c in second]
    names = [row.series for row, case in first if case is not None]
    assert len(names) == 3
    assert names == sorted(names)


# --- faults, each with its code -----------------------------------------------------


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


# --- copies, kinds and odd files ----------------------------------------------------


def test_byte_equal_copies_are_dropped_with_a_note(tmp_path, write_series, read):
    written = write_series(tmp_path)
    shutil.copy(written.paths[1], tmp_path / "copy of one")
    [(row, case)] = read(tmp_path)
    assert _codes(row) == {Code.DUPLICATE_SAME}
    assert row.files == 6
    np.testing.assert_array_equal(case.volume.array, written.hu)


def test_one_uid_on_two_different_images_is_refused(tmp_path, write_series, refusals):
    written = write_series(tmp_path)
    image = written.images[1]
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(tmp_path / "other")
    assert Code.DUPLICATE_DIFFERENT in refusals(tmp_path)


def test_localizer_and_capture_get_rows_and_do_not_count(tmp_path, write_series, read):
    def first(image: Dataset, d: int) -> None:
        if d == 0:
            image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        if d == 1:
            image.SOPClassUID = SecondaryCaptureImageStorage
            image.SeriesInstanceUID = generate_uid()

    write_series(tmp_path, edit=first, slices=7)
    rows = read(tmp_path)
    found = {code: row for row, _ in rows for code in _codes(row)}
    assert set(found) == {Code.LOCALIZER, Code.SECONDARY_CAPTURE}
    [(_row, case)] = _accepted(rows)
    assert case.volume.array.shape == (5, 24, 20)
    assert sum(counts_as_series(row) for row, _ in rows) == 1


def test_nothing_in_a_folder_goes_without_a_row(tmp_path, write_series, read):
    root = tmp_path / "in"
    write_series(root / "deep" / "er", names="Aufnahme nº {}".format)
    (root / "notes.pdf").write_bytes(b"%PDF-1.7 and so on, long enough to be read")
    (root / "empty").touch()
    (root / "cut").write_bytes(bytes(128) + b"DICM")
    (root / "link").symlink_to(root / "notes.pdf")
    (root / "out").symlink_to(tmp_path)
    fifo = root / "fifo"
    subprocess.run(["mkfifo", fifo], check=True)
    rows = read(root)
    by_code = {row.findings[0].code: row for row, case in rows if case is None}
    assert {code: row.files for code, row in by_code.items()} == {
        Code.NOT_DICOM: 1,
        Code.EMPTY_FILE: 1,
        Code.UNREADABLE: 1,
        Code.UNSAFE_LINK: 2,
        Code.SPECIAL_FILE: 1,
    }
    assert len(_accepted(rows)) == 1
    assert sum(counts_as_series(row) for row, _ in rows) == 1


def test_a_program_in_the_preamble_is_noted(tmp_path, write_series, read):
    written = write_series(tmp_path)
    path = written.paths[0]
    path.write_bytes(b"MZ" + path.read_bytes()[2:])
    [(row, _)] = read(tmp_path)
    assert _codes(row) == {Code.EXECUTABLE_PREAMBLE}


def test_files_without_preamble_or_meta_are_read(tmp_path, write_series, read):
    written = write_series(tmp_path)
    for number, path in enumerate(written.paths):
        whole = path.read_bytes()
        length = 132 + 12 + int.from_bytes(whole[140:144], "little")
        path.write_bytes(whole[132:] if number % 2 else whole[length:])
    [(row, case)] = read(tmp_path)
    assert row.verdict is Verdict.ACCEPT
    np.testing.assert_array_equal(case.volume.array, written.hu)


def test_two_series_without_uids_in_one_folder_do_not_mix(tmp_path, write_series, read):
    for number in range(2):

        def edit(image: Dataset, d: int, number: int = number) -> None:
            image.SeriesInstanceUID, image.SeriesNumber = "", number
            # one millimetre apart: together they would pass for a finer series
            z = float(image.ImagePositionPatient[2]) + number
            image.ImagePositionPatient = [-90, -80, z]

        write_series(
            tmp_path, edit=edit, seed=number, names=lambda d, n=number: f"{n}-{d}"
        )
    cases = [case for _, case in read(tmp_path)]
    assert [case.volume.array.shape[0] for case in cases] == [5, 5]
    assert len({case.series for case in cases}) == 2


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(IntakeError, match="can't be read"):
        list(read_dicom(tmp_path / "absent"))


def test_labels_are_asked_for_accepted_series_only(tmp_path, write_series, read):
    write_series(tmp_path / "good")
    write_series(tmp_path / "bad", edit=_leave_out(2))
    asked = []

    def labels(series, grid, index):
        asked.append(series)
        assert [s.sop_instance_uid for s in series.slices] == list(
            series.sop_instance_uids
        )
        assert len(index.series) == 2
        mask = np.zeros(grid.shape, bool)
        note = Finding(Code.LABEL_EMPTY, "empty", refuses=False)
        return (Segment("nodule", mask),), (note,)

    rows = read(tmp_path, labels=labels)
    [(row, case)] = _accepted(rows)
    assert [s.series for s in asked] == [case.series]
    assert row.labels == ("nodule",)
    assert case.segments[0].name == "nodule"
    [(_, without)] = _accepted(read(tmp_path))
    assert without.digest != case.digest


def test_a_label_that_refuses_refuses_the_series(tmp_path, write_series, read):
    write_series(tmp_path)
    wrong = Finding(Code.LABEL_GRID_MISMATCH, "wrong grid", refuses=True)
    [(row, case)] = read(tmp_path, labels=lambda *_: ((), (wrong,)))
    assert case is None
    assert _codes(row) == {Code.LABEL_GRID_MISMATCH}


def test_progress_ends_at_all_files_and_all_series(tmp_path, write_series, read):
    write_series(tmp_path)
    told = []
    read(tmp_path, progress=lambda *event: told.append(event))
    assert ("files", 5, 5) in told
    assert told[-1] == ("series", 1, 1)


def test_a_series_that_needs_too_much_memory_leaves_the_rest_going(
    tmp_path, write_series, read
):
    frame = encode_array(np.zeros((5000, 5000), np.uint16), bits_stored=12)

    def swell(image: Dataset, d: int) -> None:
        image.Rows = image.Columns = 5000
        image.PixelData = encapsulate([frame])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless

    write_series(tmp_path / "a", slices=3, edit=swell)
    write_series(tmp_path / "b")
    with DecoderPool(DecodeLimits(memory_bytes=260 << 20)) as tight:
        rows = read(tmp_path, pool=tight)
    assert sorted(row.verdict for row, _ in rows) == [Verdict.ACCEPT, Verdict.REFUSE]
    [refused] = [row for row, case in rows if case is None]
    assert _codes(refused) <= {Code.DECODE_LIMIT, Code.DECODE_FAILED}
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 100_000


# --- real CT, and what other readers say --------------------------------------------


def _itk(paths: list[str]) -> SimpleITK.Image:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(paths)
    return reader.Execute()


@pytest.mark.parametrize(
    ("patient", "shape"), [("pat_1", (60, 201, 204)), ("pat_2", (41, 138, 141))]
)
def test_lung_series_agree_with_simpleitk(data, read, patient, shape):
    [(row, case)] = read(data / "rtstruct_lung4" / patient)
    assert row.verdict is Verdict.ACCEPT
    assert case.volume.array.shape == shape
    assert case.volume.spacing_mm == pytest.approx((3.0, 0.977, 0.977), abs=1e-6)
    index = series_headers(data / "rtstruct_lung4" / patient)
    [label] = index.label_objects
    assert label.referenced_series_uid == case.series
    image = _itk([str(plane.path) for plane in index.series[0].slices])
    np.testing.assert_array_equal(case.volume.array, SimpleITK.GetArrayFromImage(image))
    affine = case.volume.grid.affine
    np.testing.assert_allclose(affine[:3, 3], image.GetOrigin(), atol=1e-6)
    direction = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    np.testing.assert_allclose(affine[:3, 2::-1], direction, atol=1e-4)


def test_series_with_empty_uids_is_accepted_with_notes(data, read):
    [(row, case)] = _accepted(read(data / "totalseg_example" / "example_ct_dicom"))
    assert case.volume.array.shape == (20, 512, 512)
    assert case.volume.spacing_mm[0] == pytest.approx(2.0)  # SliceThickness says 3
    assert row.hu_range == (-1024, 1839)
    assert _codes(row) == {Code.EMPTY_UID, Code.EMPTY_PATIENT_ID}


def test_frames_of_a_multi_frame_image_are_the_single_frame_series(data, read):
    folder = data / "dicom_seg" / "dcmqi_segmentations" / "24x38x3"
    cases = {case.series: case for _, case in _accepted(read(folder))}
    assert len(cases) == 2
    single, frames = cases.values()
    assert single.volume.grid.same_as(frames.volume.grid)
    assert single.digest == frames.digest


def test_real_series_get_the_verdicts_they_should(data, read):
    rows = {row.source: row for row, _ in read(data / "dicom_syntaxes" / "pydicom")}

    def refused(source: str) -> set[Code]:
        return {f.code for f in rows[source].findings if f.refuses}

    assert Code.MISSING_SLICES in refused("77654033/CT2/17106")
    assert refused("77654033/CR1/6154") == {Code.NOT_CT}
    assert refused("DICOMDIR") == {Code.DICOMDIR_MISSING_FILE}
    assert Code.GANTRY_TILT in refused("J2K_pixelrep_mismatch.dcm")
    assert refused("explicit_VR-UN.dcm") == {Code.TOO_FEW_SLICES}
    assert Code.RESCALE_INVALID in refused("eCT_Supplemental.dcm")
    assert refused("liver_1frame.dcm") == {Code.LABEL_UNREFERENCED}


def test_geometry_agrees_with_dcm2niix_on_an_oblique_series(
    tmp_path, write_series, read
):
    if shutil.which("dcm2niix") is None:
        pytest.skip("dcm2niix is not installed")
    import nibabel

    write_series(tmp_path / "in", orientation=OBLIQUE, size=(32, 28), slices=8)
    [(_, case)] = read(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    command = ["dcm2niix", "-z", "n", "-b", "n", "-f", "x", "-o", out, tmp_path / "in"]
    subprocess.run(command, check=True, capture_output=True)
    image = nibabel.load(next(out.glob("*.nii")))
    mine = case.volume.grid.affine
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    theirs = np.asanyarray(image.dataobj)
    rng = np.random.default_rng(0)
    for _ in range(50):
        d, h, w = (int(rng.integers(n)) for n in case.volume.array.shape)
        point = to_ras @ mine @ [d, h, w, 1]
        i, j, k = np.rint(np.linalg.inv(image.affine) @ point)[:3].astype(int)
        np.testing.assert_allclose(
            (image.affine @ [i, j, k, 1])[:3], point[:3], atol=1e-3
        )
        assert theirs[i, j, k] == case.volume.array[d, h, w]


def test_dicom2nifti_refuses_the_missing_slice_that_simpleitk_hides(
    tmp_path, write_series, refusals
):
    common = pytest.importorskip("dicom2nifti.common")
    written = write_series(tmp_path, edit=_leave_out(2))
    image = _itk([str(path) for path in written.paths])
    assert image.GetSize()[2] == 4  # one slice short, and not a word
    with pytest.raises(Exception, match="SLICE_INCREMENT"):
        common.validate_slice_increment(written.images)
    assert refusals(tmp_path) == {Code.MISSING_SLICES}


def test_hostile_directory_entries_are_refused(tmp_path, read, write_series):
    write_series(tmp_path / "in")
    (tmp_path / "secret").write_bytes(b"x")
    record = Dataset()
    record.DirectoryRecordType = "IMAGE"
    record.add(DataElement("ReferencedFileID", "CS", None))
    record["ReferencedFileID"]._value = ["..", "SECRET"]
    listing = Dataset()
    listing.DirectoryRecordSequence = [record]
    listing.file_meta = FileMetaDataset()
    listing.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    listing.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    listing.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    listing.save_as(tmp_path / "in" / "DICOMDIR", enforce_file_format=True)
    rows = read(tmp_path / "in")
    refused = [row for row, case in rows if case is None]
    assert [_codes(row) for row in refused] == [{Code.UNSAFE_LINK}]
