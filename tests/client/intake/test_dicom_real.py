"""Real CT and foreign readers as witnesses."""

import shutil
import subprocess

import numpy as np
import pytest
import SimpleITK
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    ExplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    generate_uid,
)

from client.intake.dicom import series_headers
from client.intake.verdict import Code, Verdict


def _codes(row) -> set[Code]:
    return {finding.code for finding in row.findings}


def _accepted(rows):
    return [(row, case) for row, case in rows if case is not None]


def _leave_out(d_absent: int):
    return lambda _image, d: d != d_absent


OBLIQUE = (0.8, 0.6, 0.0, -0.48, 0.64, 0.6)


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
