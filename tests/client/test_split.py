"""The split: by patient, frozen, and the same at every rehearsal."""

import json
import stat
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.split import Part, freeze_split, load_split, shares, split_patients
from common.errors import StoreError
from common.plan import Data, Plan

SECRET, OTHER = b"a" * 32, b"b" * 32


def plan_of(seed=1, **data) -> Plan:
    return Plan.model_validate(
        {
            "plan": {"name": "test", "seed": seed},
            "task": {"kind": "segmentation", "classes": {"a": ["a"]}},
            "model": {"name": "UNet", "dimensions": 2},
            "training": {"steps": 1, "batch_size": 1, "patch": [8, 8]},
            "federation": {"rounds": 1},
            "data": data,
        }
    )


def names(count: int, first: int = 0) -> list[str]:
    return [f"LIDC-{n:04d}" for n in range(first, first + count)]


def counts(parts) -> tuple[int, int, int]:
    counted = Counter(parts.values())
    return counted[Part.TRAIN], counted[Part.VALIDATION], counted[Part.TEST]


@given(
    st.integers(1, 300),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=300)
def test_shares_are_the_fractions_and_leave_someone_to_train(count, a, b):
    scale = 0.99 / max(1.0, a + b)
    data = Data(validation=a * scale, test=b * scale)
    wanted = shares(count, data)
    assert sum(wanted.values()) == count
    assert wanted[Part.TRAIN] >= 1
    assert min(wanted.values()) >= 0
    if count >= 3:
        assert wanted[Part.VALIDATION] >= (data.validation > 0)
        assert wanted[Part.TEST] >= (data.test > 0)
    for part, fraction in ((Part.VALIDATION, data.validation), (Part.TEST, data.test)):
        assert abs(wanted[part] - fraction * count) <= 2


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (2, 0, 0)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (8, (5, 1, 2)),
        (10, (6, 2, 2)),
        (100, (65, 15, 20)),
    ],
)
def test_counts_of_the_default_fractions(count, expected):
    assert counts(split_patients(names(count), {}, plan_of())) == expected


def test_without_fractions_everybody_trains():
    plan = plan_of(validation=0.0, test=0.0)
    assert counts(split_patients(names(9), {}, plan)) == (9, 0, 0)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=100)
def test_a_part_once_given_is_kept_and_new_patients_even_things_out(steps, seed):
    plan, known, total = plan_of(seed), {}, 0
    for step in steps:
        total += step
        parts = split_patients(names(total), known, plan)
        assert known.items() <= parts.items()
        assert counts(parts)[0] >= 1
        known = parts
    settled = split_patients(names(total + 60), known, plan)
    ideal = shares(total + 60, plan.data)
    assert counts(settled) == tuple(ideal.values())


def test_order_hangs_on_seed_and_patient_alone():
    one = split_patients(names(40), {}, plan_of(1))
    assert one == split_patients(reversed(names(40)), {}, plan_of(1))
    assert one != split_patients(names(40), {}, plan_of(2))


def test_two_secrets_give_one_split_and_two_manifests(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    first = freeze_split(a, SECRET, names(30), plan_of())
    assert freeze_split(b, OTHER, names(30), plan_of()) == first
    assert not load_split(a, SECRET).keys() & load_split(b, OTHER).keys()


def test_manifest_is_private_names_nobody_and_outlives_another_seed(tmp_path):
    parts = freeze_split(tmp_path, SECRET, names(20), plan_of(seed=1))
    path = tmp_path / "split.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "LIDC" not in path.read_text()
    written = path.stat().st_mtime_ns
    assert freeze_split(tmp_path, SECRET, names(20), plan_of(seed=2)) == parts
    assert path.stat().st_mtime_ns == written
    grown = freeze_split(tmp_path, SECRET, names(30), plan_of(seed=2))
    assert parts.items() <= grown.items()


def test_patient_who_leaves_and_returns_has_the_old_part(tmp_path):
    parts = freeze_split(tmp_path, SECRET, names(20), plan_of())
    fewer = freeze_split(tmp_path, SECRET, names(12), plan_of())
    assert fewer == {patient: parts[patient] for patient in names(12)}
    assert len(load_split(tmp_path, SECRET)) == 20
    assert freeze_split(tmp_path, SECRET, names(20), plan_of()) == parts


def test_damaged_manifest_is_refused_and_not_overwritten(tmp_path):
    freeze_split(tmp_path, SECRET, names(20), plan_of())
    path = tmp_path / "split.json"
    good = path.read_bytes()
    moved = json.loads(good)
    patient = next(p for p, part in moved["parts"].items() if part == "test")
    moved["parts"][patient] = "train"
    for bad in (b"", good[:-20], b"[]", json.dumps(moved).encode()):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="backup"):
            freeze_split(tmp_path, SECRET, names(25), plan_of())
        assert path.read_bytes() == bad
    path.write_bytes(good)
    with pytest.raises(StoreError, match="another secret"):
        freeze_split(tmp_path, OTHER, names(20), plan_of())
