"""SEG import: real objects against their NRRD twins, written ones against the mask."""

import random
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import JPEG2000Lossless, RLELossless

from client.intake.verdict import Code
from client.labels.seg import read_seg
from common.volume import Grid


def nrrd(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


@pytest.mark.parametrize(
    ("label", "images", "twin", "voxels"),
    [
        ("23x38x3/seg/label.seg", "23x38x3/image", "23x38x3/nrrd/label.nrrd", 322),
        ("24x38x3/seg/label.seg", "24x38x3/image", "24x38x3/nrrd/label.nrrd", 315),
        ("liver.dcm", "ct-3slice", "liver_seg.nrrd", 107098),
        (
            "sparse-labelmap-noppv.dcm",
            "24x38x3/image",
            "sparse_labelmap_noppv_seg.nrrd",
            630,
        ),
        (
            "sparse-labelmap-ppv5.dcm",
            "24x38x3/image",
            "sparse_labelmap_ppv5_seg.nrrd",
            630,
        ),
    ],
)
def test_one_liver_is_its_nrrd_twin(
    seg_data: Path, series_grid: Any, label: str, images: str, twin: str, voxels: int
) -> None:
    grid, slice_of = series_grid(seg_data / images)
    segments, findings = read_seg(seg_data / label, grid, slice_of=slice_of)
    assert [segment.name for segment in segments] == ["Liver"]
    assert int(segments[0].mask.sum()) == voxels
    assert np.array_equal(segments[0].mask, nrrd(seg_data / twin) == 1)
    assert findings == ()


def test_overlapping_segments_stay_separate_and_leave_a_note(
    seg_data: Path, series_grid: Any
) -> None:
    grid, slice_of = series_grid(seg_data / "ct-3slice")
    path = seg_data / "partial_overlaps.dcm"
    segments, findings = read_seg(path, grid, slice_of=slice_of)
    twins = {1: 1, 2: 2, 3: 3, 4: 1, 5: 1}  # segment number to file
    assert len(segments) == 5
    for number, file in twins.items():
        want = nrrd(seg_data / f"partial_overlaps-{file}.nrrd") == number
        assert np.array_equal(segments[number - 1].mask, want)
    assert [(f.code, f.refuses) for f in findings] == [(Code.LABEL_OVERLAP, False)]


def test_a_label_of_another_series_is_refused(seg_data: Path, series_grid: Any) -> None:
    grid, _ = series_grid(seg_data / "24x38x3" / "image")
    segments, findings = read_seg(seg_data / "liver.dcm", grid)
    assert segments == ()
    assert [(f.code, f.refuses) for f in findings] == [(Code.LABEL_GRID_MISMATCH, True)]


def test_a_label_that_marks_a_missing_slice_is_refused(
    seg_data: Path, series_grid: Any
) -> None:
    whole, _ = series_grid(seg_data / "ct-3slice")
    short = Grid((2, 512, 512), whole.affine)
    segments, findings = read_seg(seg_data / "liver.dcm", short)
    assert segments == ()
    assert findings[0].code is Code.LABEL_GRID_MISMATCH


# Written by highdicom ----------------------------------------------------------------

AXES = {
    "axial": np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], float),
    "axial, feet last": np.array([[0, 0, 1], [0, -1, 0], [-1, 0, 0]], float),
    "coronal": np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float),
    "sagittal": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
}
"""Columns: the direction of D, H, W in x, y, z; D is the cross product of W and H."""


def oblique() -> np.ndarray:
    turn, _ = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)))
    return turn if np.linalg.det(np.fliplr(turn)) > 0 else turn * [-1, 1, 1]


def grid_along(axes: np.ndarray, shape: tuple[int, int, int] = (4, 9, 11)) -> Grid:
    normal = np.cross(axes[:, 2], axes[:, 1])
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal, axes[:, 1], axes[:, 2]], axis=1)
    affine[:3, :3] *= [2.5, 0.7, 0.8]
    affine[:3, 3] = [-31.25, 17.5, 402.0]
    return Grid(shape, affine)


def blobs(shape: tuple[int, int, int], count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.random((*shape, count)) < 0.3


def write_seg(
    images: list[Dataset], masks: np.ndarray, path: Path, kind: str, **more: Any
) -> None:
    """A SEG of masks D H W S on the images, which may come in any order."""
    described = [
        hd.seg.SegmentDescription(
            segment_number=number + 1,
            segment_label=f"s{number + 1}",
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number in range(masks.shape[-1])
    ]
    seg = hd.seg.Segmentation(
        source_images=images,
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="t",
        manufacturer_model_name="t",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    seg.save_as(path)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("name", [*AXES, "oblique"])
def test_what_highdicom_wrote_is_read_back_at_any_angle(
    tmp_path: Path, ct_images: Callable, name: str, kind: str
) -> None:
    grid = grid_along(oblique() if name == "oblique" else AXES[name])
    images = ct_images(grid)
    masks = blobs(grid.shape)
    if kind == "LABELMAP":
        masks[..., 1] &= ~masks[..., 0]
    order = list(range(grid.shape[0]))
    random.Random(5).shuffle(order)
    stored = masks[order].astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    path = tmp_path / "label"
    write_seg([images[d] for d in order], stored, path, kind)
    slice_of = {image.SOPInstanceUID: d for d, image in enumerate(images)}
    segments, findings = read_seg(path, grid, slice_of=slice_of)
    assert not any(finding.refuses for finding in findings)
    assert [segment.name for segment in segments] == ["s1", "s2"]
    for number, segment in enumerate(segments):
        assert np.array_equal(segment.mask, masks[..., number])


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [("FRACTIONAL", RLELossless), ("LABELMAP", JPEG2000Lossless)],
)
def test_compressed_frames_are_read_back(
    tmp_path: Path, ct_images: Callable, kind: str, syntax: str
) -> None:
    grid = grid_along(AXES["axial"], (18, 40, 42))
    masks = blobs(grid.shape, 1)
    stored = masks.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    path = tmp_path / "label"
    write_seg(ct_images(grid), stored, path, kind, transfer_syntax_uid=syntax)
    segments, findings = read_seg(path, grid)
    assert findings == ()
    assert np.array_equal(segments[0].mask, masks[..., 0])
    # One byte less in a frame, and the label is refused, not cut.
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    segments, findings = read_seg(path, grid)
    assert segments == ()
    assert findings[0].code is Code.LABEL_UNREADABLE


@pytest.fixture
def written(tmp_path: Path, ct_images: Callable) -> tuple[Path, Grid, np.ndarray, dict]:
    grid = grid_along(AXES["axial"])
    images = ct_images(grid)
    masks = blobs(grid.shape, 1)
    path = tmp_path / "label"
    write_seg(images, masks.astype(np.uint8), path, "BINARY")
    slice_of = {image.SOPInstanceUID: d for d, image in enumerate(images)}
    return path, grid, masks[..., 0], slice_of


def test_a_stale_spacing_tag_changes_nothing(written: Any) -> None:
    path, grid, mask, slice_of = written
    seg = pydicom.dcmread(path)
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PixelMeasuresSequence[0].SpacingBetweenSlices = 99.0
    seg.save_as(path)
    segments, _ = read_seg(path, grid, slice_of=slice_of)
    assert np.array_equal(segments[0].mask, mask)


def test_a_flipped_or_permuted_grid_gets_the_same_tissue(written: Any) -> None:
    path, grid, mask, _ = written
    to_old = np.eye(4)[[2, 0, 1, 3]] * [1, -1, 1, 1]  # new axes are W, D, -H ...
    shape = (grid.shape[1], grid.shape[2], grid.shape[0])
    old_axis = [int(np.abs(to_old[:3, new]).argmax()) for new in range(3)]
    shape = tuple(grid.shape[a] for a in old_axis)
    to_old[old_axis[1], 3] = shape[1] - 1.0
    turned = Grid(shape, grid.affine @ to_old)
    segments, findings = read_seg(path, turned)
    assert findings == ()
    assert np.array_equal(
        segments[0].mask, np.flip(np.transpose(mask, old_axis), axis=1)
    )


@pytest.mark.parametrize("shift", [0.5, -0.5, 0.3])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_label_between_voxels_is_refused(
    written: Any, axis: int, shift: float
) -> None:
    path, grid, _, _ = written
    affine = grid.affine.copy()
    affine[:3, 3] += shift * affine[:3, axis]
    segments, findings = read_seg(path, Grid(grid.shape, affine))
    assert segments == ()
    assert findings[0].code is Code.LABEL_GRID_MISMATCH


def test_a_frame_that_contradicts_its_source_images_is_refused(written: Any) -> None:
    path, grid, _, slice_of = written
    swapped = {uid: (d + 1) % len(slice_of) for uid, d in slice_of.items()}
    segments, findings = read_seg(path, grid, slice_of=swapped)
    assert segments == ()
    assert findings[0].code is Code.LABEL_GRID_MISMATCH
    assert "source images" in findings[0].sentence


def test_a_fraction_counts_from_one_half(tmp_path: Path, ct_images: Callable) -> None:
    grid = grid_along(AXES["axial"], (2, 3, 4))
    shares = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4, 1)
    path = tmp_path / "label"
    write_seg(ct_images(grid), shares, path, "FRACTIONAL", max_fractional_value=200)
    segments, _ = read_seg(path, grid)
    # highdicom stores rint(share * 200); inside from 100 on.
    assert np.array_equal(segments[0].mask, np.rint(shares[..., 0] * 200) >= 100)


def test_an_unknown_segment_number_is_refused(written: Any) -> None:
    path, grid, _, _ = written
    seg = pydicom.dcmread(path)
    seg.SegmentSequence[0].SegmentNumber = 4
    seg.save_as(path)
    segments, findings = read_seg(path, grid)
    assert segments == ()
    assert findings[0].code is Code.LABEL_VALUE


def test_padding_of_a_label_map_is_no_label(
    tmp_path: Path, ct_images: Callable
) -> None:
    grid = grid_along(AXES["axial"])
    masks = blobs(grid.shape, 1)
    path = tmp_path / "label"
    write_seg(ct_images(grid), masks.astype(np.uint8), path, "LABELMAP")
    seg = pydicom.dcmread(path)
    seg.PixelData = bytes(value or 5 for value in seg.PixelData)
    seg.save_as(path)
    segments, findings = read_seg(path, grid)
    assert segments == ()
    assert findings[0].code is Code.LABEL_VALUE
    seg.PixelPaddingValue = 5
    seg.save_as(path)
    segments, findings = read_seg(path, grid)
    assert findings == ()
    assert np.array_equal(segments[0].mask, masks[..., 0])


def test_a_cut_off_file_is_refused_at_every_length(written: Any) -> None:
    path, grid, _, _ = written
    content = path.read_bytes()
    for length in range(0, len(content) - 1, len(content) // 40):
        path.write_bytes(content[:length])
        segments, findings = read_seg(path, grid)
        assert segments == ()
        assert findings[0].refuses
        assert findings[0].code is Code.LABEL_UNREADABLE


def test_millions_of_claimed_frames_are_refused_before_decoding(written: Any) -> None:
    path, grid, _, _ = written
    seg = pydicom.dcmread(path)
    seg.NumberOfFrames = 2**27
    seg.save_as(path)
    segments, findings = read_seg(path, grid)
    assert segments == ()
    assert "pixels in all frames" in findings[0].sentence


def deflate(path: Path, pad_bytes: int = 0) -> None:
    """Rewrite a file in the deflated transfer syntax."""
    seg = pydicom.dcmread(path)
    plain = BytesIO()
    seg.save_as(plain)
    content = plain.getvalue()
    start = 132 + 12 + seg.file_meta.FileMetaInformationGroupLength
    seg.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    head = BytesIO()
    head.write(b"\0" * 128 + b"DICM")
    pydicom.filewriter.write_file_meta_info(head, seg.file_meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(content[start:] + b"\0" * pad_bytes) + packer.flush()
    path.write_bytes(head.getvalue() + body)


def test_a_deflated_seg_is_read(written: Any) -> None:
    path, grid, mask, _ = written
    deflate(path)
    segments, _ = read_seg(path, grid)
    assert np.array_equal(segments[0].mask, mask)


def test_a_deflate_bomb_is_refused(
    written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, grid, _, _ = written
    deflate(path, pad_bytes=8 << 20)
    assert path.stat().st_size < 64 << 10
    monkeypatch.setattr("client.labels.file.FILE_BYTES_LIMIT", 1 << 20)
    segments, findings = read_seg(path, grid)
    assert segments == ()
    assert "more than 1048576 bytes" in findings[0].sentence
