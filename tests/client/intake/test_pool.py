import os
import signal

import pytest

from client.intake.pool import DecodeLimits, DecoderPool, Lost, shared_memory
from common.errors import IntakeError


@pytest.fixture
def heads(tmp_path, write_series):
    paths = write_series(tmp_path, slices=30).paths
    return [{"job": "head", "path": str(path)} for path in paths]


def test_every_task_is_answered_exactly_once(pool, heads):
    replies = dict(pool.run(heads))
    assert sorted(replies) == list(range(30))
    for index, reply in replies.items():
        assert reply["planes"][0]["path"] == heads[index]["path"]


def test_a_decoder_that_crashes_loses_one_task_and_no_more(heads):
    with DecoderPool(DecodeLimits(workers=2)) as fresh:
        replies = {}
        for index, reply in fresh.run(heads):
            if not replies:
                os.kill(fresh._processes[0].child.pid, signal.SIGSEGV)
            replies[index] = reply
        lost = [reply for reply in replies.values() if isinstance(reply, Lost)]
        assert sorted(replies) == list(range(30))
        assert lost in ([], [Lost(late=False)])
        assert all(not isinstance(reply, Lost) for _, reply in fresh.run(heads))


def test_a_decoder_that_hangs_is_ended_and_loses_one_task(heads):
    with DecoderPool(DecodeLimits(workers=1, item_s=1.0)) as fresh:
        replies = {}
        for index, reply in fresh.run(heads):
            if not replies:
                os.kill(fresh._processes[0].child.pid, signal.SIGSTOP)
            replies[index] = reply
        assert sorted(replies) == list(range(30))
        assert list(replies.values()).count(Lost(late=True)) == 1


def test_a_caller_that_stops_early_leaves_the_pool_usable(pool, heads):
    for _ in pool.run(heads):
        break
    assert len(list(pool.run(heads))) == 30


def test_decoders_that_cannot_start_are_an_error(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with (
        DecoderPool(DecodeLimits()) as broken,
        pytest.raises(IntakeError, match="check the installation"),
    ):
        list(broken.run([{"job": "head", "path": "/nowhere"}]))


def test_a_decoder_without_memory_says_so():
    task = {"job": "head", "path": "/nowhere"}
    with DecoderPool(DecodeLimits(memory_bytes=1 << 20)) as tiny:
        [(_, reply)] = tiny.run([task])
    assert isinstance(reply, Lost) or reply["problem"] in ("DECODE_LIMIT", "UNREADABLE")


def test_shared_memory_can_not_be_resized():
    descriptor = shared_memory(4096)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 1)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 8192)
    os.close(descriptor)


def test_no_decoder_outlives_its_pool(heads):
    with DecoderPool(DecodeLimits()) as fresh:
        list(fresh.run(heads))
        children = [process.child for process in fresh._processes]
        assert len(children) == 2
    assert all(child.poll() is not None for child in children)
