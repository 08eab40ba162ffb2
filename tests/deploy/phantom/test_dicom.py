"""Series and segmentations are valid DICOM and read back as what was written."""

import shutil
import subprocess
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from common.volume import AxisOrder, Grid, reorder_grid
from deploy.phantom.anatomy import Anatomy, Phantom, imagine, render
from deploy.phantom.dicom import write_seg, write_series
from deploy.phantom.scanner import Scanner, acquire, axial_grid

SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]
AXIAL = axial_grid((12, 40, 44), (8.0, 4.0, 4.0), (0.0, 0.0, 10.0))
needs_dciodvfy = pytest.mark.skipif(
    shutil.which("dciodvfy") is None,
    reason="dciodvfy (Debian package dicom3tools) is not installed",
)


def _oblique() -> Grid:
    angle = np.radians(17.0)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), 0.0],
            [np.sin(angle), np.cos(angle), 0.0],
            [0.0, 0.0, 1.0],
        ]
    ) @ np.array(
        [
            [1.0, 0.0, 0.0],
            [0.0, np.cos(0.2), -np.sin(0.2)],
            [0.0, np.sin(0.2), np.cos(0.2)],
        ]
    )
    affine = AXIAL.affine.copy()
    affine[:3] = turn @ affine[:3]
    return Grid(AXIAL.shape, affine)


GRIDS = {
    "axial": AXIAL,
    "downwards": reorder_grid(AXIAL, AxisOrder((0, 1, 2), (True, False, False))),
    "sagittal": reorder_grid(AXIAL, AxisOrder((2, 0, 1), (False, True, False))),
    "coronal": reorder_grid(AXIAL, AxisOrder((1, 0, 2), (False, True, False))),
    "oblique": _oblique(),
}


@pytest.fixture(scope="module")
def scans():
    anatomy = Anatomy(scale=0.5, branches=12)
    patient = imagine(np.random.default_rng(2), anatomy)
    made = {}
    for name, grid in GRIDS.items():
        phantom = render(patient, grid)
        seen = tuple(n for n in phantom.nodules if n.mask.any())
        volume = acquire(phantom.volume, Scanner(), np.random.default_rng(0))
        made[name] = Phantom(volume, seen)
    return made


def _write(folder, phantom, syntax=None, **format_):
    scanner = replace(Scanner(), **format_)
    return write_series(
        folder,
        phantom.volume,
        scanner=scanner,
        patient="PHANTOM-TEST-001",
        seed=9,
        transfer_syntax=syntax,
    )


def _affine(slices) -> np.ndarray:
    """Index (d, h, w) to mm, from the standard's own equation (PS3.3 C.7.6.2.1.1)."""
    first, last = slices[0], slices[-1]
    row, column = np.reshape([float(v) for v in first.ImageOrientationPatient], (2, 3))
    down, across = (float(v) for v in first.PixelSpacing)
    start, end = (
        np.array([float(v) for v in ds.ImagePositionPatient]) for ds in (first, last)
    )
    affine = np.eye(4)
    affine[:3, 0] = (end - start) / (len(slices) - 1)
    affine[:3, 1], affine[:3, 2] = column * down, row * across
    affine[:3, 3] = start
    return affine


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
@pytest.mark.parametrize("signed", [True, False])
def test_every_syntax_reads_back_as_the_same_hu(tmp_path, scans, syntax, signed):
    paths = _write(tmp_path, scans["axial"], syntax, signed=signed)
    slices = [pydicom.dcmread(path) for path in paths]
    assert slices[0].file_meta.TransferSyntaxUID == syntax
    hu = np.stack(
        [ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept for ds in slices]
    )
    np.testing.assert_array_equal(hu, scans["axial"].volume.array)


@pytest.mark.parametrize("name", list(GRIDS))
def test_position_and_orientation_give_the_affine_back(tmp_path, scans, name):
    paths = _write(tmp_path, scans[name])
    slices = [pydicom.dcmread(path) for path in paths]
    np.testing.assert_allclose(_affine(slices), GRIDS[name].affine, atol=1e-6)
    hu = np.stack([ds.pixel_array for ds in slices])
    np.testing.assert_array_equal(hu, scans[name].volume.array)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("name", ["axial", "sagittal", "oblique"])
def test_a_segmentation_reads_back_as_the_same_masks(tmp_path, scans, name, kind):
    phantom = scans[name]
    paths = _write(tmp_path, phantom)
    segments = [(n.name, n.mask) for n in phantom.nodules]
    seg = highdicom.seg.segread(write_seg(tmp_path / "seg", paths, segments, kind=kind))
    uids = [pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in paths]
    read = seg.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    masks = np.stack([mask for _, mask in segments], axis=-1)
    np.testing.assert_array_equal(np.asarray(read)[..., -masks.shape[-1] :] > 0, masks)
    series = pydicom.dcmread(paths[0]).SeriesInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series


def test_equal_seeds_write_equal_bytes(tmp_path, scans):
    phantom = scans["axial"]
    for run in ("a", "b"):
        paths = _write(tmp_path / run, phantom, JPEG2000Lossless)
        segments = [(n.name, n.mask) for n in phantom.nodules]
        write_seg(tmp_path / run / "seg", paths, segments)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_series_is_written_as_pydicom_would(tmp_path, scans):
    path = _write(tmp_path, scans["axial"], ImplicitVRLittleEndian)[3]
    ds = pydicom.dcmread(path)
    ds.save_as(tmp_path / "again", enforce_file_format=True)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def _errors(path) -> list[str]:
    done = subprocess.run(
        ["dciodvfy", path], capture_output=True, text=True, check=False
    )
    return [line for line in done.stderr.splitlines() if "Error" in line]


@needs_dciodvfy
@pytest.mark.parametrize("name", ["axial", "oblique"])
# dciodvfy does not inflate; it has no label maps yet.
@pytest.mark.parametrize(
    "syntax",
    [s for s in SYNTAXES if s != DeflatedExplicitVRLittleEndian],
    ids=lambda s: s.name,
)
def test_dciodvfy_finds_no_error_in_images(tmp_path, scans, name, syntax):
    signed = syntax != JPEGLSLossless
    paths = _write(tmp_path, scans[name], syntax, signed=signed)
    assert _errors(paths[5]) == []


@needs_dciodvfy
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_dciodvfy_finds_no_error_in_segmentations(tmp_path, scans, kind):
    paths = _write(tmp_path, scans["axial"])
    segments = [(n.name, n.mask) for n in scans["axial"].nodules]
    assert _errors(write_seg(tmp_path / "seg", paths, segments, kind=kind)) == []


@needs_dciodvfy
def test_dciodvfy_is_able_to_find_an_error(tmp_path, scans):
    path = _write(tmp_path, scans["axial"])[0]
    ds = pydicom.dcmread(path)
    del ds.RescaleSlope
    ds.save_as(path)
    assert _errors(path)
