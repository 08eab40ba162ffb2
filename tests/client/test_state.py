import errno
import os

import pytest
import torch

from client.state import (
    KEPT_S,
    SiteState,
    forget_old_states,
    load_state,
    save_state,
)
from common.errors import StoreError
from tests.client.conftest import order, quiet, slices


def state(value: float) -> SiteState:
    return SiteState(
        optimizer={"state": {0: {"step": torch.tensor(value)}}, "param_groups": []},
        local={"norm.weight": torch.full((3,), value)},
        control=torch.full((5,), value),
    )


def value_of(found: SiteState) -> float:
    assert found.optimizer is not None
    assert found.control is not None
    seen = {
        float(found.optimizer["state"][0]["step"]),
        *found.local["norm.weight"].tolist(),
        *found.control.tolist(),
    }
    [value] = seen
    return value


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    save_state(tmp_path / "run", 1, state(1.5), keep=0)
    assert value_of(load_state(tmp_path / "run", 1)) == 1.5


def test_a_round_in_float16_leaves_its_loss_scale_to_the_next(make_service, tmp_path):
    plan = slices(training__amp="fp16")
    make_service(plan).train(order(plan, 1, 0), quiet)
    kept = load_state(tmp_path / "site" / "state" / "run", 1).scaler
    assert kept["scale"] == 2.0**16


def test_round_0_is_an_empty_state(tmp_path):
    assert vars(load_state(tmp_path, 0)) == vars(SiteState())


def test_the_last_three_rounds_that_counted_are_kept_in_three_private_files(tmp_path):
    folder = tmp_path / "run"
    for number in range(1, 6):
        save_state(folder, number, state(number), keep=number - 1)
        for held in range(max(1, number - 2), number + 1):
            assert value_of(load_state(folder, held)) == held
    modes = [oct(path.stat().st_mode & 0o777) for path in folder.iterdir()]
    assert modes == ["0o600"] * 3
    with pytest.raises(StoreError, match="lost its training state of round 2"):
        load_state(folder, 2)


def test_a_server_that_goes_back_a_round_finds_the_state_before_it(tmp_path):
    """Whatever came to nothing since: rounds 4 and 5 did not count."""
    folder = tmp_path / "run"
    for number, keep in ((1, 0), (2, 1), (3, 2), (4, 3), (5, 3)):
        save_state(folder, number, state(number), keep=keep)
    assert value_of(load_state(folder, 2)) == 2
    save_state(folder, 3, state(33), keep=2)
    assert value_of(load_state(folder, 2)) == 2
    assert value_of(load_state(folder, 3)) == 33


def test_void_rounds_and_repeats_never_cost_the_state_that_counts(tmp_path):
    folder = tmp_path / "run"
    save_state(folder, 1, state(1), keep=0)
    for number, value in ((2, 2), (2, 22), (3, 3), (4, 4), (4, 44)):
        save_state(folder, number, state(value), keep=1)
        assert value_of(load_state(folder, 1)) == 1
        assert value_of(load_state(folder, number)) == value


def test_a_smaller_state_leaves_nothing_of_a_larger_one(tmp_path):
    large = SiteState(control=torch.ones(10_000))
    save_state(tmp_path / "run", 1, large, keep=0)
    save_state(tmp_path / "run", 2, large, keep=1)
    save_state(tmp_path / "run", 2, state(2), keep=1)
    assert value_of(load_state(tmp_path / "run", 2)) == 2
    assert min(p.stat().st_size for p in (tmp_path / "run").iterdir()) < 10_000


@pytest.mark.parametrize("cut", [0, 7, 11, 200])
def test_a_torn_file_is_lost_and_costs_no_other_round(tmp_path, cut):
    folder = tmp_path / "run"
    save_state(folder, 1, state(1), keep=0)
    save_state(folder, 2, state(2), keep=1)
    [torn] = [p for p in folder.iterdir() if p.read_bytes()[0] == 2]
    torn.write_bytes(torn.read_bytes()[:cut])
    with pytest.raises(StoreError, match="lost its training state of round 2"):
        load_state(folder, 2)
    save_state(folder, 2, state(22), keep=1)
    assert value_of(load_state(folder, 1)) == 1
    assert value_of(load_state(folder, 2)) == 22


def test_no_single_flipped_byte_goes_unnoticed(tmp_path):
    save_state(tmp_path / "run", 1, state(1), keep=0)
    [path] = (tmp_path / "run").iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="lost its training state of round 1"):
            load_state(tmp_path / "run", 1)


def test_nothing_in_a_state_file_is_ever_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    save_state(tmp_path / "run", 1, SiteState(optimizer={"x": Evil()}), keep=0)
    with pytest.raises(StoreError, match="lost its training state of round 1"):
        load_state(tmp_path / "run", 1)
    assert not (tmp_path / "ran").exists()


def test_a_disk_that_takes_no_more_is_named_and_costs_no_other_round(
    tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    save_state(folder, 1, state(1), keep=0)
    save_state(folder, 2, state(2), keep=1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StoreError, match=r"state of round 3 \(No space left"):
        save_state(folder, 3, state(3), keep=2)
    assert value_of(load_state(folder, 2)) == 2


def test_a_month_later_only_the_large_files_of_a_run_are_gone(tmp_path):
    for run in ("old", "new"):
        folder = tmp_path / "state" / run
        save_state(folder, 1, state(1), keep=0)
        save_state(folder / "carried", 1, state(1), keep=0)
        (folder / "answered.json").write_text("{}")
    now = (tmp_path / "state/old/a.state").stat().st_mtime + KEPT_S
    forget_old_states(tmp_path, now)
    assert value_of(load_state(tmp_path / "state/old", 1)) == 1
    for path in (tmp_path / "state/new").rglob("*.state"):
        os.utime(path, (now, now))
    forget_old_states(tmp_path, now + 10)
    left = {str(p.relative_to(tmp_path / "state")) for p in tmp_path.rglob("*.*")}
    assert left == {
        "old/answered.json",
        "new/answered.json",
        "new/a.state",
        "new/carried/a.state",
    }
    with pytest.raises(StoreError, match="lost its training state"):
        load_state(tmp_path / "state/old", 1)
