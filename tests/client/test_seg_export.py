"""A mask that goes out as DICOM SEG comes back voxel for voxel, on any series."""

import shutil
import stat
import subprocess
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from client.intake.dicom import read_dicom
from client.intake.pool import DecodeLimits, DecoderPool
from client.labels.seg import read_seg
from client.predictor import network_of
from client.predictor import segment as segment_volume
from client.seg_export import Algorithm, missing_identity, write_seg
from common.errors import GeometryError, LabelError
from common.volume import Grid, Volume, canonical
from deploy.phantom.dicom import write_series
from deploy.phantom.scanner import Scanner
from tests.real_ct import ROOT
from tests.threshold_model import threshold_package, threshold_plan

MULTIFRAME = ROOT / "dicom_seg/dcmqi_segmentations/23x38x3/multiframe"
ALGORITHM = Algorithm("nodules", "ab" * 32, "0.1.0")
AXIAL = np.eye(3)[:, ::-1]
"""D along z, H along y, W along x."""
SHAPE = (5, 6, 7)
SPACING = (2.5, 0.7, 0.9)
ABOVE_HU = (-300.5, 300.5)
CPU = torch.device("cpu")
DCIODVFY = shutil.which("dciodvfy")


def affine_of(axes: np.ndarray, spacing=SPACING) -> np.ndarray:
    """D, H, W run along the columns of `axes`; right-handed as any DICOM series."""
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = (-31.25, 12.5, 100.0)
    return affine


def right_handed(axes: np.ndarray) -> np.ndarray:
    """The same W and H, and D along their cross product (planes sorted by it)."""
    axes = axes.copy()
    axes[:, 0] = np.cross(axes[:, 2], axes[:, 1])
    return axes


def all_orientations() -> list[np.ndarray]:
    """The 24 series whose axes run along the patient's: all planes and flips."""
    found = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            axes = np.eye(3)[:, order] * signs
            if np.array_equal(axes, right_handed(axes)):
                found.append(axes)
    return found


@pytest.fixture(scope="module")
def pool():
    with DecoderPool(DecodeLimits()) as kept:
        yield kept


def take_in(folder: Path, pool: DecoderPool):
    """The one series of a folder and its volume, as intake has them."""
    found = []

    def remember(series, _grid, _index):
        found.append(series)
        return (), ()

    ((verdict, case),) = read_dicom(folder, labels=remember, pool=pool)
    assert case is not None, verdict.findings
    return found[0], case.volume


def predicted(volume: Volume) -> Volume:
    """What `fedct predict` makes of a volume with a model of two thresholds."""
    plan = threshold_plan(("lung", "odd thing"))
    network = network_of(threshold_package(plan, ABOVE_HU), CPU)
    return segment_volume(network, volume, plan, CPU)


def above_thresholds(volume: Volume) -> np.ndarray:
    """The same, written down without a network."""
    return sum((volume.array > hu).astype(np.uint8) for hu in ABOVE_HU)


def write(folder: Path, affine: np.ndarray, shape=SHAPE, seed=0) -> Volume:
    """Write a series of noise on a grid."""
    rng = np.random.default_rng(seed)
    hu = rng.integers(-1000, 1000, shape).astype(np.int16)
    write_series(
        folder, Volume(hu, Grid(shape, affine)), scanner=Scanner(), patient="p", seed=1
    )
    return Volume(hu, Grid(shape, affine))


def random_mask(shape=SHAPE, classes=2, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes + 1, shape).astype(np.uint8)


def export(path: Path, array, grid: Grid, series, names=("lung", "odd thing")) -> Path:
    write_seg(path, Volume(array, grid), series, class_names=names, algorithm=ALGORITHM)
    return path


def as_classes(segments) -> np.ndarray:
    array = np.zeros(segments[0].mask.shape, dtype=np.uint8)
    for number, segment in enumerate(segments, start=1):
        array[segment.mask] = number
    return array


def through_highdicom(path: Path) -> Volume:
    """What highdicom reads, whose D runs the other way."""
    read = hd.seg.segread(path).get_volume(combine_segments=True)
    shape = tuple(read.array.shape)
    return canonical(Volume(read.array, Grid(shape, read.affine)))


@pytest.fixture(scope="module")
def axial(tmp_path_factory, pool):
    folder = tmp_path_factory.mktemp("axial")
    write(folder, affine_of(AXIAL))
    return folder, *take_in(folder, pool)


@pytest.mark.parametrize("number", range(24))
def test_the_whole_way_out_and_back_is_the_identity(tmp_path, pool, number):
    """DICOM -> volume -> model space -> network -> mask -> DICOM SEG -> mask."""
    written = write(tmp_path / "ct", affine_of(all_orientations()[number]))
    series, volume = take_in(tmp_path / "ct", pool)
    assert volume.grid.same_as(written.grid)
    assert np.array_equal(volume.array, written.array)
    found = predicted(volume)
    export(tmp_path / "seg.dcm", found.array, found.grid, series)
    segments, findings = read_seg(tmp_path / "seg.dcm", volume.grid)
    assert not findings
    assert [segment.name for segment in segments] == ["lung", "odd thing"]
    assert np.array_equal(as_classes(segments), above_thresholds(written))


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    shape=st.tuples(st.integers(3, 6), st.integers(3, 9), st.integers(3, 9)),
    spacing=st.tuples(*[st.floats(0.3, 5.0)] * 3),
    seed=st.integers(0, 9),
)
def test_oblique_series_of_any_size_and_spacing_keep_every_voxel(
    tmp_path_factory, pool, turn, shape, spacing, seed
):
    folder = tmp_path_factory.mktemp("oblique")
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    written = write(folder / "ct", affine_of(right_handed(axes), spacing), shape, seed)
    series, volume = take_in(folder / "ct", pool)
    export(folder / "seg", predicted(volume).array, volume.grid, series)
    segments, _ = read_seg(folder / "seg", volume.grid)
    assert np.array_equal(as_classes(segments), above_thresholds(written))


def test_highdicom_reads_the_same_voxels_at_the_same_places(axial, tmp_path):
    _, series, volume = axial
    drawn = random_mask()
    drawn[1] = 0  # an empty plane in the middle is left out of the file
    path = export(tmp_path / "seg.dcm", drawn, volume.grid, series)
    assert hd.seg.segread(path).number_of_frames == 8
    read = through_highdicom(path)
    assert np.array_equal(read.array, drawn)
    assert read.grid.same_as(volume.grid)


def test_the_file_says_what_it_is_and_refers_to_every_image(axial, tmp_path):
    folder, series, volume = axial
    mask = np.zeros(SHAPE, np.uint8)
    mask[2, 3, 4] = 1
    ds = pydicom.dcmread(export(tmp_path / "seg.dcm", mask, volume.grid, series))
    source = pydicom.dcmread(folder / "0001.dcm")
    assert "research use only" in ds.SeriesDescription
    assert ds.Modality == "SEG"
    assert ds.SegmentationType == "BINARY"
    for shared in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert ds[shared].value == source[shared].value
    assert ds.SeriesInstanceUID != source.SeriesInstanceUID
    (referenced,) = ds.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == source.SeriesInstanceUID
    named = {
        item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence
    }
    assert named == set(series.sop_instance_uids)
    lung, odd = ds.SegmentSequence
    assert lung.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Lung"
    assert odd.SegmentLabel == "odd thing"
    for segment in (lung, odd):
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        (made_by,) = segment.SegmentationAlgorithmIdentificationSequence
        assert (made_by.AlgorithmName, made_by.AlgorithmVersion) == (
            "nodules",
            "ab" * 32,
        )
    (frame,) = ds.PerFrameFunctionalGroupsSequence
    (origin,) = frame.DerivationImageSequence[0].SourceImageSequence
    assert origin.ReferencedSOPInstanceUID == series.sop_instance_uids[2]
    assert stat.S_IMODE((tmp_path / "seg.dcm").stat().st_mode) == 0o600


def test_a_mask_that_found_nothing_is_still_a_segmentation(axial, tmp_path):
    _, series, volume = axial
    nothing = np.zeros(SHAPE, np.uint8)
    path = export(tmp_path / "seg.dcm", nothing, volume.grid, series)
    segments, findings = read_seg(path, volume.grid)
    assert len(segments) == 2
    assert not any(segment.mask.any() for segment in segments)
    assert not any(finding.refuses for finding in findings)


@pytest.mark.skipif(DCIODVFY is None, reason="dciodvfy (Debian: dicom3tools) is absent")
@pytest.mark.parametrize("classes", [0, 1, 2])
def test_dciodvfy_finds_no_error(axial, tmp_path, classes):
    _, series, volume = axial
    mask = random_mask(classes=classes)
    path = export(tmp_path / "seg.dcm", mask, volume.grid, series)
    said = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    errors = [line for line in said.stderr.splitlines() if line.startswith("Error")]
    assert errors == []
    assert "Segmentation" in said.stderr


def test_a_stale_spacing_tag_of_the_source_is_not_passed_on(tmp_path, pool):
    folder = tmp_path / "ct"
    write(folder, affine_of(AXIAL))
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.SpacingBetweenSlices, ds.SliceThickness = "0.5", "9"
        ds.save_as(path)
    series, volume = take_in(folder, pool)
    path = export(tmp_path / "seg.dcm", random_mask(), volume.grid, series)
    shared = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0]
    (measures,) = shared.PixelMeasuresSequence
    assert float(measures.SpacingBetweenSlices) == 2.5
    assert np.array_equal(through_highdicom(path).array, random_mask())


def test_heads_with_little_in_them_and_odd_letters_are_enough(tmp_path, pool):
    folder = tmp_path / "ct"
    write(folder, affine_of(AXIAL))
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName = "Jürgen^Ö"
        for keyword in ("StudyID", "PatientBirthDate", "SliceThickness", "StudyTime"):
            del ds[keyword]
        ds.save_as(path)
    series, volume = take_in(folder, pool)
    names = ("Rundherd µ", "a\\b" + "x" * 80)
    path = export(tmp_path / "seg.dcm", random_mask(), volume.grid, series, names)
    ds = pydicom.dcmread(path)
    assert str(ds.PatientName) == "Jürgen^Ö"
    assert [s.SegmentLabel for s in ds.SegmentSequence] == [
        "Rundherd µ",
        "a/b" + "x" * 61,
    ]


def test_planes_in_another_order_than_the_mask_are_refused(axial, tmp_path):
    _, series, volume = axial
    turned = replace(series, slices=series.slices[::-1])
    with pytest.raises(GeometryError, match="series' own grid"):
        export(tmp_path / "seg.dcm", random_mask(), volume.grid, turned)
    fewer = replace(series, slices=series.slices[1:])
    with pytest.raises(GeometryError, match="5 slices for a series of 4"):
        export(tmp_path / "seg.dcm", random_mask(), volume.grid, fewer)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_with_its_rows_flipped_is_refused(axial, tmp_path):
    _, series, volume = axial
    affine = volume.grid.affine.copy()
    affine[:3, 2] *= -1
    with pytest.raises(GeometryError, match="series' own grid"):
        export(tmp_path / "seg.dcm", random_mask(), Grid(SHAPE, affine), series)


def test_a_class_without_a_name_is_refused(axial, tmp_path):
    _, series, volume = axial
    with pytest.raises(LabelError, match="class 3, expected uint8 with at most 2"):
        export(tmp_path / "seg.dcm", random_mask(classes=3), volume.grid, series)


def test_a_series_that_nothing_can_refer_to_is_refused(axial, tmp_path):
    _, series, volume = axial
    assert missing_identity(series) is None
    anonymous = replace(series.slices[3], sop_instance_uid=None)
    slices = (*series.slices[:3], anonymous, *series.slices[4:])
    nameless = replace(series, slices=slices)
    assert missing_identity(nameless) == "SOPInstanceUID"
    with pytest.raises(LabelError, match="without SOPInstanceUID"):
        export(tmp_path / "seg.dcm", random_mask(), volume.grid, nameless)


def turn_frames(path: Path) -> None:
    """Store the frames of a file the other way round, each with its place."""
    ds = pydicom.dcmread(path)
    ds.PixelData = ds.pixel_array[::-1].tobytes()
    groups = list(ds.PerFrameFunctionalGroupsSequence)
    ds.PerFrameFunctionalGroupsSequence = groups[::-1]
    ds.save_as(path)


@pytest.mark.skipif(not MULTIFRAME.is_dir(), reason=f"no test data in {ROOT}")
def test_frames_of_a_real_multi_frame_series_keep_their_places(tmp_path, pool):
    folder = tmp_path / "ct"
    shutil.copytree(MULTIFRAME, folder)
    turn_frames(folder / "mf.dcm")
    series, volume = take_in(folder, pool)
    assert len({plane.path for plane in series.slices}) == 1
    assert [plane.frame for plane in series.slices] == [2, 1, 0]
    drawn = random_mask(volume.grid.shape)
    drawn[0] = 0
    path = export(tmp_path / "seg.dcm", drawn, volume.grid, series)
    segments, findings = read_seg(path, volume.grid)
    assert not any(finding.refuses for finding in findings)
    assert np.array_equal(as_classes(segments), drawn)
    frames = pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
    named = {
        int(
            item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        )
        for item in frames
    }
    assert named == {plane.frame + 1 for plane in series.slices[1:]}
