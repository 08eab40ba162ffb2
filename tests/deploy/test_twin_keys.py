"""When two services with one key are told from one that is started again."""

import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from typer.testing import CliRunner

from deploy.cli import app
from deploy.twin_keys import Watch, read_twins, watch_keys
from server.revocation import revoke
from tests.joining import a_hub, joined

OLD, NEW = "a" * 16, "b" * 16


def line(session, end_s, seconds=0.1, *, site="north", **changes):
    row = {
        "time": end_s, "site": site, "session": session, "certificate": "SUCCESS",
        "request": "POST /v1/fleet/pull-messages", "status": 200,
        "bytes_in": 1, "bytes_out": 1, "seconds": seconds,
    }  # fmt: skip
    return json.dumps(row | changes)


def test_an_old_process_that_is_heard_after_a_newer_one_is_a_twin():
    watch = Watch()
    assert not watch.hear([line(OLD, 10.0), line(NEW, 20.0)])
    assert watch.hear([line(OLD, 21.0)]) == {"north"}
    assert watch.twins["north"].since.timestamp() == pytest.approx(19.9)
    assert watch.twins["north"].last.timestamp() == pytest.approx(20.9)
    watch.hear([line(NEW, 22.0), line(OLD, 30.0)])
    assert watch.twins["north"].since.timestamp() == pytest.approx(19.9)
    assert watch.twins["north"].last.timestamp() == pytest.approx(29.9)


@pytest.mark.parametrize(
    "lines",
    [
        [line(OLD, 10.0), line(NEW, 20.0), line("c" * 16, 30.0), line("c" * 16, 31.0)],
        # an upload that began before the new process did, and was cut long after
        [line(OLD, 10.0), line(NEW, 20.0), line(OLD, 60.0, 45.0)],
        # the hub's clock is set back by an hour between the two
        [line(OLD, 7200.0), line(NEW, 3600.0), line(NEW, 3601.0)],
        [line(OLD, 10.0), line(NEW, 20.0, site="south"), line(OLD, 21.0)],
        [line(OLD, 10.0), line(NEW, 20.0, certificate="FAILED:expired"), line(OLD, 21)],
        [line(OLD, 10.0), line("", 20.0, request="GET /v1/fleet/"), line(OLD, 21.0)],
        [line(OLD, 10.0), line(NEW, 20.0, status=400), line(OLD, 21.0)],
        [line(OLD, 10.0), line(NEW, 20.0, status=401), line(OLD, 21.0)],
        [line(OLD, 10.0), line(NEW, 20.0)[:40], "[]", line(OLD, 21.0)],
    ],
    ids=[
        "restarts",
        "late",
        "clock",
        "two sites",
        "stranger",
        "check",
        "echo",
        "skewed echo",
        "torn",
    ],
)
def test_what_is_no_twin(lines):
    assert not Watch().hear(lines)


def test_a_service_that_keeps_dying_takes_no_room():
    watch = Watch()
    assert not watch.hear(line(f"{n:016x}", float(n)) for n in range(1000))
    assert len(watch._began["north"]) == 64


def test_the_alarm_is_written_down_and_ends_with_the_keys(tmp_path, caplog):
    now = datetime.now(UTC)
    hub = a_hub(tmp_path / "hub", now=now)
    joined(hub, tmp_path / "site", "north", now)
    at = now.timestamp()
    lines = [line(OLD, at - 9), line(NEW, at - 5), line(OLD, at - 1)]
    (tmp_path / "hub/nginx/access.jsonl").write_text("\n".join(lines) + "\n")
    stop = threading.Event()
    stop.set()
    for _ in range(2):  # the second time as a runner that was started again
        watch_keys(hub.folder, stop)
    sentence = read_twins(hub.folder, now)["north"].sentence("north")
    assert [r.message for r in caplog.records if "two places" in r.message] == [
        sentence
    ]
    for verb in ("status", "sites"):
        said = CliRunner().invoke(app, ["server", verb, str(hub.folder)])
        assert f"ALARM: {sentence}" in " ".join(said.output.split())
    assert not read_twins(hub.folder, now + timedelta(hours=25))
    revoke(hub, "north", now)
    assert not read_twins(hub.folder, now)
