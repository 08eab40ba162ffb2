import os
import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from client.intake import codec, container, decode, parse, pool, worker
from client.intake.container import (
    HEAD_BYTES,
    FileProblemError,
    inflate,
    open_regular,
    read_container,
)
from client.intake.parse import read_head
from client.intake.verdict import Code


def _problem(path) -> str:
    with pytest.raises(FileProblemError) as caught:
        read_container(path, [0x00080060])
    return caught.value.problem


def test_a_deflate_bomb_is_inflated_only_as_far_as_asked(tmp_path):
    bomb = tmp_path / "bomb"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb.write_bytes(packer.compress(bytes(200 << 20)) + packer.flush())
    with bomb.open("rb") as file:
        assert len(inflate(file, 1000)) == 1000
        # 200 MB of zeros are 200 kB of file; a kilobyte of them needs one chunk.
        assert file.tell() <= 1 << 16


def test_the_head_of_a_deflated_giant_is_read_without_its_pixels(
    tmp_path, write_series
):
    def giant(image: Dataset, d: int) -> None:
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        image.Rows = image.Columns = 8192
        image.PixelData = bytes(2 * 8192 * 8192)
        image["PixelData"].VR = "OW"

    written = write_series(tmp_path, slices=1, edit=giant)
    [path] = written.paths
    assert path.stat().st_size < 1 << 20
    [plane] = read_head(path).planes
    assert plane.pixels.data_bytes == 2 * 8192 * 8192 > HEAD_BYTES


def test_inflating_garbage_is_unreadable(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xff" * 100)
    with path.open("rb") as file, pytest.raises(FileProblemError, match="UNREADABLE"):
        inflate(file, 1000)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "EMPTY_FILE"),
        (b"plain text that is no image, but long enough to look at", "NOT_DICOM"),
        (b"\x08\x00\x05\x00CS\xff\xff" + bytes(200), "NOT_DICOM"),
        (bytes(128) + b"DICM", "UNREADABLE"),
        (bytes(128) + b"DICM\x02\x00\x10\x00OB\0\0\xff\xff\xff\x7f", "UNREADABLE"),
    ],
)
def test_what_is_no_dicom_is_told_apart(tmp_path, content, problem):
    path = tmp_path / "x"
    path.write_bytes(content)
    assert _problem(path) == problem


def test_links_and_fifos_are_never_opened(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"x")
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(target)
    os.mkfifo(fifo)
    for path, problem in ((link, "UNREADABLE"), (fifo, "SPECIAL_FILE")):
        with pytest.raises(FileProblemError, match=problem):
            open_regular(path)


def test_a_file_cut_at_any_byte_never_raises_anything_else(tmp_path, write_series):
    [path] = write_series(tmp_path, slices=1).paths
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for length in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[: int(length)])
        with suppress(FileProblemError):
            assert read_head(path).planes


def test_flipped_bytes_never_raise_anything_else(tmp_path, write_series):
    [path] = write_series(tmp_path, slices=1).paths
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(150):
        broken = whole.copy()
        broken[rng.integers(128, 900, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(broken.tobytes())
        with suppress(FileProblemError):
            head = read_head(path)
            assert head.planes or head.directory is not None


def test_every_problem_that_decoders_name_is_a_verdict_code():
    """They name it as text, to start without the modules that verdicts need."""
    named: set[str] = set()
    for module in (codec, container, decode, parse, pool, worker):
        text = Path(module.__file__).read_text()
        named |= set(re.findall(r'FileProblemError\("(\w+)"\)', text))
        named |= set(re.findall(r'"problem":\s+"(\w+)"', text))
    assert {"UNREADABLE", "DECODE_LIMIT", "PIXEL_FORMAT"} <= named
    assert named <= set(Code)
