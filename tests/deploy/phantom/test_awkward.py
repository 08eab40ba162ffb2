"""Every fault that the awkward hospital promises is really there."""

import json
import stat
import zlib

import numpy as np
import pydicom
import pytest

from client.intake.verdict import Code
from deploy.phantom.awkward import BOMB_ROWS, FILE_FAULTS, write_awkward
from deploy.phantom.faults import FAULTS, SOUND


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    out = tmp_path_factory.mktemp("awkward")
    return out, write_awkward(out, seed=6)


def _series(out, name):
    folder = out / "export" / name
    heads = [pydicom.dcmread(p) for p in sorted(folder.iterdir()) if p.name != "SEG"]
    return [ds for ds in heads if "PixelData" in ds]


def _heights(slices) -> np.ndarray:
    return np.array([float(ds.ImagePositionPatient[2]) for ds in slices])


def test_the_table_on_disk_is_what_is_returned(awkward):
    out, expected = awkward
    text = (out / "expected.json").read_text(encoding="utf-8")
    assert json.loads(text) == expected
    assert set(expected.values()) <= {SOUND, *Code}
    assert len(expected) >= len(FAULTS) + len(FILE_FAULTS)
    names = {path.name for path in (out / "export").iterdir()}
    assert names == {f.name for f in FAULTS} | set(FILE_FAULTS) | {"strangers"}


def test_spacing_faults_are_in_the_positions(awkward):
    out, _ = awkward
    sound = np.diff(_heights(_series(out, "sound-explicit")))
    gap = sound[0]
    np.testing.assert_allclose(sound, gap)
    missing = np.diff(_heights(_series(out, "missing-slice"))) / gap
    assert sorted(np.round(missing, 3))[-2:] == [1.0, 2.0]
    uneven = np.diff(_heights(_series(out, "uneven"))) / gap
    assert uneven.max() == pytest.approx(1.3)
    twice = _heights(_series(out, "same-place-twice"))
    assert len(np.unique(twice)) == len(twice) - 1
    tilted = [float(d.ImagePositionPatient[1]) for d in _series(out, "tilted")]
    assert np.diff(tilted)[0] / gap == pytest.approx(np.tan(np.radians(15.0)))


def test_copies_have_the_same_or_other_bytes(awkward):
    out, _ = awkward
    for name, kinds in (("same-file-twice", 1), ("same-uid-twice", 2)):
        by_uid: dict[str, list[bytes]] = {}
        for path in (out / "export" / name).iterdir():
            ds = pydicom.dcmread(path, stop_before_pixels=True)
            by_uid.setdefault(ds.SOPInstanceUID, []).append(path.read_bytes())
        (twice,) = [files for files in by_uid.values() if len(files) == 2]
        assert len(set(twice)) == kinds


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("two-kernels", "ConvolutionKernel"),
        ("two-frames", "FrameOfReferenceUID"),
        ("two-patients", "PatientID"),
        ("turned", "ImageOrientationPatient"),
        ("cropped", "Columns"),
    ],
)
def test_mixed_series_hold_two_values_and_sound_ones_one(awkward, name, keyword):
    out, _ = awkward
    for folder, count in ((name, 2), ("sound-rle", 1)):
        values = {str(ds[keyword].value) for ds in _series(out, folder)}
        assert len(values) == count


def test_padding_lies_outside_the_round_field(awkward):
    out, _ = awkward
    ds = _series(out, "padded")[3]
    pixels = ds.pixel_array
    assert ds.PixelPaddingValue == -2000
    assert pixels[0, 0] == -2000
    assert (pixels == -2000).mean() == pytest.approx(1 - np.pi / 4, abs=0.03)


def test_the_codestream_contradicts_its_tag(awkward):
    out, expected = awkward
    ds = _series(out, "contradicting")[0]
    assert ds.PixelRepresentation == 0
    siz = ds.PixelData.index(b"\xff\x51")
    component = ds.PixelData[siz + 4 + 36]  # Ssiz, ISO 15444-1 A.5.1
    assert component & 0x80  # signed
    assert expected[ds.SeriesInstanceUID] == Code.PIXEL_REPRESENTATION


def test_the_bomb_is_small_and_inflates_to_hundreds_of_megabytes(awkward):
    out, _ = awkward
    path = out / "export" / "bomb" / "I000"
    content = path.read_bytes()
    assert len(content) < 2_000_000
    # Group 0002's own length, then the deflated data set.
    length = int.from_bytes(content[140:144], "little")
    stream, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = content[144 + length :]
    while not stream.eof:
        size += len(stream.decompress(rest, 1 << 24))
        rest = stream.unconsumed_tail
    assert size > BOMB_ROWS**2 * 2 > 250_000_000


def test_files_that_are_no_images_are_there(awkward):
    out, _ = awkward
    strangers = out / "export" / "strangers"
    assert stat.S_ISFIFO((strangers / "fifo").lstat().st_mode)
    assert (strangers / "empty").stat().st_size == 0
    assert (strangers / "link").resolve() == (out / "outside").resolve()
    programs = out / "export"
    assert (programs / "windows-program" / "I000").read_bytes()[:2] == b"MZ"
    assert (programs / "linux-program" / "I000").read_bytes()[:4] == b"\x7fELF"
    sizes = [p.stat().st_size for p in (programs / "truncated").iterdir()]
    assert min(sizes) < 0.8 * max(sizes)
    directory = pydicom.dcmread(programs / "leading-out" / "DICOMDIR")
    leaf = directory.DirectoryRecordSequence[-1]
    assert list(leaf.ReferencedFileID)[:2] == ["..", ".."]
    absent = pydicom.dcmread(programs / "forgetful" / "DICOMDIR")
    names = [
        r.ReferencedFileID
        for r in absent.DirectoryRecordSequence
        if "ReferencedFileID" in r
    ]
    assert sum(not (programs / "forgetful" / str(n)).exists() for n in names) == 1
