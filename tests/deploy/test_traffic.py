"""Laws of counting the bytes that each site sent and got."""

import json
import time

import pytest

from deploy.traffic import Meter, Traffic, bound_log, traffic_by_site
from tests.federation.chain import (
    ECHO,
    Federation,
    echo,
    free_port,
    needs_nginx,
    running,
    until,
)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(site, when, got=0, gave=0, certificate="SUCCESS"):
    return {
        "time": when, "site": site, "certificate": certificate, "request": "POST /",
        "status": 200, "bytes_in": got, "bytes_out": gave, "seconds": 0.1,
    }  # fmt: skip


def test_sums_are_by_site_and_time_over_both_logs_and_only_of_good_certificates(
    tmp_path,
):
    write(tmp_path / "access.jsonl.1", row("north", 1.0, 10, 1), row("south", 2.0, 5))
    write(
        tmp_path / "access.jsonl",
        row("north", 3.0, 20, 2),
        row("north", 4.0, 99, 99, "FAILED:certificate revoked"),
        row("north", 5.0, 40, 4),
    )
    with (tmp_path / "access.jsonl").open("a") as log:
        log.write('{"time":6.0,"site":"nor')  # being written
    assert traffic_by_site(tmp_path) == {
        "north": Traffic(3, 70, 7),
        "south": Traffic(1, 5, 0),
    }
    parts = [traffic_by_site(tmp_path, *span) for span in ((0.0, 3.0), (3.0, 9.0))]
    assert parts[0]["north"] + parts[1]["north"] == Traffic(3, 70, 7)
    assert parts[1] == {"north": Traffic(2, 60, 6)}
    assert traffic_by_site(tmp_path / "none") == {}


def test_a_meter_counts_every_line_once_whatever_is_put_aside(tmp_path):
    log = tmp_path / "access.jsonl"
    write(log, row("north", 1.0, 1000, 1000))
    meter = Meter(tmp_path)
    assert meter.take() == {}
    with log.open("a") as file:
        file.write(json.dumps(row("north", 0.5, 10, 1)) + "\n")
        file.write(json.dumps(row("south", 2.0, 99, 99, "NONE")) + "\n")
        file.write('{"time":6.0,"site":"nor')  # being written
    assert meter.take() == {"north": Traffic(1, 10, 1)}
    with log.open("a") as file:
        file.write('th","certificate":"SUCCESS","bytes_in":20,"bytes_out":2}\n')
    meter.look()
    log.rename(tmp_path / "access.jsonl.1")
    with (tmp_path / "access.jsonl.1").open("a") as file:
        file.write(json.dumps(row("north", 3.0, 40, 4)) + "\n")
    write(log, row("south", 4.0, 80, 8))
    assert meter.take() == {"north": Traffic(2, 60, 6), "south": Traffic(1, 80, 8)}
    assert meter.take() == {}


def test_a_meter_begins_before_there_is_a_log(tmp_path):
    meter = Meter(tmp_path)
    write(tmp_path / "access.jsonl", row("north", 1.0, 10, 1))
    assert meter.take() == {"north": Traffic(1, 10, 1)}


@needs_nginx
def test_a_log_put_aside_loses_no_request(tmp_path):
    federation = Federation(tmp_path, free_port())
    folder = federation.hub.folder
    with (
        echo(federation.loopback, federation.superlink_port),
        running(federation.hub) as nginx,
        federation.client(federation.north) as client,
    ):
        began = time.time()
        client.post(ECHO, content=b"x" * 5000)
        until(lambda: traffic_by_site(folder))  # it is written after the answer
        assert not bound_log(folder, nginx.pid)
        assert bound_log(folder, nginx.pid, limit_bytes=100)
        until((folder / "access.jsonl").exists)
        client.post(ECHO, content=b"x" * 5000)
        until(lambda: traffic_by_site(folder)["north"].requests == 2)
    found = traffic_by_site(folder, began)["north"]
    assert found.received_bytes == pytest.approx(10_600, abs=400)
    assert (folder / "access.jsonl.1").read_text().count("\n") == 1
