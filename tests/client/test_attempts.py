"""An order in which the service dies again and again."""

import os

import pytest

from client.attempts import AT_WORK, MOST, attempt
from common.errors import StoreError, SupervisorError


def dies(folder, number=1):
    """A process that begins an order and never ends it."""
    pid = os.fork()
    if pid == 0:
        try:
            with attempt(folder, "training", "run", number):
                os._exit(9)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_an_order_is_tried_three_times_then_refused_once_then_tried_anew(tmp_path):
    for _ in range(2):
        assert [dies(tmp_path) for _ in range(MOST)] == [True] * MOST
        with (
            pytest.raises(SupervisorError, match="died 3 times"),
            attempt(tmp_path, "training", "run", 1),
        ):
            raise AssertionError("entered")


def test_another_order_has_tries_of_its_own(tmp_path):
    assert [dies(tmp_path, n) for n in (1, 1, 2, 2, 2, 1, 1, 1)] == [True] * 8
    assert not dies(tmp_path, 1)


def test_an_order_that_ends_well_or_badly_is_not_counted(tmp_path):
    for _ in range(2 * MOST):
        with pytest.raises(ZeroDivisionError), attempt(tmp_path, "judging", "run", 1):
            raise ZeroDivisionError
        with attempt(tmp_path, "judging", "run", 1):
            assert (tmp_path / "desk" / AT_WORK).stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "desk" / AT_WORK).exists()


def test_a_torn_note_counts_as_none_and_one_that_can_t_be_written_as_a_refusal(
    tmp_path,
):
    assert dies(tmp_path)
    (tmp_path / "desk" / AT_WORK).write_bytes(b'{"doing": ')
    assert dies(tmp_path)
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "desk").write_bytes(b"")
    with (
        pytest.raises(StoreError, match="nothing was done"),
        attempt(tmp_path / "blocked", "training", "run", 1),
    ):
        raise AssertionError("entered")
