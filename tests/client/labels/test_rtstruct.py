"""RTSTRUCT import: real tumour volumes, and shapes whose area is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from client.intake.verdict import Code
from client.labels.rtstruct import fill, read_rtstruct
from common.volume import Grid


@pytest.mark.parametrize(
    ("patient", "file", "cm3", "slices"),
    [
        ("pat_1", "DCM_RS_00060.dcm", 358.7, 26),
        ("pat_2", "DCM_RS_00041.dcm", 6.4, 7),
    ],
)
def test_real_tumours_have_their_published_volume(
    data: Path, series_grid: Any, patient: str, file: str, cm3: float, slices: int
) -> None:
    folder = data / "rtstruct_lung4" / patient
    grid, _ = series_grid(folder, "DCM_IMG*")
    segments, findings = read_rtstruct(folder / file, grid)
    assert findings == ()
    assert [segment.name for segment in segments] == ["GTV-1"]
    mask = segments[0].mask
    assert int(mask.any(axis=(1, 2)).sum()) == slices
    assert mask.sum() * grid.voxel_mm3 / 1000 == pytest.approx(cm3, rel=0.01)


# Shapes in voxel indices -------------------------------------------------------------

RECTANGLE = np.array([[1.5, 2.5], [1.5, 6.5], [4.5, 6.5], [4.5, 2.5]])


def test_a_rectangle_holds_the_centres_inside_it() -> None:
    mask = fill([RECTANGLE], (8, 9))
    want = np.zeros((8, 9), bool)
    want[2:5, 3:7] = True
    assert np.array_equal(mask, want)


def test_an_inner_contour_is_a_hole() -> None:
    inner = np.array([[2.5, 3.5], [2.5, 5.5], [3.5, 5.5], [3.5, 3.5]])
    mask = fill([RECTANGLE, inner], (8, 9))
    assert int(mask.sum()) == 12 - 2
    assert not mask[3, 4]


def test_neighbours_that_share_an_edge_share_no_voxel_and_leave_no_gap() -> None:
    # The shared edges run through voxel centres, where only one of the two may win.
    left = np.array([[0.0, 0.0], [0.0, 4.0], [6.0, 4.0], [6.0, 0.0]])
    right = left + np.array([0.0, 4.0])
    a, b = fill([left], (8, 10)), fill([right], (8, 10))
    assert not (a & b).any()
    assert int((a | b).sum()) == 6 * 8


def test_a_disc_has_its_area() -> None:
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    disc = np.stack([60 + 40.3 * np.sin(angle), 62 + 40.3 * np.cos(angle)], axis=1)
    assert fill([disc], (120, 130)).sum() == pytest.approx(np.pi * 40.3**2, rel=0.005)


@given(
    st.lists(
        st.tuples(st.floats(-3, 12).map(lambda v: v + 0.013), st.floats(-3, 12)),
        min_size=3,
        max_size=9,
    )
)
def test_the_fill_is_even_odd_for_any_polygon(points: list) -> None:
    polygon = np.array(points)
    mask = fill([polygon], (9, 10))
    for h in range(9):
        for w in range(10):
            assert mask[h, w] == crossings_right_of(polygon, h, w) % 2


def crossings_right_of(polygon: np.ndarray, h: int, w: int) -> int:
    """The textbook's ray to the left, edge by edge: how often it meets the outline."""
    count = 0
    for (h0, w0), (h1, w1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (h0 >= h + 0.0) != (h1 >= h + 0.0) and h0 != h1:
            low, high = ((h0, w0), (h1, w1)) if h0 < h1 else ((h1, w1), (h0, w0))
            at = low[1] + (h - low[0]) / (high[0] - low[0]) * (high[1] - low[1])
            count += at <= w
    return count


def test_the_fill_agrees_with_matplotlib_on_a_smooth_outline() -> None:
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = 30 + 8 * np.sin(5 * angle)
    outline = np.stack([40 + radius * np.sin(angle), 41 + radius * np.cos(angle)], 1)
    centres = np.stack(np.mgrid[:80, :82], axis=-1).reshape(-1, 2)
    want = Outline(outline).contains_points(centres).reshape(80, 82)
    assert np.array_equal(fill([outline], (80, 82)), want)


# Whole objects -----------------------------------------------------------------------

FRAME = generate_uid()


def oblique_grid(depth: int = 6) -> Grid:
    turn, _ = np.linalg.qr(np.random.default_rng(11).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = turn * [3.0, 0.9, 0.8]
    affine[:3, 3] = [12.0, -230.5, 77.25]
    return Grid((depth, 20, 24), affine)


def contour(grid: Grid, d: float, points: np.ndarray, kind: str = "CLOSED_PLANAR"):
    item = Dataset()
    item.ContourGeometricType = kind
    indices = np.column_stack([np.full(len(points), d), points, np.ones(len(points))])
    mm = (grid.affine @ indices.T)[:3].T
    item.NumberOfContourPoints = len(points)
    item.ContourData = [f"{v:.6f}" for v in mm.ravel()]
    return item


def write(path: Path, contours: list[Dataset], frame: str = FRAME) -> Path:
    struct = Dataset()
    struct.file_meta = FileMetaDataset()
    struct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    struct.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    struct.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    struct.SOPClassUID = RTStructureSetStorage
    struct.SOPInstanceUID = struct.file_meta.MediaStorageSOPInstanceUID
    roi = Dataset()
    roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = 1, "GTV", frame
    struct.StructureSetROISequence = Sequence([roi])
    drawn = Dataset()
    drawn.ReferencedROINumber = 1
    drawn.ContourSequence = Sequence(contours)
    struct.ROIContourSequence = Sequence([drawn])
    struct.save_as(path, enforce_file_format=True)
    return path


def test_contours_on_an_oblique_series_fill_their_own_slices(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, d, RECTANGLE) for d in (2, 3)])
    segments, findings = read_rtstruct(path, grid, frame_of_reference=FRAME)
    want = np.zeros(grid.shape, bool)
    want[2:4, 2:5, 3:7] = True
    assert findings == ()
    assert np.array_equal(segments[0].mask, want)


def test_a_contour_stored_twice_does_not_cancel_itself(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, 2, RECTANGLE)] * 2)
    segments, _ = read_rtstruct(path, grid)
    assert int(segments[0].mask.sum()) == 12


def refused(path: Path, grid: Grid, **more: Any) -> Code:
    segments, findings = read_rtstruct(path, grid, **more)
    assert segments == ()
    assert len(findings) == 1
    assert findings[0].refuses
    return findings[0].code


def test_contours_that_miss_the_slices_are_refused(tmp_path: Path) -> None:
    grid = oblique_grid()
    for d in (2.5, 7.0, -1.0):
        path = write(tmp_path / "rs", [contour(grid, d, RECTANGLE)])
        assert refused(path, grid) is Code.LABEL_GRID_MISMATCH


@pytest.mark.parametrize("slices", [(0, 2, 4), (1, 4, 7), (0, 2, 4, 12, 14)])
def test_contours_on_every_nth_slice_are_refused(
    tmp_path: Path, slices: tuple[int, ...]
) -> None:
    grid = oblique_grid(depth=15)
    path = write(tmp_path / "rs", [contour(grid, d, RECTANGLE) for d in slices])
    assert refused(path, grid) is Code.LABEL_GRID_MISMATCH


@pytest.mark.parametrize("slices", [(2, 6, 13), (0, 4), (3,), (1, 2, 4, 6)])
def test_lesions_of_one_slice_each_are_taken(
    tmp_path: Path, slices: tuple[int, ...]
) -> None:
    grid = oblique_grid(depth=15)
    path = write(tmp_path / "rs", [contour(grid, d, RECTANGLE) for d in slices])
    (segment,), findings = read_rtstruct(path, grid)
    assert np.flatnonzero(segment.mask.any(axis=(1, 2))).tolist() == list(slices)
    assert findings == ()


def test_a_contour_beside_the_image_is_refused_and_one_over_its_edge_is_cut(
    tmp_path: Path,
) -> None:
    grid = oblique_grid()
    beside = write(tmp_path / "a", [contour(grid, 2, RECTANGLE + np.array([0, 30]))])
    assert refused(beside, grid) is Code.LABEL_GRID_MISMATCH
    over = write(tmp_path / "b", [contour(grid, 2, RECTANGLE + np.array([0, 19]))])
    segments, findings = read_rtstruct(over, grid)
    assert int(segments[0].mask.sum()) == 3 * 2
    assert [(f.code, f.refuses) for f in findings] == [
        (Code.LABEL_GRID_MISMATCH, False)
    ]


def test_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, 2, RECTANGLE)], generate_uid())
    assert refused(path, grid, frame_of_reference=FRAME) is Code.LABEL_GRID_MISMATCH


def test_points_mark_nothing_and_leave_notes(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, 2, RECTANGLE[:1], "POINT")])
    segments, findings = read_rtstruct(path, grid)
    assert not segments[0].mask.any()
    assert [(f.code, f.refuses) for f in findings] == [
        (Code.LABEL_VALUE, False),
        (Code.LABEL_EMPTY, False),
    ]


def test_an_object_without_preamble_is_read(data: Path, tmp_path: Path) -> None:
    # pydicom's rtstruct.dcm has neither preamble nor meta group.
    source = data / "dicom_syntaxes" / "pydicom" / "rtstruct.dcm"
    _, findings = read_rtstruct(source, oblique_grid())
    assert Code.LABEL_UNREADABLE not in {finding.code for finding in findings}


def test_damage_is_refused_at_every_length(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, d, RECTANGLE) for d in (2, 3)])
    content = path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:length])
        assert refused(path, grid) is Code.LABEL_UNREADABLE


def test_no_tag_value_is_in_a_sentence(tmp_path: Path) -> None:
    grid = oblique_grid()
    path = write(tmp_path / "rs", [contour(grid, 2, RECTANGLE)])
    struct = pydicom.dcmread(path)
    struct.ROIContourSequence[0].ReferencedROINumber = 1
    raw = path.read_bytes().replace(b"CLOSED_PLANAR", b"SECRET_PLANAR")
    path.write_bytes(raw)
    _, findings = read_rtstruct(path, grid)
    assert findings
    assert not any("SECRET" in finding.sentence for finding in findings)
