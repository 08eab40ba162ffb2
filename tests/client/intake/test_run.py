"""A whole intake: what fits is kept, what does not is said, nothing is lost."""

import json
import os
import shutil
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

import client.intake.run as run
import client.intake.seen as seen
from client.intake.run import open_store, take_in
from client.intake.verdict import Code, IntakeCount, Verdict
from client.secret import pseudonym
from common.errors import IntakeError, PlanError, StoreError
from common.plan import Plan
from common.sources import Source
from tests import real_ct


def plan_of(patch=(4, 8, 8), classes=None, **sections) -> Plan:
    return Plan.model_validate(
        {
            "plan": {"name": "test"},
            "task": {"kind": "segmentation", "classes": classes or {"tumour": ["1"]}},
            "model": {"name": "UNet", "dimensions": len(patch)},
            "training": {"steps": 1, "batch_size": 1, "patch": list(patch)},
            "federation": {"rounds": 1},
            **sections,
        }
    )


def write_pair(root: Path, name: str, *, shape=(10, 12, 6), label=(1,)) -> None:
    """A CT of noise on tissue and a label map; axes W H D as NIfTI has them."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    hu = rng.integers(-1000, 1000, shape).astype(np.int16)
    mask = np.zeros(shape, np.uint8)
    for number, value in enumerate(label):
        mask[number + 2 : number + 4, 3:6, 1:4] = value
    for folder, array in (("images", hu), ("labels", mask)):
        if folder == "labels" and not label:
            continue
        (root / folder).mkdir(parents=True, exist_ok=True)
        affine = np.diag([0.8, 0.8, 2.5, 1.0])
        nibabel.save(
            nibabel.Nifti1Image(array, affine), root / folder / f"{name}.nii.gz"
        )


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "source"
    for n in range(6):
        write_pair(root, f"case{n}")
    return root


def source_of(folder: Path) -> Source:
    return Source(source=str(folder), format="nifti")


def codes(row) -> list[Code]:
    return [finding.code for finding in row.findings]


def test_fitting_cases_are_kept_and_split_by_patient(folder, tmp_path):
    data = take_in(source_of(folder), tmp_path / "store", plan_of())
    assert data.count == IntakeCount(6, 6)
    assert [len(p) for p in (data.train, data.validation, data.test)] == [4, 1, 1]
    store = open_store(tmp_path / "store")
    everyone = [*data.train, *data.validation, *data.test]
    assert len({record.patient_id for record in everyone}) == 6
    for record in everyone:
        case = store.open(record)
        assert case.image.shape == (6, 12, 10)
        assert case.mask.sum() == 2 * 3 * 3
        np.testing.assert_allclose(case.grid.spacing_mm, (2.5, 0.8, 0.8), rtol=1e-6)


def test_order_hangs_on_the_series_alone(folder, tmp_path):
    """Two stores have other secrets, and folders may list in any order."""
    series = [
        row.series
        for row in take_in(source_of(folder), tmp_path / "a", plan_of()).verdicts
    ]
    orders = []
    for name in ("a", "b"):
        root = tmp_path / name
        data = take_in(source_of(folder), root, plan_of())
        secret = (root / "secret").read_bytes()
        named = {pseudonym(secret, uid): uid for uid in series}
        orders.append([named[record.case_id] for record in data.train])
    assert orders[0] == orders[1] == sorted(orders[0])


def test_second_intake_of_an_unchanged_folder_reads_no_image(
    folder, tmp_path, monkeypatch
):
    first = take_in(source_of(folder), tmp_path / "store", plan_of())
    monkeypatch.setattr(run, "read_source", None)  # would fail if called
    again = take_in(source_of(folder), tmp_path / "store", plan_of())
    assert (again.train, again.test, again.count) == (
        first.train,
        first.test,
        first.count,
    )
    assert [row.series for row in again.verdicts] == [r.series for r in first.verdicts]
    other = plan_of(data={"min_cases": 2}, federation={"rounds": 5})
    assert take_in(source_of(folder), tmp_path / "store", other).train == first.train


@pytest.mark.parametrize("change", ["added", "touched", "removed", "plan", "purged"])
def test_any_change_is_looked_at(folder, tmp_path, monkeypatch, change):
    root, plan = tmp_path / "store", plan_of()
    take_in(source_of(folder), root, plan)
    if change == "added":
        write_pair(folder, "case9")
    elif change == "touched":
        os.utime(folder / "images" / "case0.nii.gz")
    elif change == "removed":
        for part in ("images", "labels"):
            (folder / part / "case0.nii.gz").unlink()
    elif change == "plan":
        plan = plan_of(classes={"tumour": ["1", "2"]})
    else:
        open_store(root).purge()
    looked, real = [], run.read_source
    monkeypatch.setattr(run, "read_source", lambda *a: looked.append(a) or real(*a))
    data = take_in(source_of(folder), root, plan)
    assert len(looked) == 1
    assert data.count.accepted == {"added": 7, "removed": 5}.get(change, 6)


@pytest.mark.parametrize(
    "module", ["intake/values", "labels/seg", "tasks/segmentation", "volume", "case"]
)
def test_a_change_of_the_code_that_judges_is_a_change(folder, monkeypatch, module):
    before = seen.fingerprint(source_of(folder), plan_of())
    real = Path.read_bytes

    def edited(path):
        return real(path) + b"#" * path.match(f"*/{module}.py")

    seen._judges.cache_clear()
    monkeypatch.setattr(Path, "read_bytes", edited)
    after = seen.fingerprint(source_of(folder), plan_of())
    seen._judges.cache_clear()
    assert after != before


def test_damaged_entry_is_prepared_anew_and_said(folder, tmp_path, caplog):
    root = tmp_path / "store"
    record = take_in(source_of(folder), root, plan_of()).train[0]
    path = root / "cases" / f"{record.key}.case"
    path.write_bytes(path.read_bytes()[:-1])
    data = take_in(source_of(folder), root, plan_of())
    (record_said,) = caplog.records
    assert "remove damaged entry" in record_said.getMessage()
    assert record_said.name == "fedct.intake"  # below the logger that files listen to
    store = open_store(root)
    store.verify(data.train[0])
    assert data.train[0] == record


def test_unfit_cases_are_refused_with_their_code(folder, tmp_path):
    write_pair(folder, "flat", shape=(10, 12, 3))
    write_pair(folder, "other", label=(7,))
    write_pair(folder, "bare", label=())
    for part in ("images", "labels"):
        shutil.copy(folder / part / "case0.nii.gz", folder / part / "twin.nii.gz")
    data = take_in(source_of(folder), tmp_path / "store", plan_of())
    rows = {row.series.rpartition("/")[2]: row for row in data.verdicts}
    assert codes(rows["flat"]) == [Code.TOO_SMALL]
    assert "(3, 12, 10)" in rows["flat"].findings[0].sentence
    assert codes(rows["other"]) == [Code.LABEL_MISSING]
    assert codes(rows["bare"]) == [Code.LABEL_MISSING]  # the reader's note is replaced
    assert codes(rows["twin"]) == [Code.DUPLICATE_SAME]
    assert {row.verdict for row in data.verdicts if not row.findings} == {
        Verdict.ACCEPT
    }
    assert data.count == IntakeCount(6, 10)
    written = json.loads((tmp_path / "store" / "verdicts.json").read_text())
    assert (written["accepted"], written["found"]) == (6, 10)


def test_overlap_of_classes_is_noted(folder, tmp_path):
    write_pair(folder, "both", label=(1, 2))
    everything = plan_of(classes={"all": ["*"], "tumour": ["1"]})
    data = take_in(source_of(folder), tmp_path / "store", everything)
    assert {row.verdict for row in data.verdicts} == {Verdict.NOTE}
    assert all(codes(row) == [Code.LABEL_OVERLAP] for row in data.verdicts)
    assert data.count == IntakeCount(7, 7)


def test_coarse_model_space_counts_for_too_small(folder, tmp_path):
    """12 voxels of 0.8 mm are 5 of 2 mm: less than a patch of 8."""
    plan = plan_of(preprocessing={"spacing_mm": (2.5, 2.0, 2.0)})
    with pytest.raises(PlanError, match=r"patch \(4, 8, 8\).*all 6 usable") as error:
        take_in(source_of(folder), tmp_path / "store", plan)
    assert "(6, 12, 10)" in str(error.value)


@pytest.mark.parametrize(
    ("floor", "message"),
    [
        ({"min_cases": 7}, r"6 of 7 series, expected at least 7"),
        ({"min_accepted": 0.9}, r"6 of 7 series, expected a share of 0\.9"),
    ],
)
def test_below_the_floor_nothing_is_trained_but_the_table_is_there(
    folder, tmp_path, floor, message
):
    write_pair(folder, "bare", label=())
    for _ in range(2):  # also when the verdicts are remembered
        with pytest.raises(PlanError, match=message):
            take_in(source_of(folder), tmp_path / "store", plan_of(data=floor))
    assert (tmp_path / "store" / "verdicts.csv").exists()
    at_it = plan_of(data={"min_cases": 6, "min_accepted": 0.85})
    assert take_in(source_of(folder), tmp_path / "store", at_it).count.accepted == 6


def test_a_source_without_a_series_is_refused_as_one(tmp_path):
    source = tmp_path / "ct"
    source.mkdir()
    with pytest.raises(IntakeError, match=r"no CT series \(dicom\).*format$"):
        take_in(Source(source=str(source)), tmp_path / "a", plan_of())
    (source / "notes.txt").write_text("not images")
    with pytest.raises(IntakeError, match=r"verdicts\.csv in the store says what"):
        take_in(Source(source=str(source)), tmp_path / "b", plan_of())
    assert "notes" in (tmp_path / "b" / "verdicts.csv").read_text()


def test_source_without_a_usable_case_is_refused(tmp_path):
    write_pair(tmp_path / "source", "bare", label=())
    with pytest.raises(PlanError, match="0 of 1 series, expected at least 1"):
        take_in(source_of(tmp_path / "source"), tmp_path / "store", plan_of())
    with pytest.raises(IntakeError, match="can't be listed") as error:
        take_in(source_of(tmp_path / "nowhere"), tmp_path / "store", plan_of())
    assert str(tmp_path) not in str(error.value)


def test_parts_stay_when_patients_come_and_go(folder, tmp_path):
    root = tmp_path / "store"
    before = take_in(source_of(folder), root, plan_of())
    for n in range(10, 20):
        write_pair(folder, f"case{n}")
    after = take_in(source_of(folder), root, plan_of())
    for part in ("train", "validation", "test"):
        assert set(getattr(before, part)) <= set(getattr(after, part))
    assert [len(p) for p in (after.train, after.validation, after.test)] == [11, 2, 3]


def test_on_case_is_handed_every_accepted_case(folder, tmp_path):
    take_in(source_of(folder), tmp_path / "store", plan_of())
    cases = []
    take_in(source_of(folder), tmp_path / "store", plan_of(), on_case=cases.append)
    assert len(cases) == 6
    assert cases[0].volume.array.shape == (6, 12, 10)


def test_intake_beside_another_one_is_refused(folder, tmp_path):
    store = open_store(tmp_path / "store")
    with store.writing(), pytest.raises(StoreError, match="in use"):
        take_in(source_of(folder), tmp_path / "store", plan_of())


def lidc(vendor: str) -> Source:
    path = real_ct.data("lidc_nodules/lidc_nodules.zip")
    return Source(source=str(path), format="images", where={"vendor": vendor})


def test_real_lidc_site_is_taken_in_once_and_kept_by_patient(tmp_path, monkeypatch):
    plan = plan_of(
        (64, 64), {"nodule": ["nodule"]}, preprocessing={"window_hu": (0.0, 255.0)}
    )
    root = tmp_path / "store"
    data = take_in(lidc("Toshiba"), root, plan)
    assert data.count == IntakeCount(97, 97)
    assert sum(row.grid.shape[0] for row in data.verdicts) == 269
    parts = [
        {r.patient_id for r in p} for p in (data.train, data.validation, data.test)
    ]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    monkeypatch.setattr(run, "read_source", None)
    assert take_in(lidc("Toshiba"), root, plan).train == data.train


def test_pictures_are_not_resampled_to_millimetres(tmp_path):
    plan = plan_of(
        (64, 64), {"nodule": ["nodule"]}, preprocessing={"spacing_mm": (1.0, 1.0, 1.0)}
    )
    with pytest.raises(PlanError, match="0 of 97"):
        take_in(lidc("Toshiba"), tmp_path / "store", plan)
    rows = json.loads((tmp_path / "store" / "verdicts.json").read_text())["series"]
    assert {f["code"] for row in rows for f in row["findings"]} == {"NO_SPACING"}


def test_malignancy_without_a_score_is_missing_and_of_three_fits_no_class(tmp_path):
    plan = Plan.model_validate(
        {
            **plan_of((64, 64)).model_dump(exclude={"task", "model", "training"}),
            "task": {
                "kind": "classification",
                "attribute": "malignancy",
                "classes": [
                    {"name": "benign", "below": 3.0},
                    {"name": "malignant", "above": 3.0},
                ],
                "baseline_attribute": "diameter_mm",
            },
            "model": {"name": "ResNet10", "dimensions": 2},
            "training": {
                "steps": 1,
                "batch_size": 1,
                "patch": [64, 64],
                "loss": "cross_entropy",
            },
        }
    )
    data = take_in(lidc("Toshiba"), tmp_path / "store", plan)
    found = [code for row in data.verdicts for code in codes(row)]
    assert set(found) == {Code.LABEL_MISSING, Code.LABEL_VALUE}
    assert data.count.accepted == 97 - len(found)
    assert {record.label for record in data.train} == {0, 1}
    store = open_store(tmp_path / "store")
    assert all("diameter_mm" in store.open(record).attributes for record in data.train)


def test_real_dicom_with_rtstruct_is_taken_in(tmp_path):
    patient = real_ct.data("rtstruct_lung4/pat_2")
    source = Source(source=str(patient), format="dicom")
    plan = plan_of((16, 64, 64), {"gtv": ["GTV-1"]}, data={"test": 0, "validation": 0})
    data = take_in(source, tmp_path / "store", plan)
    assert data.count == IntakeCount(1, 1)
    case = open_store(tmp_path / "store").open(data.train[0])
    assert case.image.shape == (41, 138, 141)
    assert case.mask.sum() * case.grid.voxel_mm3 / 1000 == pytest.approx(6.4, abs=0.1)
