"""Hospital exports look as archives make them and depend on the seed alone."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage, SegmentationStorage

from common.errors import UsageError
from deploy.phantom.hospital import scan, sized, write_hospital, write_hospitals
from deploy.phantom.scanner import HOSPITALS

BY_NAME = {hospital.name: hospital for hospital in HOSPITALS}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    out = tmp_path_factory.mktemp("hospitals")
    seen = []
    write_hospitals(
        out,
        patients=2,
        seed=4,
        size="tiny",
        progress=lambda *step: seen.append(step),
    )
    return out, seen


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "DICOMDIR")


def test_every_patient_has_one_series_and_a_segmentation_of_it(export):
    out, _ = export
    for hospital in HOSPITALS:
        heads = [
            pydicom.dcmread(p, stop_before_pixels=True)
            for p in _files(out / hospital.name)
        ]
        images = [ds for ds in heads if ds.SOPClassUID == CTImageStorage]
        segs = [ds for ds in heads if ds.SOPClassUID == SegmentationStorage]
        assert len(images) + len(segs) == len(heads)
        series = {ds.SeriesInstanceUID for ds in images}
        assert len(series) == len(segs) == 2
        assert len({ds.PatientID for ds in heads}) == 2
        assert all(ds.PatientID.startswith("PHANTOM-") for ds in heads)
        named = {ds.ReferencedSeriesSequence[0].SeriesInstanceUID for ds in segs}
        assert named == series
        kinds = {ds.SegmentationType for ds in segs}
        assert kinds == {"FRACTIONAL" if hospital.fractional else "BINARY"}


def test_names_are_opaque_and_out_of_order(export):
    out, _ = export
    files = _files(out / "north")
    assert all(path.suffix == "" for path in files)
    assert all(len(path.relative_to(out / "north").parts) == 4 for path in files)
    first = [p for p in files if p.parent == files[0].parent]
    places = [
        float(ds.ImagePositionPatient[2])
        for ds in (pydicom.dcmread(p, stop_before_pixels=True) for p in first)
        if ds.SOPClassUID == CTImageStorage
    ]
    assert places != sorted(places)
    assert places != sorted(places, reverse=True)


def test_progress_is_told_after_each_patient(export):
    _, seen = export
    assert seen[:3] == [("north", 1, 2), ("north", 2, 2), ("east", 1, 2)]
    assert len(seen) == 8


def test_equal_seeds_write_equal_exports(tmp_path, export):
    out, _ = export

    def digests(folder: Path) -> dict[str, str]:
        return {
            str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in folder.rglob("*")
            if p.is_file()
        }

    write_hospitals(
        tmp_path, hospitals=[BY_NAME["south"]], patients=2, seed=4, size="tiny"
    )
    again = digests(tmp_path / "south")
    assert again == digests(out / "south")
    other = replace(BY_NAME["south"], patients=1)
    write_hospital(tmp_path / "other", other, seed=5, size="tiny")
    assert not set(digests(tmp_path / "other").values()) & set(again.values())


def test_a_dicomdir_names_every_file_of_the_disc(export):
    out, _ = export
    south = out / "south"
    directory = pydicom.dcmread(south / "DICOMDIR")
    records = directory.DirectoryRecordSequence
    named = {
        Path(*record.ReferencedFileID)
        for record in records
        if record.DirectoryRecordType == "IMAGE"
    }
    assert named == {path.relative_to(south) for path in _files(south)}
    offsets = {record.seq_item_tell for record in records}
    first = directory.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity
    assert first == records[0].seq_item_tell
    for record in records:
        assert record.OffsetOfTheNextDirectoryRecord in offsets | {0}
        assert record.OffsetOfReferencedLowerLevelDirectoryEntity in offsets | {0}
    lower = [r.OffsetOfReferencedLowerLevelDirectoryEntity for r in records]
    assert sum(offset != 0 for offset in lower) == 2 * 4  # patient, study, CT, SEG


def test_every_patient_has_a_nodule_with_voxels():
    for hospital in HOSPITALS:
        phantom, _ = scan(sized(hospital, "tiny"), 0, 1)
        assert phantom.nodules
        assert all(nodule.mask.any() for nodule in phantom.nodules)
        assert phantom.volume.array.dtype == np.float32


def test_a_folder_with_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        write_hospital(tmp_path, HOSPITALS[0], seed=0, size="tiny")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_unknown_size_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(UsageError, match="tiny, small, full"):
        write_hospital(tmp_path / "out", HOSPITALS[0], seed=0, size="huge")
    assert not (tmp_path / "out").exists()
