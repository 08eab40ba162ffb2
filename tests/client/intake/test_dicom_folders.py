"""Whole folders: copies, other kinds of object, odd files, labels, limits."""

import shutil
import subprocess

import numpy as np
import pytest
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000Lossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from client.intake.dicom import read_dicom
from client.intake.group import counts_as_series
from client.intake.pool import DecodeLimits, DecoderPool
from client.intake.verdict import Code, Finding, Verdict
from common.case import Segment
from common.errors import IntakeError


def _codes(row) -> set[Code]:
    return {finding.code for finding in row.findings}


def _accepted(rows):
    return [(row, case) for row, case in rows if case is not None]


def _leave_out(d_absent: int):
    return lambda _image, d: d != d_absent


def test_byte_equal_copies_are_dropped_with_a_note(tmp_path, write_series, read):
    written = write_series(tmp_path)
    shutil.copy(written.paths[1], tmp_path / "copy of one")
    [(row, case)] = read(tmp_path)
    assert _codes(row) == {Code.DUPLICATE_SAME}
    assert row.files == 6
    np.testing.assert_array_equal(case.volume.array, written.hu)


def test_one_uid_on_two_different_images_is_refused(tmp_path, write_series, refusals):
    written = write_series(tmp_path)
    image = written.images[1]
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(tmp_path / "other")
    assert Code.DUPLICATE_DIFFERENT in refusals(tmp_path)


def test_localizer_and_capture_get_rows_and_do_not_count(tmp_path, write_series, read):
    def first(image: Dataset, d: int) -> None:
        if d == 0:
            image.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        if d == 1:
            image.SOPClassUID = SecondaryCaptureImageStorage
            image.SeriesInstanceUID = generate_uid()

    write_series(tmp_path, edit=first, slices=7)
    rows = read(tmp_path)
    found = {code: row for row, _ in rows for code in _codes(row)}
    assert set(found) == {Code.LOCALIZER, Code.SECONDARY_CAPTURE}
    [(_row, case)] = _accepted(rows)
    assert case.volume.array.shape == (5, 24, 20)
    assert sum(counts_as_series(row) for row, _ in rows) == 1


def test_nothing_in_a_folder_goes_without_a_row(tmp_path, write_series, read):
    root = tmp_path / "in"
    write_series(root / "deep" / "er", names="Aufnahme nº {}".format)
    (root / "notes.pdf").write_bytes(b"%PDF-1.7 and so on, long enough to be read")
    (root / "empty").touch()
    (root / "cut").write_bytes(bytes(128) + b"DICM")
    (root / "link").symlink_to(root / "notes.pdf")
    (root / "out").symlink_to(tmp_path)
    fifo = root / "fifo"
    subprocess.run(["mkfifo", fifo], check=True)
    rows = read(root)
    by_code = {row.findings[0].code: row for row, case in rows if case is None}
    assert {code: row.files for code, row in by_code.items()} == {
        Code.NOT_DICOM: 1,
        Code.EMPTY_FILE: 1,
        Code.UNREADABLE: 1,
        Code.UNSAFE_LINK: 2,
        Code.SPECIAL_FILE: 1,
    }
    assert len(_accepted(rows)) == 1
    assert sum(counts_as_series(row) for row, _ in rows) == 1


def test_a_program_in_the_preamble_is_noted(tmp_path, write_series, read):
    written = write_series(tmp_path)
    path = written.paths[0]
    path.write_bytes(b"MZ" + path.read_bytes()[2:])
    [(row, _)] = read(tmp_path)
    assert _codes(row) == {Code.EXECUTABLE_PREAMBLE}


def test_files_without_preamble_or_meta_are_read(tmp_path, write_series, read):
    written = write_series(tmp_path)
    for number, path in enumerate(written.paths):
        whole = path.read_bytes()
        length = 132 + 12 + int.from_bytes(whole[140:144], "little")
        path.write_bytes(whole[132:] if number % 2 else whole[length:])
    [(row, case)] = read(tmp_path)
    assert row.verdict is Verdict.ACCEPT
    np.testing.assert_array_equal(case.volume.array, written.hu)


def test_noise_about_zero_does_not_split_a_series_without_uid(
    tmp_path, write_series, read
):
    def edit(image: Dataset, d: int) -> None:
        image.SeriesInstanceUID = ""
        noise = "-0.00001" if d % 2 else "0.00001"
        image.ImageOrientationPatient = ["1", noise, "0", "0", "1", noise]

    write_series(tmp_path, edit=edit)
    [(_, case)] = read(tmp_path)
    assert case.volume.array.shape[0] == 5


def test_two_series_without_uids_in_one_folder_do_not_mix(tmp_path, write_series, read):
    for number in range(2):

        def edit(image: Dataset, d: int, number: int = number) -> None:
            image.SeriesInstanceUID, image.SeriesNumber = "", number
            image.StudyInstanceUID = image.FrameOfReferenceUID = "1.2.3"
            # one millimetre apart: together they would pass for a finer series
            z = float(image.ImagePositionPatient[2]) + number
            image.ImagePositionPatient = [-90, -80, z]

        write_series(
            tmp_path, edit=edit, seed=number, names=lambda d, n=number: f"{n}-{d}"
        )
    cases = [case for _, case in read(tmp_path)]
    assert [case.volume.array.shape[0] for case in cases] == [5, 5]
    assert len({case.series for case in cases}) == 2


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(IntakeError, match="can't be read"):
        list(read_dicom(tmp_path / "absent"))


def test_labels_are_asked_for_accepted_series_only(tmp_path, write_series, read):
    write_series(tmp_path / "good")
    write_series(tmp_path / "bad", edit=_leave_out(2))
    asked = []

    def labels(series, grid, index):
        asked.append(series)
        assert [s.sop_instance_uid for s in series.slices] == list(
            series.sop_instance_uids
        )
        assert len(index.series) == 2
        mask = np.zeros(grid.shape, bool)
        note = Finding(Code.LABEL_EMPTY, "empty", refuses=False)
        return (Segment("nodule", mask),), (note,)

    rows = read(tmp_path, labels=labels)
    [(row, case)] = _accepted(rows)
    assert [s.series for s in asked] == [case.series]
    assert row.labels == ("nodule",)
    assert case.segments[0].name == "nodule"
    [(_, without)] = _accepted(read(tmp_path))
    assert without.digest != case.digest


def test_a_label_that_refuses_refuses_the_series(tmp_path, write_series, read):
    write_series(tmp_path)
    wrong = Finding(Code.LABEL_GRID_MISMATCH, "wrong grid", refuses=True)
    [(row, case)] = read(tmp_path, labels=lambda *_: ((), (wrong,)))
    assert case is None
    assert _codes(row) == {Code.LABEL_GRID_MISMATCH}


def test_progress_ends_at_all_files_and_all_series(tmp_path, write_series, read):
    write_series(tmp_path)
    told = []
    read(tmp_path, progress=lambda *event: told.append(event))
    assert ("files", 5, 5) in told
    assert told[-1] == ("series", 1, 1)


def test_a_series_that_needs_too_much_memory_leaves_the_rest_going(
    tmp_path, write_series, read
):
    frame = encode_array(np.zeros((5000, 5000), np.uint16), bits_stored=12)

    def swell(image: Dataset, d: int) -> None:
        image.Rows = image.Columns = 5000
        image.PixelData = encapsulate([frame])
        image["PixelData"].is_undefined_length = True
        image.file_meta.TransferSyntaxUID = JPEG2000Lossless

    write_series(tmp_path / "a", slices=3, edit=swell)
    write_series(tmp_path / "b")
    with DecoderPool(DecodeLimits(memory_bytes=260 << 20)) as tight:
        rows = read(tmp_path, pool=tight)
    assert sorted(row.verdict for row, _ in rows) == [Verdict.ACCEPT, Verdict.REFUSE]
    [refused] = [row for row, case in rows if case is None]
    assert _codes(refused) <= {Code.DECODE_LIMIT, Code.DECODE_FAILED}
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) < 100_000
