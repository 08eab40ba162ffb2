import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from client.intake.verdict import Code, Verdict


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
