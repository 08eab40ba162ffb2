"""Exports: one value at one place in three readers, and back to one digest."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from client.intake.digest import case_digest
from client.intake.export import export_case
from client.intake.nifti import read_nifti
from common.case import IntakeCase, Segment
from common.volume import Grid, Volume

AXES = {
    "axial": np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float),
    "feet first": np.array([[0, 0, -1], [0, 1, 0], [-1, 0, 0]], float),
    "coronal": np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float),
    "sagittal": np.array([[-1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
    "oblique": np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0],
}


def case(
    axes: np.ndarray, series: str = "1.2.840.99", kind: type = np.int16
) -> IntakeCase:
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3, :3] = axes * [2.5, 0.7, 0.8]
    affine[:3, 3] = [-120.5, 33.25, 871.0]
    grid = Grid((4, 6, 7), affine)
    array = rng.integers(-1000, 2000, grid.shape).astype(kind)
    drawn = rng.random((2, *grid.shape)) < 0.3
    segments = (Segment("liver", drawn[0]), Segment("spleen", drawn[1]))
    volume = Volume(array, grid)
    digest = case_digest(volume, segments)
    return IntakeCase(series, "Jane Doe", volume, segments, digest=digest)


@pytest.mark.parametrize("name", AXES)
def test_itk_and_nibabel_see_every_voxel_where_the_grid_has_it(
    tmp_path: Path, name: str
) -> None:
    taken = case(AXES[name])
    files = export_case(taken, tmp_path)
    arrays = [taken.volume.array, *(segment.mask for segment in taken.segments)]
    assert len(files) == 3
    for file, array in zip(files, arrays, strict=True):
        itk = SimpleITK.ReadImage(str(file))
        nifti = nibabel.load(file)
        values = np.asanyarray(nifti.dataobj)
        for d, h, w in np.ndindex(array.shape):
            place = (taken.volume.grid.affine @ [d, h, w, 1])[:3]
            assert np.allclose(
                itk.TransformIndexToPhysicalPoint((w, h, d)), place, atol=1e-3
            )
            ras = (nifti.affine @ [w, h, d, 1])[:3]
            assert np.allclose(ras * [-1, -1, 1], place, atol=1e-3)
            assert itk[w, h, d] == values[w, h, d] == array[d, h, w]


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("kind", [np.int16, np.float32, np.int32])
def test_an_export_is_taken_in_again_with_the_same_digest(
    tmp_path: Path, name: str, kind: type
) -> None:
    taken = case(AXES[name], kind=kind)
    export_case(taken, tmp_path)
    ((_, again),) = read_nifti(tmp_path)
    assert again is not None
    assert [segment.name for segment in again.segments] == ["001-liver", "002-spleen"]
    named = [
        Segment(old.name, new.mask)
        for old, new in zip(taken.segments, again.segments, strict=True)
    ]
    assert case_digest(again.volume, named) == taken.digest


def test_a_wide_grid_with_a_little_shear_is_taken_in_again(tmp_path: Path) -> None:
    affine = np.diag([0.7, 0.7, 2.5, 1.0])[[2, 1, 0, 3]]
    affine[1, 2] = 9e-4  # 0.46 mm over 512 voxels, which no quaternion holds
    grid = Grid((2, 3, 512), affine)
    hu = np.random.default_rng(0).integers(-1000, 900, grid.shape).astype(np.int16)
    export_case(IntakeCase("1", "p", Volume(hu, grid), digest="d"), tmp_path)
    ((verdict, again),) = read_nifti(tmp_path)
    assert again is not None, verdict
    assert again.volume.grid.same_as(grid)


def test_whole_hu_are_stored_as_int16_and_others_as_float(tmp_path: Path) -> None:
    whole = export_case(case(AXES["axial"]), tmp_path)
    assert nibabel.load(whole[0]).get_data_dtype() == np.int16
    fine = case(AXES["axial"], series="2", kind=np.float32)
    array = fine.volume.array + np.float32(0.25)
    fine = IntakeCase("2", "p", Volume(array, fine.volume.grid))
    (file,) = export_case(fine, tmp_path)
    assert nibabel.load(file).get_data_dtype() == np.float32
    assert np.array_equal(np.asanyarray(nibabel.load(file).dataobj).T, array)


def test_names_tell_nothing_and_the_index_tells_which_is_which(tmp_path: Path) -> None:
    first = case(AXES["axial"], series="../../1.2 Jane/Doe")
    odd = (
        Segment("Läsion/../x\n", first.segments[0].mask),
        Segment("", odd_mask(first)),
    )
    first = IntakeCase(first.series, first.patient, first.volume, odd)
    files = export_case(first, tmp_path / "out")
    export_case(case(AXES["axial"], series="1.2.3"), tmp_path / "out")
    assert all(file.parent == tmp_path / "out" for file in files)
    assert not any("Jane" in file.name or "/" in file.name for file in files)
    assert len({file.name for file in files}) == 3
    with (tmp_path / "out" / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    assert {row["file"] for row in rows} == {
        path.name for path in (tmp_path / "out").glob("*.nii.gz")
    }
    assert rows[1]["segment"] == "Läsion/../x\n"
    assert {row["patient"] for row in rows} == {"Jane Doe"}
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700


def odd_mask(taken: IntakeCase) -> np.ndarray:
    return taken.segments[1].mask


def test_an_export_again_replaces_its_files_and_leaves_no_others(
    tmp_path: Path,
) -> None:
    taken = case(AXES["axial"])
    before = {file.name: file.read_bytes() for file in export_case(taken, tmp_path)}
    again = {file.name: file.read_bytes() for file in export_case(taken, tmp_path)}
    assert before == again
    assert len(list(tmp_path.iterdir())) == 4
    fewer = IntakeCase(taken.series, taken.patient, taken.volume)
    export_case(fewer, tmp_path)
    with (tmp_path / "index.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert len(list(tmp_path.glob("*.nii.gz"))) == 1


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("client.intake.export.os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        export_case(case(AXES["axial"]), tmp_path)
    assert list(tmp_path.iterdir()) == []
