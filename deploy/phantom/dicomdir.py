"""A DICOMDIR over files that already lie where they should.

Records point at each other by byte offset (PS3.3 F.2.2.2). The index is therefore
written twice: once with zeros, read back to learn where each record begins, and again
with the offsets, which are four bytes either way.

Not covered here: record types other than patient, study, series, image.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from deploy.phantom.identity import IMPLEMENTATION_UID, uid_of

LEVELS = (
    ("PATIENT", "PatientID", ("PatientName", "PatientID")),
    (
        "STUDY",
        "StudyInstanceUID",
        (
            "StudyDate",
            "StudyTime",
            "StudyDescription",
            "StudyInstanceUID",
            "StudyID",
            "AccessionNumber",
        ),
    ),
    ("SERIES", "SeriesInstanceUID", ("Modality", "SeriesInstanceUID", "SeriesNumber")),
)
"""Record type, what tells two records apart, and the keys it holds (PS3.3 F.5)."""


class Branch(NamedTuple):
    """A record with those below it."""

    record: Dataset
    """The record; offsets are zero until linked."""
    below: "list[Branch]"
    """Records one level down."""


def write_dicomdir(root: Path, files: Sequence[tuple[Path, Path]]) -> Path:
    """Index files as on a CD.

    Args:
        root: The file-set's folder; gets the file "DICOMDIR".
        files: Pairs of the file to read and the path to name it by, relative to the
            root (the same place, unless the index is to be wrong on purpose).
    """
    tree = _records(
        [(pydicom.dcmread(p, stop_before_pixels=True), name) for p, name in files]
    )
    ds = Dataset()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = uid_of("dicomdir", *(str(n) for _, n in files))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_UID
    ds.file_meta, ds.FileSetID, ds.FileSetConsistencyFlag = meta, "PHANTOM", 0
    ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    ds.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    ds.DirectoryRecordSequence = _flat(tree)
    path = root / "DICOMDIR"
    ds.save_as(path, enforce_file_format=True)
    written = pydicom.dcmread(path).DirectoryRecordSequence
    start = {
        id(record): item.seq_item_tell
        for record, item in zip(ds.DirectoryRecordSequence, written, strict=True)
    }
    _link(tree, start)
    first, last = tree[0].record, tree[-1].record
    ds.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = start[id(first)]
    ds.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = start[id(last)]
    ds.save_as(path, enforce_file_format=True)
    return path


def _records(files: Sequence[tuple[Dataset, Path]], level: int = 0) -> list[Branch]:
    if level == len(LEVELS):
        return [Branch(_leaf(ds, name), []) for ds, name in files]
    kind, key, keys = LEVELS[level]

    def own(file: tuple[Dataset, Path]) -> str:
        return str(file[0].get(key, ""))

    groups = groupby(sorted(files, key=own), key=own)
    tree: list[Branch] = []
    for _, members in groups:
        part = list(members)
        record = _record(kind, part[0][0], keys)
        tree.append(Branch(record, _records(part, level + 1)))
    return tree


def _record(kind: str, source: Dataset, keys: Sequence[str]) -> Dataset:
    record = Dataset()
    record.OffsetOfTheNextDirectoryRecord = 0
    record.RecordInUseFlag = 0xFFFF
    record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
    record.DirectoryRecordType = kind
    record.SpecificCharacterSet = "ISO_IR 192"
    for key in keys:
        setattr(record, key, source.get(key, ""))
    return record


def _leaf(ds: Dataset, name: Path) -> Dataset:
    record = _record("IMAGE", ds, ("InstanceNumber",))  # segmentations too: F.3.2.2
    record.ReferencedFileID = list(name.parts)
    record.ReferencedSOPClassUIDInFile = ds.SOPClassUID
    record.ReferencedSOPInstanceUIDInFile = ds.SOPInstanceUID
    record.ReferencedTransferSyntaxUIDInFile = ds.file_meta.TransferSyntaxUID
    return record


def _flat(tree: list[Branch]) -> list[Dataset]:
    return [r for record, below in tree for r in (record, *_flat(below))]


def _link(tree: list[Branch], start: dict[int, int]) -> None:
    for (record, _), (following, _) in pairwise(tree):
        record.OffsetOfTheNextDirectoryRecord = start[id(following)]
    for record, below in tree:
        if below:
            first = start[id(below[0].record)]
            record.OffsetOfReferencedLowerLevelDirectoryEntity = first
            _link(below, start)
