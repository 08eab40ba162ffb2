"""Label maps: real ones with their counts, any axis order, and what is refused."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from client.intake.nifti_file import load_nifti, ras_affine
from client.intake.verdict import Code
from client.labels.label_map import read_label_map
from common.volume import AxisOrder, Grid, Volume, reorder


def test_the_reference_map_of_61_structures_has_its_counts(data: Path) -> None:
    folder = data / "totalseg_example"
    grid = load_nifti(folder / "example_ct.nii.gz").grid
    segments, findings = read_label_map(
        folder / "example_seg_fast_force_split.nii.gz", grid, names={5: "liver"}
    )
    stored = nibabel.load(folder / "example_seg_fast_force_split.nii.gz")
    counts = np.bincount(np.asanyarray(stored.dataobj).ravel())
    assert len(segments) == 61
    assert findings == ()
    by_name = {segment.name: int(segment.mask.sum()) for segment in segments}
    assert by_name.pop("liver") == counts[5] > 10_000
    assert all(by_name[name] == counts[int(name)] for name in by_name)


def test_a_nifti_map_lies_on_its_dicom_series(data: Path, series_grid: Any) -> None:
    # The file's first axis runs to the patient's right to left and its second upward,
    # so in-plane order differs from the DICOM's; the box is the same.
    folder = data / "totalseg_example"
    grid, _ = series_grid(folder / "example_ct_dicom")
    segments, findings = read_label_map(folder / "example_seg_dicom.nii.gz", grid)
    assert findings == ()
    assert len(segments) == 31
    stored = nibabel.load(folder / "example_seg_dicom.nii.gz")
    array = np.asanyarray(stored.dataobj)
    # One voxel of each structure, by way of patient coordinates.
    for segment in segments:
        i, j, k = np.argwhere(array == int(segment.name))[0]
        x, y, z, _ = stored.affine @ [i, j, k, 1]
        at = np.linalg.inv(grid.affine) @ [-x, -y, z, 1]
        assert segment.mask[tuple(np.rint(at[:3]).astype(int))]


def test_the_vessel_has_its_count_and_the_heart_another_grid(data: Path) -> None:
    folder = data / "totalseg_example" / "pulmonary"
    grid = load_nifti(folder / "ct_cropped.nii.gz").grid
    artery, findings = read_label_map(
        folder / "pulmonary_artery.nii.gz", grid, structure="pulmonary_artery"
    )
    assert findings == ()
    assert [s.name for s in artery] == ["pulmonary_artery"]
    assert int(artery[0].mask.sum()) == 14261
    heart, findings = read_label_map(folder / "heart.nii.gz", grid)
    assert heart == ()
    assert [(f.code, f.refuses) for f in findings] == [(Code.LABEL_GRID_MISMATCH, True)]


@pytest.mark.parametrize(
    ("file", "numbers"),
    [("liver_spine_gapped_seg.nrrd", {"1": 107098, "5": 12439})],
)
def test_a_nrrd_map_lies_on_its_series(
    seg_data: Path, series_grid: Any, file: str, numbers: dict[str, int]
) -> None:
    grid, _ = series_grid(seg_data / "ct-3slice")
    segments, findings = read_label_map(seg_data / file, grid)
    assert findings == ()
    assert {s.name: int(s.mask.sum()) for s in segments} == numbers


# Small maps --------------------------------------------------------------------------


def small_grid(shift_mm: float = 0.0, shape: tuple[int, int, int] = (3, 4, 5)) -> Grid:
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [3.0, 0.75, 0.75]
    affine[:3, 3] = [-12.0 + shift_mm, 40.0, 1003.5]
    return Grid(shape, affine)


def save(path: Path, volume: Volume) -> Path:
    image = nibabel.Nifti1Image(
        volume.array.transpose(2, 1, 0), ras_affine(volume.grid)
    )
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def numbered(grid: Grid) -> Volume:
    rng = np.random.default_rng(1)
    return Volume(rng.integers(0, 4, grid.shape).astype(np.uint8), grid)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_any_order_and_direction_of_axes_gives_the_same_masks(
    tmp_path: Path, order: tuple[int, int, int]
) -> None:
    volume = numbered(small_grid())
    for flip in product((False, True), repeat=3):
        stored = reorder(volume, AxisOrder(order, flip))
        segments, findings = read_label_map(
            save(tmp_path / "x.nii", stored), volume.grid
        )
        assert findings == ()
        for segment in segments:
            want = volume.array == int(segment.name)
            assert np.array_equal(segment.mask, want)


def only_code(path: Path, grid: Grid, **more: Any) -> Code:
    segments, findings = read_label_map(path, grid, **more)
    assert segments == ()
    assert [finding.refuses for finding in findings] == [True]
    return findings[0].code


def moved_by_one_slice(grid: Grid) -> np.ndarray:
    moved = grid.affine.copy()
    moved[:3, 3] += moved[:3, 0]
    return moved


def test_a_single_slice_of_another_thickness_is_refused(tmp_path: Path) -> None:
    # Its corners coincide with the image's; only the step along D tells.
    grid = small_grid(shape=(1, 4, 5))
    thick = Grid(grid.shape, grid.affine @ np.diag([1.4, 1.0, 1.0, 1.0]))
    path = save(tmp_path / "x.nii", numbered(thick))
    assert only_code(path, grid) is Code.LABEL_GRID_MISMATCH


def test_a_map_that_is_shifted_cut_or_coarser_is_refused(tmp_path: Path) -> None:
    grid = small_grid()
    others = [
        small_grid(shift_mm=0.4),
        Grid(grid.shape, moved_by_one_slice(grid)),
        small_grid(shape=(3, 4, 6)),
        small_grid(shape=(2, 4, 5)),
        Grid((3, 2, 5), grid.affine @ np.diag([1.0, 2.0, 1.0, 1.0])),
    ]
    for other in others:
        path = save(tmp_path / "x.nii.gz", numbered(other))
        assert only_code(path, grid) is Code.LABEL_GRID_MISMATCH


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan, 70000.0])
def test_values_that_are_no_label_numbers_are_refused(
    tmp_path: Path, value: float
) -> None:
    grid = small_grid()
    array = np.zeros(grid.shape, np.float32)
    array[1, 1, 1] = value
    path = save(tmp_path / "x.nii", Volume(array, grid))
    assert only_code(path, grid) is Code.LABEL_VALUE


def test_whole_numbers_stored_as_floats_are_a_map(tmp_path: Path) -> None:
    grid = small_grid()
    array = numbered(grid).array.astype(np.float64)
    segments, _ = read_label_map(save(tmp_path / "x.nii", Volume(array, grid)), grid)
    assert [segment.name for segment in segments] == ["1", "2", "3"]


def test_a_structure_file_is_called_by_its_structure(tmp_path: Path) -> None:
    grid = small_grid()
    mask = np.zeros(grid.shape, np.uint8)
    empty = save(tmp_path / "a.nii", Volume(mask, grid))
    segments, findings = read_label_map(empty, grid, structure="spleen")
    assert [(s.name, bool(s.mask.any())) for s in segments] == [("spleen", False)]
    assert [(f.code, f.refuses) for f in findings] == [(Code.LABEL_EMPTY, False)]
    mask[0] = 255
    full = save(tmp_path / "b.nii", Volume(mask, grid))
    segments, findings = read_label_map(full, grid, structure="spleen")
    assert [(s.name, int(s.mask.sum())) for s in segments] == [("spleen", 20)]
    assert findings == ()
    many = save(tmp_path / "c.nii", numbered(grid))
    segments, _ = read_label_map(many, grid, structure="lobe")
    assert [s.name for s in segments] == ["lobe-1", "lobe-2", "lobe-3"]


def test_a_named_number_that_does_not_occur_is_an_empty_segment(tmp_path: Path) -> None:
    grid = small_grid()
    path = save(tmp_path / "x.nii", numbered(grid))
    segments, findings = read_label_map(path, grid, names={2: "two", 9: "nine"})
    assert [s.name for s in segments] == ["1", "two", "3", "nine"]
    assert findings[0].code is Code.LABEL_EMPTY


def test_a_cut_off_map_is_refused(tmp_path: Path) -> None:
    grid = small_grid()
    for name in ("x.nii", "x.nii.gz"):
        path = save(tmp_path / name, numbered(grid))
        content = path.read_bytes()
        for length in range(0, len(content) - 1, max(1, len(content) // 25)):
            path.write_bytes(content[:length])
            assert only_code(path, grid) is Code.LABEL_UNREADABLE
