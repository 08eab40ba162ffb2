"""What a service is doing can be seen, and stopped without a trace."""

import json
import threading
import time

import numpy as np
import pytest

from client.activity import (
    OrderCancelledError,
    Work,
    last_activity,
    work_of,
)
from client.desk import pause, resume
from common.errors import PolicyError, StoppedError, TrainingError
from tests.client.conftest import order, quiet, slices


def test_an_order_is_seen_from_its_beginning_to_its_end(tmp_path):
    work = Work(tmp_path)
    assert work.now.doing == "starting"
    work.ready()
    assert work.now.doing == "idle"
    with work.order("training", "run-1", "ab" * 32, 3) as tell:
        tell(5, 20)
        now = work.now
        assert (now.doing, now.run, now.round, now.step, now.steps) == (
            "training",
            "run-1",
            3,
            5,
            20,
        )
    assert (work.now.doing, work.now.run, work.now.step) == ("idle", None, None)
    assert last_activity(tmp_path) == work.now


def test_the_last_failure_is_remembered_by_its_number(tmp_path):
    work = Work(tmp_path)
    for error, code, check in (
        (TrainingError("x"), 31, None),
        (PolicyError("x", code="hours"), 53, 4),
        (ValueError("patient"), 1, None),
    ):
        with pytest.raises(type(error)), work.order("training", "r", "p", 1):
            raise error
        assert (work.now.last_error, work.now.last_check) == (code, check)
        assert work.now.doing == "idle"
    with work.order("judging", "r", "p", 1):
        assert work.now.last_error == 1
    assert work.now.last_error_at is not None
    assert "patient" not in (tmp_path / "desk" / "activity.json").read_text()


def test_steps_cost_less_than_a_tenth_of_a_millisecond(tmp_path):
    work = Work(tmp_path)
    with work.order("training", "run-1", "p", 1) as tell:
        before = (tmp_path / "desk" / "activity.json").stat().st_mtime_ns
        start = time.perf_counter()
        for step in range(1000):
            tell(step, 1000)
        spent = time.perf_counter() - start
        assert (tmp_path / "desk" / "activity.json").stat().st_mtime_ns == before
    assert spent < 0.1


def test_the_copy_on_the_disk_follows_within_half_a_second(tmp_path, monkeypatch):
    work = Work(tmp_path)
    with work.order("training", "run-1", "p", 1) as tell:
        monkeypatch.setattr("client.activity.EVERY_S", 0.0)
        tell(7, 1000)
        assert last_activity(tmp_path).step == 7


def test_a_place_that_can_not_be_written_does_not_stop_training(tmp_path):
    (tmp_path / "desk").write_text("in the way")
    work = Work(tmp_path / "desk")
    work.ready()
    assert last_activity(tmp_path / "desk") is None


def test_a_paused_site_does_not_enter_an_order(tmp_path):
    work, entered = Work(tmp_path), []
    pause(tmp_path, "")
    with pytest.raises(PolicyError), work.order("training", "r", "p", 1):
        entered.append(1)
    assert (entered, work.now.last_error, work.now.last_check) == ([], 53, 2)
    resume(tmp_path)
    with work.order("training", "r", "p", 1):
        entered.append(1)
    assert entered == [1]


def test_only_the_order_at_work_is_cancelled(tmp_path):
    work = Work(tmp_path)
    assert work.cancel() is False
    with work.order("judging", "r", "p", 1) as tell:
        assert work.cancel() is False
        tell(1, 2)
    stopped = pytest.raises(StoppedError)
    with stopped, work.order("training", "r", "p", 1) as tell:
        tell(1, 9)
        assert work.cancel() is True
        tell(2, 9)
    assert work.now.last_error == StoppedError.exit_code
    with work.order("training", "r", "p", 2) as tell:
        tell(1, 9)


def test_one_folder_has_one_work_however_it_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    assert work_of(tmp_path) is work_of(tmp_path / "a" / "..")


def test_a_cancelled_round_leaves_no_trace_and_comes_out_the_same_later(
    make_service, tmp_path
):
    plan = slices()
    service, undisturbed = (make_service(plan, tmp_path / n) for n in "ab")
    wanted = [undisturbed.train(order(plan, n, n - 1), quiet) for n in (1, 2)]
    service.train(order(plan, 1, 0), quiet)
    files = {p: p.read_bytes() for p in (tmp_path / "a").rglob("*.state")}
    assert files
    work, at_step = Work(tmp_path / "a"), threading.Event()

    def cancel() -> None:
        assert at_step.wait(30)
        assert work.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    stopped = pytest.raises(OrderCancelledError, match="step 2 of 3")
    with stopped, work.order("training", "run", plan.digest, 2) as tell:

        def step(done: int, steps: int) -> None:
            if done == 2:
                at_step.set()
                canceller.join()
            tell(done, steps)

        service.train(order(plan, 2, 1), step)
    assert {p: p.read_bytes() for p in (tmp_path / "a").rglob("*.state")} == files
    with work.order("training", "run", plan.digest, 2) as tell:
        again = service.train(order(plan, 2, 1), tell)
    np.testing.assert_array_equal(again.delta, wanted[1].delta)
    assert json.loads((tmp_path / "a/desk/activity.json").read_text())["doing"] == (
        "idle"
    )
