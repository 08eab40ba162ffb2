"""NIfTI folders: layouts, grids against other readers, headers that can't be right."""

import gzip
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from client.intake.nifti import read_nifti
from client.intake.nifti_file import load_nifti
from client.intake.refusal import RefusedError
from client.intake.verdict import Code, SeriesVerdict, Verdict
from common.case import IntakeCase
from common.errors import IntakeError
from tests import real_ct

AFFINE = np.array(
    [[-0.8, 0, 0, 90], [0, -0.7, 0, 80], [0, 0, 2.5, -40], [0, 0, 0, 1.0]]
)


@pytest.fixture
def totalseg() -> Path:
    return real_ct.data("totalseg_example")


def ct(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-1000, 1500, shape).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def mask(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    return (np.random.default_rng(1).random(shape) < 0.4).astype(np.uint8)


def read(root: Path) -> dict[str, tuple[SeriesVerdict, IntakeCase | None]]:
    return {verdict.series: (verdict, case) for verdict, case in read_nifti(root)}


# Values and place --------------------------------------------------------------------


def test_a_voxel_has_the_same_place_and_value_in_every_reader(totalseg: Path) -> None:
    path = totalseg / "pulmonary" / "ct_cropped.nii.gz"
    volume = load_nifti(path)
    itk = SimpleITK.ReadImage(str(path))
    rng = np.random.default_rng(4)
    for d, h, w in rng.integers(0, volume.array.shape, (20, 3)).tolist():
        place = (volume.grid.affine @ [d, h, w, 1])[:3]
        want = itk.TransformIndexToPhysicalPoint((w, h, d))
        assert np.allclose(place, want, atol=1e-3)
        assert volume.array[d, h, w] == itk[w, h, d]


def test_the_example_ct_is_taken_in_with_its_61_structures(
    totalseg: Path, tmp_path: Path
) -> None:
    shutil.copy(totalseg / "example_ct.nii.gz", tmp_path)
    label = totalseg / "example_seg_fast_force_split.nii.gz"
    shutil.copy(label, tmp_path / "example_seg.nii.gz")
    (verdict, case) = read(tmp_path)["example_ct"]
    assert case is not None
    assert case.volume.array.shape == (112, 101, 122)
    assert case.volume.array.dtype == np.int16
    assert verdict.hu_range == (-1207.0, 3382.0)
    assert [finding.code for finding in verdict.findings] == [Code.HU_RANGE]
    assert len(case.segments) == 61


def test_a_structure_on_another_grid_refuses_its_case(totalseg: Path) -> None:
    (verdict, case) = read(totalseg / "pulmonary")["ct_cropped"]
    assert case is None
    assert verdict.findings[0].code is Code.LABEL_GRID_MISMATCH
    assert verdict.files == 8


def test_without_that_structure_the_case_is_accepted(
    totalseg: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "p1"
    shutil.copytree(totalseg / "pulmonary", folder)
    (folder / "heart.nii.gz").unlink()
    (verdict, case) = read(tmp_path)["p1/ct_cropped"]
    assert case is not None
    assert case.patient == "p1"
    voxels = {s.name: int(s.mask.sum()) for s in case.segments}
    assert voxels["pulmonary_artery"] == 14261
    assert len(voxels) == 6
    assert verdict.labels == tuple(sorted(voxels))


# Layouts -----------------------------------------------------------------------------


def test_nnunet_folders_pair_by_name_and_take_names_from_the_json(
    tmp_path: Path,
) -> None:
    for case in ("a_1", "b_2"):
        save(tmp_path / "imagesTr" / f"{case}_0000.nii.gz", ct())
        save(tmp_path / "labelsTr" / f"{case}.nii.gz", mask())
    save(tmp_path / "imagesTs" / "c_3_0000.nii.gz", ct())
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}}')
    found = read(tmp_path)
    for case in ("a_1", "b_2"):
        verdict, taken = found[f"imagesTr/{case}_0000"]
        assert verdict.verdict is Verdict.ACCEPT
        assert taken is not None
        assert [segment.name for segment in taken.segments] == ["liver"]
        assert np.array_equal(taken.segments[0].mask, mask().T.astype(bool))
    verdict, taken = found["imagesTs/c_3_0000"]
    assert taken is not None
    assert [finding.code for finding in verdict.findings] == [Code.LABEL_MISSING]
    assert len(found) == 3


@pytest.mark.parametrize(
    "text", ['{"labels": {"liver": 1}', '{"labels": [1]}', "[]", "[" * 99999]
)
def test_a_dataset_json_that_can_not_be_read_refuses_what_it_names(
    tmp_path: Path, text: str
) -> None:
    save(tmp_path / "imagesTr" / "a_0000.nii.gz", ct())
    save(tmp_path / "imagesTr" / "b_0000.nii.gz", ct())
    save(tmp_path / "labelsTr" / "a.nii.gz", mask())
    (tmp_path / "dataset.json").write_text(text)
    found = read(tmp_path)
    verdict, case = found["imagesTr/a_0000"]
    assert case is None
    assert [finding.code for finding in verdict.findings] == [Code.LABEL_UNREADABLE]
    assert found["imagesTr/b_0000"][1] is not None  # it has no label to be named


def test_a_training_label_goes_to_the_training_image_of_that_name(
    tmp_path: Path,
) -> None:
    for folder in ("imagesA", "imagesTr", "imagesZ"):
        save(tmp_path / folder / "x_0000.nii.gz", ct())
    save(tmp_path / "labelsTr" / "x.nii.gz", mask())
    labelled = {name for name, (verdict, _) in read(tmp_path).items() if verdict.labels}
    assert labelled == {"imagesTr/x_0000"}


def test_a_folder_a_case_has_a_file_a_structure(tmp_path: Path) -> None:
    for case in ("s1", "s2"):
        save(tmp_path / case / "ct.nii.gz", ct())
        save(tmp_path / case / "segmentations" / "liver.nii.gz", mask())
        save(tmp_path / case / "segmentations" / "spleen.nii.gz", 1 - mask())
    found = read(tmp_path)
    assert set(found) == {"s1/ct", "s2/ct"}
    for verdict, case in found.values():
        assert verdict.verdict is Verdict.ACCEPT
        assert case is not None
        assert [segment.name for segment in case.segments] == ["liver", "spleen"]
        assert case.patient == verdict.series.split("/")[0]


@pytest.mark.parametrize(
    "tail", ["_seg", "_mask", "_label", "-labels", "_segmentation"]
)
@pytest.mark.parametrize("image", ["x", "x_ct", "x_0000"])
def test_a_label_beside_its_image_is_found(
    tmp_path: Path, image: str, tail: str
) -> None:
    save(tmp_path / f"{image}.nii.gz", ct())
    save(tmp_path / f"x{tail}.nii.gz", mask())
    ((_, case),) = read(tmp_path).values()
    assert case is not None
    assert [segment.name for segment in case.segments] == ["1"]


def test_every_file_ends_in_a_case_or_a_verdict(tmp_path: Path) -> None:
    save(tmp_path / "x.nii.gz", ct())
    save(tmp_path / "lonely_seg.nii.gz", mask())
    save(tmp_path / "two" / "pet_0000.nii.gz", ct())
    save(tmp_path / "two" / "pet_0001.nii.gz", ct())
    save(tmp_path / "y.nii", ct())
    save(tmp_path / "y.nii.gz", ct())
    found = {v.source: [f.code for f in v.findings] for v, _ in read_nifti(tmp_path)}
    assert found == {
        "lonely_seg.nii.gz": [Code.LABEL_UNREFERENCED],
        "x.nii.gz": [Code.LABEL_MISSING],
        "two/pet_0000.nii.gz": [Code.LABEL_MISSING],
        "two/pet_0001.nii.gz": [Code.NOT_CT],
        "y.nii": [Code.LABEL_MISSING],
        "y.nii.gz": [Code.DUPLICATE_DIFFERENT],
    }


def test_scans_of_one_patient_are_kept_together(tmp_path: Path) -> None:
    save(tmp_path / "sub-07" / "ses-1" / "sub-07_ct.nii.gz", ct())
    save(tmp_path / "sub-07" / "ses-2" / "sub-07_ct.nii.gz", ct())
    save(tmp_path / "early.nii.gz", ct())
    save(tmp_path / "late.nii.gz", ct())
    (tmp_path / "patients.csv").write_text("case,patient\nearly,p9\nlate,p9\n")
    patients = {verdict.source: verdict.patient for verdict, _ in read_nifti(tmp_path)}
    assert sorted(patients.values()) == ["p9", "p9", "sub-07", "sub-07"]


@pytest.mark.parametrize(
    "names", [("p1_a", "p1_b"), ("imagesTr/p1_a_0000", "p1_b_0000.nii.gz")]
)
def test_the_patient_table_names_images_as_people_do(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    for name in ("p1_a", "p1_b", "p2_a"):
        save(tmp_path / "imagesTr" / f"{name}_0000.nii.gz", ct())
    rows = "".join(f"{name},P1\n" for name in names)
    (tmp_path / "patients.csv").write_text(f"case,patient\n{rows}")
    patients = [verdict.patient for verdict, _ in read_nifti(tmp_path)]
    assert patients == ["P1", "P1", "imagesTr/p2_a_0000"]


def test_the_patient_table_names_a_case_by_its_folder(tmp_path: Path) -> None:
    for name in ("s1", "s2"):
        save(tmp_path / name / "ct.nii.gz", ct())
    (tmp_path / "patients.csv").write_text("case,patient\ns1,P\ns2,P\n")
    assert [verdict.patient for verdict, _ in read_nifti(tmp_path)] == ["P", "P"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("q,P1", r"\(1\) whose case names no images"),
        ("imagesTr/p,P1\np,P2", r"\(2\) whose case names 2 images"),
        ("imagesTr/p,P1\nimagesTr/p_0000,P2", r"\(2\) that gives a case a second"),
        ("p", r"\(1\) without case or patient"),
    ],
)
def test_a_patient_row_that_is_not_of_one_case_ends_intake(
    tmp_path: Path, rows: str, why: str
) -> None:
    for folder in ("imagesTr", "imagesTs"):
        save(tmp_path / folder / "p_0000.nii.gz", ct())
    (tmp_path / "patients.csv").write_text(f"case,patient\n{rows}\n")
    with pytest.raises(IntakeError, match=why):
        read_nifti(tmp_path)


def test_links_out_and_special_files_are_refused(tmp_path: Path) -> None:
    outside = save(tmp_path / "outside.nii.gz", ct())
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.nii.gz").symlink_to(outside)
    os.mkfifo(root / "b.nii.gz")
    found = {v.source: v.findings[0].code for v, _ in read_nifti(root)}
    assert found == {"a.nii.gz": Code.UNSAFE_LINK, "b.nii.gz": Code.SPECIAL_FILE}


def test_a_folder_without_nifti_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(IntakeError, match="found no"):
        read_nifti(tmp_path)
    with pytest.raises(IntakeError, match="is no folder"):
        read_nifti(tmp_path / "absent")


# Refusals ----------------------------------------------------------------------------


def code_of(path: Path) -> Code:
    with pytest.raises(RefusedError) as refusal:
        load_nifti(path)
    return refusal.value.finding.code


def test_headers_that_can_not_be_right_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    image = nibabel.Nifti1Image(ct(), AFFINE)
    image.set_qform(np.diag([0.8, 0.7, 2.5, 1.0]), code="scanner")
    nibabel.save(image, path)
    assert code_of(path) is Code.BAD_ORIENTATION

    image = nibabel.Nifti1Image(ct(), None)
    nibabel.save(image, path)
    assert code_of(path) is Code.NO_POSITION

    image = nibabel.Nifti1Image(ct(), AFFINE)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
    assert code_of(path) is Code.NO_PIXEL_SPACING

    save(path, ct((4, 4, 3, 2)))
    assert code_of(path) is Code.PIXEL_FORMAT

    save(path, ct().astype(np.complex64))
    assert code_of(path) is Code.PIXEL_FORMAT


def test_a_fourth_axis_of_one_is_a_volume(tmp_path: Path) -> None:
    path = save(tmp_path / "x.nii", ct((6, 5, 4, 1)))
    assert np.array_equal(load_nifti(path).array, ct((6, 5, 4, 1))[..., 0].T)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((4000, 4000, 4000))
    header.set_sform(AFFINE, code="scanner")
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + b"\0" * (4 << 20)))
    assert code_of(path) is Code.DECODE_LIMIT


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_a_cut_off_file_is_refused_at_every_length(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, ct())
    content = path.read_bytes()
    for length in range(0, len(content) - 1, max(1, len(content) // 25)):
        path.write_bytes(content[:length])
        assert code_of(path) is Code.UNREADABLE


@pytest.mark.parametrize(
    ("values", "refuses"),
    [
        (ct() / 1000.0 + 1.0, True),  # a scaled copy, 0 and up
        (ct() + 1024, True),  # stored values, rescale forgotten
        (np.where(ct() > 0, np.nan, ct()), True),
        (np.where(ct() > 0, np.inf, ct()), True),
        (np.full((6, 5, 4), -1000), True),  # nothing but air
        (np.where(ct() > 1400, -3024, ct()), False),  # padding
        (ct(), None),
    ],
)
def test_values_are_judged(
    tmp_path: Path, values: np.ndarray, refuses: bool | None
) -> None:
    save(tmp_path / "x.nii.gz", values.astype(np.float32))
    save(tmp_path / "x_seg.nii.gz", mask())
    ((verdict, case),) = read_nifti(tmp_path)
    found = [(finding.code, finding.refuses) for finding in verdict.findings]
    assert found == ([] if refuses is None else [(Code.HU_RANGE, refuses)])
    assert (case is None) == bool(refuses)


def test_the_headers_scaling_is_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(6, 5, 4), AFFINE)
    image.header.set_slope_inter(10.0, -1024.0)
    nibabel.save(image, tmp_path / "x.nii")
    ((_, case),) = read_nifti(tmp_path)
    assert case is not None
    raw = nibabel.load(tmp_path / "x.nii").get_fdata()
    assert np.array_equal(case.volume.array, raw.T)
