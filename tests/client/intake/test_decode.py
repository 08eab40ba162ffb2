import os

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import JPEG2000Lossless

from client.intake.codec import Words
from client.intake.container import FileProblemError
from client.intake.decode import (
    PlaneTask,
    decode_plane,
    plane_digest,
    read_words,
    stored_values,
)
from client.intake.parse import read_head
from client.intake.pool import shared_memory


def _values(path) -> np.ndarray:
    pixels = read_head(path).planes[0].pixels
    words = read_words(path, pixels, 0)
    values, stray = stored_values(words, signed=pixels.signed, padding=pixels.padding)
    assert not stray
    return values


@pytest.fixture
def plain_ct1(data, tmp_path) -> np.ndarray:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "CT1_UNC"
    source = data / "dicom_syntaxes" / "WG04" / "CT1_UNC.zst"
    with source.open("rb") as packed:
        path.write_bytes(zstandard.ZstdDecompressor().stream_reader(packed).read())
    return _values(path)


def test_lossless_twins_of_a_real_slice_are_exactly_equal(data, plain_ct1):
    assert (plain_ct1.min() - 1024, plain_ct1.max() - 1024) == (-3024, 1254)
    for name in ("CT1_J2KR", "CT1_JLSL", "CT1_JPLL", "CT1_RLE"):
        values = _values(data / "dicom_syntaxes" / "WG04" / name)
        np.testing.assert_array_equal(values, plain_ct1, err_msg=name)


def test_lossy_twins_of_a_real_slice_are_near(data, plain_ct1):
    near = _values(data / "dicom_syntaxes" / "WG04" / "CT1_JLSN").astype(int)
    assert 0 < np.abs(near - plain_ct1).max() <= 4
    path = data / "dicom_syntaxes" / "WG04" / "CT1_J2KI"
    lossy = _values(path).astype(int)
    assert 0 < np.abs(lossy - plain_ct1).mean() < 30
    itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).ravel()
    assert np.abs(lossy - 1024 - itk).max() <= 1  # another OpenJPEG rounds otherwise


def test_the_sign_of_the_attribute_is_right_where_the_real_stream_is_wrong(data):
    path = data / "dicom_syntaxes" / "pydicom" / "J2K_pixelrep_mismatch.dcm"
    [plane] = read_head(path).planes
    target = shared_memory(2 * 512 * 512)
    task = PlaneTask(path, 0, plane.pixels, 1.0, 0.0, "<i2", 0)
    by_tag = decode_plane(task, target)
    os.close(target)
    assert by_tag.contradicted
    assert by_tag.low >= -2000
    assert by_tag.high < 4000


@given(
    bits=st.integers(2, 16),
    signed=st.booleans(),
    sign_extended=st.booleans(),
    seed=st.integers(0, 99),
)
def test_stored_values_come_back_from_any_number_of_bits(
    bits, signed, sign_extended, seed
):
    low, high = (-(1 << bits - 1), 1 << bits - 1) if signed else (0, 1 << bits)
    values = np.random.default_rng(seed).integers(low, high, 50)
    container = (1 << 16) - 1 if sign_extended else (1 << bits) - 1
    words = Words((values & container).astype("<u2"), bits, None)
    found, stray = stored_values(words, signed=signed, padding=None)
    np.testing.assert_array_equal(found, values)
    assert not stray


def test_bits_above_the_stored_ones_are_told():
    words = Words(np.array([5, 0x3005], "<u2"), 12, None)
    assert stored_values(words, signed=False, padding=None)[1]
    assert stored_values(words, signed=True, padding=None)[1]
    assert not stored_values(words, signed=False, padding=(0x3005, 0x3005))[1]


def test_plane_digest_depends_on_values_and_not_on_their_type():
    plane = np.arange(-6, 6).reshape(3, 4)
    digest = plane_digest(plane.astype(np.int16))
    assert plane_digest(plane.astype(np.float32)) == digest
    assert plane_digest(plane.astype(">i2")) == digest
    assert plane_digest(plane.astype(np.int16)[:, ::-1]) != digest
    assert plane_digest(plane + 0.5) != plane_digest(plane + 0.25)


def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(
    tmp_path, write_series
):
    def lie(image, d):
        image.compress(JPEG2000Lossless)
        image.Rows = 41

    [path] = write_series(tmp_path, slices=1, size=(40, 36), edit=lie).paths
    with pytest.raises(FileProblemError, match="PIXEL_FORMAT"):
        read_words(path, read_head(path).planes[0].pixels, 0)


def test_what_does_not_fit_int16_is_told_and_kept_by_float32(tmp_path, write_series):
    [path] = write_series(tmp_path, slices=1).paths
    pixels = read_head(path).planes[0].pixels
    target = shared_memory(4 * 24 * 20)
    facts = decode_plane(PlaneTask(path, 0, pixels, 40.0, 0.0, "<i2", 0), target)
    assert not facts.fits
    facts = decode_plane(PlaneTask(path, 0, pixels, 40.0, 0.0, "<f4", 0), target)
    found = np.frombuffer(os.pread(target, 4 * 24 * 20, 0), "<f4")
    os.close(target)
    assert facts.fits
    assert facts.high == found.max() > 32767
