"""The prepared-case store: whole or absent, private, read by the page."""

import os
import re
import signal
import stat
from pathlib import Path

import numpy as np
import pytest

import client.case_file
import client.store
from client.case_file import SMALL_BYTES
from client.private_files import make_private_folder, write_private
from client.secret import load_secret, pseudonym
from client.store import MOST_FOREGROUND, CaseStore, foreground_voxels
from common.case import IntakeCase, Target
from common.errors import StoreError
from common.plan import Plan
from common.volume import Grid, Volume

AXIAL = np.eye(4)[[2, 1, 0, 3]]
LARGE = (40, 120, 120)
"""A case whose file is above SMALL_BYTES."""


def plan_of(**changes) -> Plan:
    sections = {
        "plan": {"name": "test"},
        "task": {"kind": "segmentation", "classes": {"a": ["a"]}},
        "model": {"name": "UNet", "dimensions": 3},
        "preprocessing": {"window_hu": (0.0, 1000.0)},
        "training": {"steps": 1, "batch_size": 1, "patch": [2, 2, 2]},
        "federation": {"rounds": 1},
    }
    return Plan.model_validate(sections | changes)


def case_of(series="1.2.3", shape=(5, 6, 7), digest="d0", **changes) -> IntakeCase:
    rng = np.random.default_rng(len(series))
    hu = rng.integers(0, 1000, shape).astype(np.int16)
    volume = Volume(hu, Grid(shape, AXIAL * [[2.0], [1.0], [1.0], [1.0]]))
    return IntakeCase(series, "patient 7", volume, digest=digest, **changes)


def target_of(case: IntakeCase) -> Target:
    mask = (case.volume.array > 700).astype(np.uint8)
    return Target(mask=mask, label=3, attributes={"diameter": 4.5})


@pytest.fixture
def store(tmp_path) -> CaseStore:
    return CaseStore(tmp_path / "store", b"s" * 32)


def entry(store: CaseStore) -> Path:
    (path,) = (store.root / "cases").glob("*.case")
    return path


def test_what_is_put_comes_out_again(store):
    case = case_of()
    opened = store.open(store.put(case, target_of(case), plan_of()))
    expected = (case.volume.array / 500.0 - 1.0).astype(np.float16)
    np.testing.assert_allclose(opened.image, expected, atol=1e-3)
    np.testing.assert_array_equal(opened.mask, case.volume.array > 700)
    np.testing.assert_array_equal(
        opened.foreground, np.argwhere(case.volume.array > 700)
    )
    assert opened.grid.same_as(case.volume.grid)
    assert opened.source_grid.same_as(case.volume.grid)
    assert (opened.label, opened.attributes) == (3, {"diameter": 4.5})
    assert opened.has_spacing
    assert not opened.image.flags.writeable


def test_cases_without_mask_or_without_foreground_are_kept_too(store):
    case = case_of()
    opened = store.open(store.put(case, Target(label=0), plan_of()))
    assert opened.mask is None
    assert opened.foreground is None
    empty = Target(mask=np.zeros(case.volume.grid.shape, np.uint8))
    opened = store.open(store.put(case_of("1.2.4"), empty, plan_of()))
    assert opened.foreground.shape == (0, 3)


def test_same_case_and_recipe_is_prepared_once(store, monkeypatch):
    case = case_of()
    first = store.put(case, target_of(case), plan_of())
    monkeypatch.setattr(client.store, "prepare_case", None)  # a second call would fail
    assert store.put(case, target_of(case), plan_of()) == first
    other_rounds = plan_of(federation={"rounds": 9})
    assert store.put(case, target_of(case), other_rounds) == first
    assert store.find(store.key_of(case, plan_of())) == first


def test_anything_that_went_in_gives_another_entry(store):
    base = case_of()
    keys = [store.key_of(base, plan_of())]
    keys += [
        store.key_of(case, plan_of())
        for case in (
            case_of(digest="d1"),
            case_of("1.2.30"),
            case_of(attributes={"malignancy": "5"}),
            case_of(has_spacing=False),
            IntakeCase("1.2.3", "patient 8", base.volume, digest="d0"),
        )
    ]
    keys.append(store.key_of(base, plan_of(preprocessing={"window_hu": (0.0, 900.0)})))
    keys.append(CaseStore(store.root, b"t" * 32).key_of(base, plan_of()))
    assert len(set(keys)) == len(keys)
    assert all(store.find(key) is None for key in keys)


def test_ids_are_pseudonyms_and_nothing_of_the_patient_is_in_the_file(store):
    case = case_of("1.2.840.99999.7")
    record = store.put(case, target_of(case), plan_of())
    assert record.case_id == pseudonym(b"s" * 32, "1.2.840.99999.7")
    assert record.patient_id == pseudonym(b"s" * 32, "patient 7")
    content = entry(store).read_bytes() + entry(store).name.encode()
    assert b"1.2.840.99999.7" not in content
    assert b"patient 7" not in content


def test_folders_are_0700_and_files_0600_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        root = tmp_path / "store"
        make_private_folder(root)
        store = CaseStore(root, load_secret(root))
        with store.writing():
            store.put(case_of(), target_of(case_of()), plan_of())
            write_private(root / "any.json", b"{}")
    finally:
        os.umask(before)
    for path in (root, *root.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path.name


def test_open_folder_with_files_is_refused_and_an_empty_one_is_closed(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    CaseStore(shared, b"s" * 32)
    assert stat.S_IMODE(shared.stat().st_mode) == 0o700
    shared.chmod(0o755)
    with pytest.raises(StoreError, match="0700"):
        CaseStore(shared, b"s" * 32)


def test_secret_is_made_once_and_refused_when_cut_or_open(tmp_path):
    first = load_secret(tmp_path)
    assert len(first) == 32
    assert load_secret(tmp_path) == first
    other = tmp_path / "other"
    other.mkdir()
    assert load_secret(other) != first
    (tmp_path / "secret").chmod(0o644)
    with pytest.raises(StoreError, match="0600"):
        load_secret(tmp_path)
    (other / "secret").write_bytes(first[:31])
    with pytest.raises(StoreError, match="31 bytes"):
        load_secret(other)


def put_and_die(root: Path, last_step: int) -> int:
    """Put a large case in a child process that is killed at a step of the writing.

    Returns:
        How many steps the child took, or minus the signal that ended it.
    """
    child = os.fork()
    if child == 0:
        steps = 0

        def deadly(real):
            def step(*args, **kwargs):
                nonlocal steps
                steps += 1
                if steps == last_step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return step

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (client.case_file, "create_private"),
                (client.case_file, "_aligned"),
                (client.case_file, "_bytes_of"),
                (client.store, "write_case"),
                (client.store, "open_case_file"),
                (os, "fsync"),
                (Path, "rename"),
            ):
                patch.setattr(owner, name, deadly(getattr(owner, name)))
            store, case = CaseStore(root, b"s" * 32), case_of(shape=LARGE)
            with store.writing():
                store.put(case, target_of(case), plan_of())
        os._exit(steps)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_any_step_leaves_no_half_entry(tmp_path):
    """Entries are absent or whole, and leftovers go at the next intake."""
    case = case_of(shape=LARGE)
    steps = put_and_die(tmp_path / "whole", -1)
    assert steps > 15
    left, kept = [], []
    for step in range(1, steps + 1):
        root = tmp_path / str(step)
        assert put_and_die(root, step) == -signal.SIGKILL
        store = CaseStore(root, b"s" * 32)
        left.append(len(list((root / "cases").glob("*.tmp"))))
        kept.append(len(list(store.records())))
        with store.writing():
            assert not list((root / "cases").glob("*.tmp"))
            store.verify(store.put(case, target_of(case), plan_of()))
    # Nothing, then a leftover, then (from the rename on) the whole entry.
    assert sorted(kept) == kept
    assert (left[0], max(left), left[-1]) == (0, 1, 0)
    assert [a + b for a, b in zip(left, kept, strict=True)] == sorted(
        a + b for a, b in zip(left, kept, strict=True)
    )


@pytest.mark.parametrize("shape", [(5, 6, 7), LARGE], ids=["small", "large"])
def test_every_kind_of_damage_is_found(store, shape):
    case = case_of(shape=shape)
    record = store.put(case, target_of(case), plan_of())
    store.verify(record)
    path, good = entry(store), entry(store).read_bytes()
    header_end = 44 + int.from_bytes(good[8:12], "little")
    places = {
        "kind": 0,
        "header length": 9,
        "header": 60,
        "image": header_end + 64,
        "last byte": len(good) - 1,
    }
    for name, place in places.items():
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(StoreError):
            store.verify(record)
        in_head = name in ("kind", "header length", "header")
        if in_head or record.size_bytes <= SMALL_BYTES:
            with pytest.raises(StoreError, match="purge the store"):
                store.find(record.key)
    for size in (0, 7, 43, header_end, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(StoreError):
            store.open(record)
    path.write_bytes(good + b"\x00")
    with pytest.raises(StoreError):
        store.open(record)
    path.write_bytes(good)
    store.verify(record)


def test_damage_is_told_without_the_path(store):
    record = store.put(case_of(), target_of(case_of()), plan_of())
    entry(store).write_bytes(b"")
    with pytest.raises(StoreError) as error:
        store.open(record)
    assert str(store.root) not in str(error.value)


def test_purge_takes_what_it_is_told_and_what_is_damaged(store):
    cases = [case_of(f"1.{n}", digest=f"d{n}") for n in range(4)]
    records = [store.put(case, target_of(case), plan_of()) for case in cases]
    assert store.purge(lambda record: record.case_id == records[0].case_id) == 1
    damaged = store.root / "cases" / f"{records[1].key}.case"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert store.purge(lambda record: False) == 1
    assert {r.key for r in store.records()} == {records[2].key, records[3].key}
    with pytest.raises(StoreError):
        store.open(records[0])
    assert store.purge() == 2
    assert list(store.records()) == []


def test_two_intakes_at_once_are_refused(store):
    with (
        store.writing(),
        pytest.raises(StoreError, match="in use"),
        CaseStore(store.root, b"s" * 32).writing(),
    ):
        pass
    with store.writing():
        pass


def resident_bytes(path: Path) -> int:
    """Bytes of a file's mappings whose pages this process has touched."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("no /proc/self/smaps here, resident pages can't be counted")
    blocks = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", maps.read_text())
    own = [block for block in blocks if str(path) in block.split("\n")[0]]
    assert own, "the file is not mapped"
    return sum(int(re.search(r"Rss:\s+(\d+) kB", b)[1]) << 10 for b in own)


def test_reading_a_patch_does_not_read_the_volume(store):
    case = case_of(shape=(128, 256, 256))  # 16 MB of image
    record = store.put(case, Target(label=0), plan_of())
    opened = store.open(record)
    before = resident_bytes(entry(store))
    assert before < 1 << 20
    np.array(opened.image[60:64, 100:132, 100:132])
    touched = resident_bytes(entry(store))
    assert 0 < touched < record.size_bytes / 4
    np.array(opened.image)
    assert resident_bytes(entry(store)) > record.size_bytes * 0.9


def test_foreground_gives_every_class_its_share():
    mask = np.zeros((20, 60, 60), np.uint8)
    mask[2:18, 5:55, 5:55] = 1
    mask[10, 30, 30:33] = 2
    mask[4:8, 20:40, 20:40] = 5
    found = foreground_voxels(mask)
    classes = mask[tuple(found.T)]
    share = MOST_FOREGROUND // 3
    assert np.bincount(classes).tolist() == [0, share, 3, 0, 0, share]
    assert len(np.unique(found, axis=0)) == len(found)
    spread = found[classes == 1]
    inside = np.argwhere(mask == 1)
    assert np.abs(spread.mean(axis=0) - inside.mean(axis=0)).max() < 0.5
    np.testing.assert_array_equal(found, foreground_voxels(mask))


def test_many_small_cases_take_one_file_each(store):
    case, count = case_of(shape=(3, 96, 96)), 100
    target = target_of(case)
    for n in range(count):
        named = IntakeCase(f"1.{n}", "p", case.volume, digest=str(n))
        store.put(named, target, plan_of())
    assert len(list((store.root / "cases").iterdir())) == count
    records = list(store.records())
    assert len({record.case_id for record in records}) == count
