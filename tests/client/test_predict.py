"""Predict a folder: right voxels, right references, clear refusals, private files."""

import shutil
import stat
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from client.intake.dicom import read_dicom
from client.intake.nifti_file import load_nifti, ras_affine
from client.labels.dicom import labels_for_series
from client.predict import format_of, predict_series
from client.prediction import Prediction
from common.errors import IntakeError, UsageError
from common.sources import Source
from common.volume import Grid, Volume
from deploy.phantom.dicom import write_series
from deploy.phantom.scanner import Scanner
from tests.threshold_model import threshold_package, threshold_plan

CPU = torch.device("cpu")
ABOVE_HU = 100.5


def sagittal(patient_seed: int = 0) -> Volume:
    """A body in air with bright spots, as a sagittal series."""
    rng = np.random.default_rng(patient_seed)
    hu = np.full((7, 16, 18), -1000, dtype=np.int16)
    hu[:, 3:13, 3:15] = rng.integers(-60, 60, (7, 10, 12))
    hu[2:5, 5:9, 6:10] = 300 + patient_seed
    affine = np.eye(4)
    # D to the patient's right, H down, W to the back
    affine[:3, :3] = np.array([[-3.0, 0.0, 0.0], [0.0, 0.0, 1.5], [0.0, -1.0, 0.0]])
    return Volume(hu, Grid(hu.shape, affine))


def write(folder: Path, volume: Volume, patient="mustermann", seed=1) -> list[Path]:
    return write_series(folder, volume, scanner=Scanner(), patient=patient, seed=seed)


def predict(source: Path, out: Path, format="dicom", plan=None):
    plan = plan or threshold_plan()
    chosen = Source(source=str(source), format=format)
    return predict_series(threshold_package(plan, (ABOVE_HU,)), chosen, out, CPU)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    volume = sagittal()
    write(root / "ct", volume)
    return root, volume, predict(root / "ct", root / "out")


def test_the_seg_holds_the_answer_on_the_series_own_grid(one, tmp_path):
    root, volume, said = one
    (done,) = said.done
    shutil.copytree(root / "ct", tmp_path / "both")
    shutil.copy(root / "out" / done.files["mask"], tmp_path / "both" / "seg.dcm")
    rows = list(read_dicom(tmp_path / "both", labels=labels_for_series))
    ((verdict, case),) = [row for row in rows if row[1] is not None]
    assert not any(finding.refuses for finding in verdict.findings)
    (segment,) = case.segments
    assert segment.name == "nodule"
    assert np.array_equal(segment.mask, volume.array > ABOVE_HU)


def test_the_record_says_how_much_was_found_and_by_what(one):
    root, volume, said = one
    (done,) = said.done
    voxels = int((volume.array > ABOVE_HU).sum())
    (finding,) = done.findings
    assert (finding.name, finding.voxels) == ("nodule", voxels)
    assert finding.volume_ml == pytest.approx(voxels * 3.0 * 1.0 * 1.5 / 1000)
    (file,) = (root / "out").glob("*.json")
    assert Prediction.model_validate_json(file.read_bytes()) == done
    assert done.weights_sha256 == "ab" * 32
    assert done.use == "research use only"


def test_results_are_private_and_file_names_and_picture_say_nothing_of_the_patient(one):
    root, _, said = one
    (done,) = said.done
    files = sorted(path.name for path in (root / "out").iterdir())
    assert len(files) == 3
    uid = pydicom.dcmread(root / "ct" / "0001.dcm").SeriesInstanceUID
    for path in (root / "out").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert uid not in path.name
    preview = root / "out" / done.files["preview"]
    with Image.open(preview) as picture:
        assert picture.info == {}
    assert b"ustermann" not in preview.read_bytes()


def test_a_refused_series_is_an_error_with_its_code_and_nothing_is_written(tmp_path):
    paths = write(tmp_path / "ct", sagittal())
    paths[3].unlink()
    with pytest.raises(IntakeError, match=r"1 were refused.*\n  MISSING_SLICES: "):
        predict(tmp_path / "ct", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_any_series_says_so(tmp_path):
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "notes.txt").write_text("hello")
    with pytest.raises(IntakeError, match="no CT series"):
        predict(tmp_path / "ct", tmp_path / "out")


def test_all_good_series_of_a_folder_are_predicted_and_the_bad_one_is_named(tmp_path):
    for seed in (1, 2):
        write(tmp_path / "ct" / str(seed), sagittal(seed), seed=seed)
    write(tmp_path / "ct" / "bad", sagittal(3), seed=3)[2].unlink()
    said = predict(tmp_path / "ct", tmp_path / "out")
    assert len(said.done) == 2
    assert len({done.files["mask"] for done in said.done}) == 2
    (refused,) = said.refused
    assert "MISSING_SLICES" in [finding.code for finding in refused.findings]


def test_a_series_without_uids_gets_a_nifti_and_the_reason(tmp_path):
    volume = sagittal()
    for path in write(tmp_path / "ct", volume):
        ds = pydicom.dcmread(path)
        ds.SeriesInstanceUID = ""
        ds.save_as(path)
    (done,) = predict(tmp_path / "ct", tmp_path / "out").done
    assert done.why_nifti == "the series has no SeriesInstanceUID"
    mask = load_nifti(tmp_path / "out" / done.files["mask"])
    assert mask.grid.same_as(volume.grid)
    assert np.array_equal(mask.array, volume.array > ABOVE_HU)


def nifti(path: Path, volume: Volume) -> Path:
    image = nibabel.Nifti1Image(
        volume.array.transpose(2, 1, 0), ras_affine(volume.grid)
    )
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


@pytest.mark.parametrize("name", ["", "ct.nii.gz", "CT.NII", "CT.NII.GZ"])
def test_nifti_in_nifti_out_from_a_file_or_a_folder(tmp_path, name):
    (tmp_path / "in").mkdir()
    volume = sagittal()
    plain = nifti(tmp_path / ("x.nii" if name == "CT.NII" else "x.nii.gz"), volume)
    plain.rename(tmp_path / "in" / (name or "ct.nii.gz"))
    source = tmp_path / "in" / name
    assert format_of(source) == "nifti"
    (done,) = predict(source, tmp_path / "out", "nifti").done
    mask = load_nifti(tmp_path / "out" / done.files["mask"])
    assert mask.grid.same_as(volume.grid)
    assert np.array_equal(mask.array, volume.array > ABOVE_HU)
    assert done.why_nifti is None


def test_labels_beside_an_image_do_not_matter(tmp_path):
    volume = sagittal()
    (tmp_path / "in").mkdir()
    nifti(tmp_path / "in" / "x.nii.gz", volume)
    other = Volume(np.zeros((3, 3, 3), np.uint8), Grid((3, 3, 3), np.eye(4)))
    nifti(tmp_path / "in" / "x_seg.nii.gz", other)
    (done,) = predict(tmp_path / "in", tmp_path / "out", "nifti").done
    assert done.findings[0].voxels == (volume.array > ABOVE_HU).sum()


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        grey = np.random.default_rng(number).integers(0, 255, (16, 16))
        Image.fromarray(grey.astype(np.uint8)).save(folder / f"{number}.png")
    (folder / "manifest.csv").write_text("image,patient\n0.png,a\n1.png,b\n")
    return folder


def test_masks_of_pictures_do_not_matter(tmp_path):
    folder = pictures(tmp_path / "in")
    (folder / "manifest.csv").write_text("image,mask\n0.png,absent.png\n1.png,1.png\n")
    assert len(predict(folder, tmp_path / "out", "images").done) == 2


def test_pictures_have_no_millilitres(tmp_path):
    folder = pictures(tmp_path / "in")
    assert format_of(folder) == "images"
    said = predict(folder, tmp_path / "out", "images")
    assert len(said.done) == 2
    assert said.done[0].findings[0].volume_ml is None


def test_a_model_that_resamples_refuses_pictures_without_millimetres(tmp_path):
    folder = pictures(tmp_path / "in")
    plan = threshold_plan(preprocessing__spacing_mm=[1.0, 1.0, 1.0])
    with pytest.raises(IntakeError, match="NO_SPACING"):
        predict(folder, tmp_path / "out", "images", plan)


def test_an_output_that_is_a_file_is_a_usage_error(tmp_path, one):
    root, _, _ = one
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(UsageError, match="--out"):
        predict(root / "ct", tmp_path / "out")
