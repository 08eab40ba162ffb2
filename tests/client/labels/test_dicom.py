"""Which labels belong to a series: told by UIDs, then by frame of reference."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from client.intake.dicom import read_dicom, series_headers
from client.intake.geometry import series_grid
from client.intake.pool import DecodeLimits
from client.intake.series import DicomIndex, DicomSeries, LabelObject
from client.intake.verdict import Code, Verdict
from client.labels.dicom import labels_for_series

LIMITS = DecodeLimits(workers=1)


def index_of(folder: Path) -> DicomIndex:
    return series_headers(folder, limits=LIMITS)


@pytest.fixture(scope="module")
def liver(seg_data: Path, tmp_path_factory: pytest.TempPathFactory) -> DicomIndex:
    """ct-3slice with the liver's SEG."""
    folder = tmp_path_factory.mktemp("liver")
    shutil.copytree(seg_data / "ct-3slice", folder / "ct")
    shutil.copy(seg_data / "liver.dcm", folder / "label")
    return index_of(folder)


def relabelled(index: DicomIndex, **changes: object) -> DicomIndex:
    """The index with its one label object changed."""
    return replace(index, label_objects=(replace(index.label_objects[0], **changes),))


NOTHING_NAMED = {"referenced_series_uid": None, "referenced_sop_uids": ()}


def import_liver(index: DicomIndex) -> tuple[list[int], list[tuple[Code, bool]]]:
    series = index.series[0]
    grid = series_grid(series.slices)
    segments, findings = labels_for_series(series, grid, index)
    voxels = [int(segment.mask.sum()) for segment in segments]
    return voxels, [(finding.code, finding.refuses) for finding in findings]


def test_the_label_that_names_the_series_is_read(liver: DicomIndex) -> None:
    assert import_liver(liver) == ([107098], [])


def test_images_alone_are_a_reference_too(liver: DicomIndex) -> None:
    index = relabelled(liver, referenced_series_uid=None)
    assert import_liver(index) == ([107098], [])


def test_frame_of_reference_and_patient_decide_with_a_note(liver: DicomIndex) -> None:
    index = relabelled(liver, **NOTHING_NAMED)
    want = ([107098], [(Code.LABEL_UNREFERENCED, False)])
    assert import_liver(index) == want


def test_two_series_in_one_frame_of_reference_leave_the_label_out(
    liver: DicomIndex,
) -> None:
    index = relabelled(liver, **NOTHING_NAMED)
    twin = replace(index.series[0], series="x", series_uid="1.2.3")
    index = replace(index, series=(*index.series, twin))
    assert import_liver(index) == ([], [(Code.LABEL_UNREFERENCED, False)])


def test_another_patient_or_frame_is_never_taken(liver: DicomIndex) -> None:
    stranger = relabelled(liver, **NOTHING_NAMED, patient="another")
    assert import_liver(stranger) == ([], [(Code.LABEL_MISSING, False)])
    elsewhere = relabelled(liver, **NOTHING_NAMED, frame_of_reference_uid="1.2.3")
    assert import_liver(elsewhere) == ([], [(Code.LABEL_UNREFERENCED, False)])


def test_a_label_of_another_series_is_left_alone(liver: DicomIndex) -> None:
    series: DicomSeries = replace(liver.series[0], series="x", series_uid="1.2.3")
    other = replace(liver, series=(series, *liver.series))
    assert import_liver(other) == ([], [(Code.LABEL_MISSING, False)])


def test_the_series_named_but_none_of_its_images_is_refused(liver: DicomIndex) -> None:
    index = relabelled(liver, referenced_sop_uids=("1.2.3",))
    assert import_liver(index) == ([], [(Code.LABEL_GRID_MISMATCH, True)])


def test_a_copy_counts_once_and_a_contradicting_copy_refuses(
    liver: DicomIndex, tmp_path: Path
) -> None:
    first: LabelObject = liver.label_objects[0]
    copy = tmp_path / "copy"
    shutil.copy(first.path, copy)
    index = replace(liver, label_objects=(first, replace(first, path=copy)))
    assert import_liver(index) == ([107098], [])
    copy.write_bytes(copy.read_bytes() + b"\0\0")
    assert import_liver(index) == ([], [(Code.DUPLICATE_DIFFERENT, True)])


def test_an_unreadable_label_takes_the_others_with_it(
    liver: DicomIndex, tmp_path: Path
) -> None:
    first = liver.label_objects[0]
    broken = tmp_path / "broken"
    broken.write_bytes(first.path.read_bytes()[:3000])
    second = replace(first, path=broken, sop_instance_uid="1.2.3")
    index = replace(liver, label_objects=(first, second))
    assert import_liver(index) == ([], [(Code.LABEL_UNREADABLE, True)])


@pytest.mark.parametrize(
    ("patient", "cm3"),
    [("pat_1", 358.7), ("pat_2", 6.4)],
)
def test_a_folder_with_an_rtstruct_becomes_a_labelled_case(
    data: Path, patient: str, cm3: float
) -> None:
    folder = data / "rtstruct_lung4" / patient
    found = list(read_dicom(folder, limits=LIMITS, labels=labels_for_series))
    cases = [case for _, case in found if case is not None]
    assert len(cases) == 1
    (segment,) = cases[0].segments
    mm3 = segment.mask.sum() * cases[0].volume.grid.voxel_mm3
    assert segment.name == "GTV-1"
    assert mm3 / 1000 == pytest.approx(cm3, rel=0.01)
    # A tumour's mean, partial volume at its rim included, is far above lung's -800.
    assert -300 < cases[0].volume.array[segment.mask].mean() < 120


def test_all_segs_of_a_folder_find_their_series(seg_data: Path) -> None:
    found = list(read_dicom(seg_data, limits=LIMITS, labels=labels_for_series))
    rows = {verdict.source: verdict for verdict, _ in found}
    overlaps = ("GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE")
    assert rows["23x38x3/image/IMG0001.dcm"].labels == ("Liver",)
    assert rows["ct-3slice/01.dcm"].labels == ("Liver", *overlaps)
    # The two sparse label maps there have other voxels and one SOPInstanceUID.
    refused = rows["24x38x3/image/IMG0001.dcm"]
    assert refused.verdict is Verdict.REFUSE
    assert refused.findings[0].code is Code.DUPLICATE_DIFFERENT
