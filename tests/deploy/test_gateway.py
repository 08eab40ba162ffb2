"""Laws of the hub's public port, on real nginx processes."""

import contextlib
import datetime as dt
import hashlib
import json
import shutil
import signal
import socket
import ssl
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from common.errors import TransportError
from deploy.gateway import install, render, watched
from deploy.nginx_run import command, end_orphans, reload
from tests.federation.chain import (
    CHUNK,
    ECHO,
    HUB_NAME,
    Federation,
    echo,
    free_port,
    needs_nginx,
    running,
    until,
    wait_for,
)
from tests.federation.pki import DAY, Authority

pytestmark = needs_nginx


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The hub's nginx, and behind it something like a SuperLink."""
    federation = Federation(tmp_path_factory.mktemp("federation"), free_port())
    with (
        echo(federation.loopback, federation.superlink_port) as superlink,
        running(federation.hub) as hub,
    ):
        yield SimpleNamespace(f=federation, superlink=superlink, hub=hub)


@pytest.fixture
def fresh(tmp_path):
    """A federation of this test's own; nothing runs yet."""
    return Federation(tmp_path / "with space", free_port())


def log_of(settings):
    lines = (settings.folder / "access.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- who gets in ------------------------------------------------------------------


def test_a_request_arrives_as_it_was_sent(chain):
    forged = {"x-forwarded-for": "10.0.0.1", "forwarded": "for=10.0.0.1"}
    with chain.f.client(chain.f.north) as client:
        said = client.post(ECHO, content=b"abc", headers={"x-mine": "1"} | forged)
    assert said.status_code == 200
    got = said.json()
    assert got["path"] == ECHO
    assert got["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert got["headers"]["x-mine"] == "1"
    assert not {"x-forwarded-for", "forwarded", "x-real-ip"} & got["headers"].keys()
    assert got["headers"]["host"] == "localhost"
    assert said.headers["server"] == "nginx"  # and no version


def test_connections_to_the_superlink_stay_open(chain):
    with chain.f.client(chain.f.north) as client:
        for _ in range(3):
            assert client.post(ECHO, content=b"abc").status_code == 200
        lines = [
            line.raddr.port
            for worker in psutil.Process(chain.hub.pid).children()
            for line in worker.net_connections("tcp")
            if line.status == "ESTABLISHED" and line.raddr
        ]
        assert chain.f.superlink_port in lines


STRANGERS = {
    "none": (None, "NONE"),
    "expired": ({"begins": -2 * DAY, "ends": -DAY / 24}, "certificate has expired"),
    "not yet valid": ({"begins": DAY, "ends": 2 * DAY}, "not yet valid"),
    "foreign": ({}, "FAILED:"),
    "revoked": ({}, "certificate revoked"),
    "a server's": ({"hosts": ["north"]}, "unsuitable certificate purpose"),
    "nameless": ({}, "SUCCESS"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_who_has_no_good_certificate_gets_400_and_the_reason(kind, chain, tmp_path):
    how, reason = STRANGERS[kind]
    authority = Authority(tmp_path) if kind == "foreign" else chain.f.authority
    name = "Not A Site" if kind == "nameless" else "north"
    pair = None if how is None else authority.issue(name, **how)
    if kind == "revoked":
        authority.revoke(pair)
        reload(chain.f.hub.folder, chain.hub.pid)
        until(lambda: ask(chain, pair).status_code == 400)
    before = len(chain.superlink.seen)
    answer = ask(chain, pair)
    assert answer.status_code == 400
    assert reason in answer.text
    said = answer.text.split(": ")[1].strip()
    until(lambda: log_of(chain.f.hub)[-1]["certificate"] == said)
    assert len(chain.superlink.seen) == before


def ask(chain, pair, path=ECHO):
    with chain.f.client(pair) as client:
        return client.post(path, content=b"x")


ELSEWHERE = [
    "/v1/control/list-nodes",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
    "/",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/control/../fleet/push-object",
    "//v1/fleet/push-object",
    "/v1/fleet/push-object?x=1",
    "/V1/FLEET/push-object",
]


@pytest.mark.parametrize("certified", [True, False])
def test_everything_else_is_absent_with_a_certificate_and_without(certified, chain):
    pair = chain.f.north if certified else None
    before = len(chain.superlink.seen)
    with tls_line(chain, pair) as line:
        for path in ELSEWHERE:  # as raw bytes: clients tidy paths up
            line.sendall(f"POST {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 404 "), path
    assert len(chain.superlink.seen) == before


@contextlib.contextmanager
def tls_line(chain, pair, context=None, session=None):
    context = context or chain.f.tls(pair)
    with (
        socket.create_connection(("127.0.0.1", chain.f.hub.port), 10) as raw,
        context.wrap_socket(raw, server_hostname=HUB_NAME, session=session) as line,
    ):
        yield line


def test_health_says_to_anybody_that_a_hub_is_there_and_whom_it_sees(chain):
    with chain.f.client() as client:
        headers = {"authorization": "secret", "cookie": "x"}
        stranger = client.get("/health", headers=headers)
        assert client.post("/health", content=b"x").status_code == 405
    assert stranger.status_code == 200
    assert not {"authorization", "cookie"} & stranger.json().keys()
    assert stranger.headers["fedct-certificate"] == "NONE"
    assert "fedct-site" not in stranger.headers
    with chain.f.client(chain.f.north) as client:
        through = client.get("/health")
    assert through.status_code == 200
    assert through.headers["fedct-site"] == "north"


def test_older_tls_and_resumed_sessions_are_refused(chain):
    old = chain.f.tls(chain.f.north)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError), tls_line(chain, None, old):
        pass
    context = chain.f.tls(chain.f.north)
    with tls_line(chain, None, context) as line:
        assert line.version() == "TLSv1.3"
        line.sendall(b"GET /docs HTTP/1.1\r\nHost: h\r\n\r\n")
        line.recv(4096)
        session = line.session
    with tls_line(chain, None, context, session) as line:
        assert not line.session_reused


# --- revocation -------------------------------------------------------------------


def test_a_revoked_site_loses_even_the_connections_it_has_open(fresh):
    """Idle ones at once, busy ones within the bound; others go on meanwhile."""
    fresh.hub = replace(fresh.hub, shutdown_s=2)
    south = fresh.authority.issue("south")
    head = (
        f"POST {ECHO} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n".encode()
    )
    chain = SimpleNamespace(f=fresh)
    with (
        echo(fresh.loopback, fresh.superlink_port),
        running(fresh.hub) as nginx,
        tls_line(chain, fresh.north) as idle,
        tls_line(chain, fresh.north) as busy,
        tls_line(chain, south) as other,
    ):
        idle.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        busy.sendall(head)
        other.sendall(head)
        fresh.authority.revoke(fresh.north)
        reload(fresh.hub.folder, nginx.pid)
        start = time.monotonic()
        idle.settimeout(1.5)
        assert idle.recv(1) == b""
        other.sendall(b"x" * 1_000_000)
        assert other.recv(65536).startswith(b"HTTP/1.1 200")
        with pytest.raises(OSError):  # noqa: PT012 - reset while it writes
            while time.monotonic() - start < 10:
                busy.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - start < fresh.hub.shutdown_s + 1.5
        assert ask(chain, fresh.north).status_code == 400
        assert ask(chain, south).status_code == 200


def test_a_list_that_is_no_list_leaves_the_old_one_in_force(fresh):
    fresh.authority.revoke(fresh.north)
    chain = SimpleNamespace(f=fresh)
    with echo(fresh.loopback, fresh.superlink_port), running(fresh.hub) as nginx:
        fresh.authority.crl.write_text("no list")
        with pytest.raises(TransportError, match=r"ca\.crl"):
            reload(fresh.hub.folder, nginx.pid)
        nginx.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert ask(chain, fresh.north).status_code == 400


# --- carrying ---------------------------------------------------------------------


def test_200_mb_pass_both_ways_in_flat_memory_and_never_touch_the_disk(fresh):
    """Without temporary folders, a body that nginx wanted to spool would be a 500."""
    count = 40
    want = hashlib.sha256(CHUNK).hexdigest()
    with (
        echo(fresh.loopback, fresh.superlink_port),
        running(fresh.hub) as hub,
    ):
        shutil.rmtree(fresh.hub.folder / "temp")
        with fresh.client(fresh.north) as client:
            for _ in range(count):
                up = client.post(ECHO, content=CHUNK)
                assert up.json()["sha256"] == want
                down = client.post("/v1/fleet/pull-object", content=b"")
                assert down.content == CHUNK
        assert read_late(fresh, "/v1/fleet/get-fab") > 8 * len(CHUNK)
        peaks = [peak_mb(pid) for pid in family(hub.pid)]
        assert max(peaks) < 30, peaks
    until(lambda: len(log_of(fresh.hub)) == 2 * count + 1)
    rows = log_of(fresh.hub)
    for key, chunks in (("bytes_in", count), ("bytes_out", count + 8)):
        size = chunks * len(CHUNK)
        assert size < sum(row[key] for row in rows) < 1.001 * size


def read_late(federation, path):
    """Ask, sleep while the answer piles up, then count its bytes."""
    size = 0
    with tls_line(SimpleNamespace(f=federation), federation.north) as line:
        line.sendall(f"POST {path} HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
        time.sleep(1)
        with contextlib.suppress(ssl.SSLEOFError):
            while piece := line.recv(1 << 20):
                size += len(piece)
    return size


def family(pid):
    return [pid, *(child.pid for child in psutil.Process(pid).children())]


def peak_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_a_body_above_flowers_objects_is_refused(chain):
    with chain.f.client(chain.f.north) as client:
        assert client.post(ECHO, content=b"x" * (18 << 20)).status_code == 413


def test_the_log_tells_site_request_and_bytes_and_nothing_of_a_person(chain):
    with chain.f.client(chain.f.north) as client:
        client.post(ECHO, content=b"x" * 1000, headers={"user-agent": "Jane's"})
    until(lambda: 1000 < log_of(chain.f.hub)[-1]["bytes_in"] < 1400)
    row = log_of(chain.f.hub)[-1]
    assert row.keys() == {
        "time", "site", "certificate", "request", "status", "bytes_in", "bytes_out",
        "seconds", "session",
    }  # fmt: skip
    assert row["site"] == "north"
    assert row["request"] == f"POST {ECHO}"
    assert abs(row["time"] - dt.datetime.now().timestamp()) < 5
    text = (chain.f.hub.folder / "access.jsonl").read_text()
    assert "Jane" not in text
    assert "127.0.0.1" not in text


def test_a_dead_superlink_is_told_at_once_and_a_new_one_is_found(fresh):
    with running(fresh.hub), fresh.client(fresh.north) as client:
        start = time.monotonic()
        assert client.post(ECHO, content=b"x").status_code == 502
        assert time.monotonic() - start < 1
        with echo(fresh.loopback, fresh.superlink_port):
            assert client.post(ECHO, content=b"x").status_code == 200


def test_nobody_takes_all_there_is_and_flower_tries_again_after_the_answer(fresh):
    fresh.hub = replace(fresh.hub, connections_per_site=2)
    south = fresh.authority.issue("south")
    chain = SimpleNamespace(f=fresh)
    head = b"POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n" % ECHO.encode()
    with echo(fresh.loopback, fresh.superlink_port), running(fresh.hub):
        with contextlib.ExitStack() as lines:
            for _ in range(2):  # each with half a request
                line = lines.enter_context(tls_line(chain, fresh.north))
                line.sendall(head)
            until(lambda: ask(chain, fresh.north).status_code == 503)
            assert ask(chain, south).status_code == 200
        until(lambda: ask(chain, fresh.north).status_code == 200)
        with fresh.client() as client:
            answers = [client.get("/health").status_code for _ in range(60)]
            assert client.get("/x", headers={"x": "y" * 9000}).status_code == 400
    assert set(answers) == {200, 503}
    assert answers[:20] == [200] * 20


# --- processes --------------------------------------------------------------------


def test_a_killed_nginx_starts_again_on_the_same_port(fresh):
    chain = SimpleNamespace(f=fresh)
    with running(fresh.hub) as nginx:
        until(lambda: len(family(nginx.pid)) == 3)
        orphans = family(nginx.pid)[1:]
        nginx.kill()
        nginx.wait()
        assert all(psutil.pid_exists(pid) for pid in orphans)
        again = subprocess.Popen(command(fresh.hub.folder))
        try:
            until(lambda: not any(map(psutil.pid_exists, orphans)))
            wait_for(fresh.hub.port)
            assert ask(chain, None).status_code == 400
            assert end_orphans(fresh.hub.folder) == 0
            assert again.poll() is None
        finally:
            again.terminate()
            again.wait(10)


def test_a_bad_configuration_never_takes_the_place_of_a_good_one(fresh):
    assert install(fresh.hub)
    assert not install(fresh.hub)
    good = (fresh.hub.folder / "nginx.conf").read_text()
    absent = fresh.root / "absent.crt"
    with pytest.raises(TransportError, match=r"absent\.crt"):
        install(replace(fresh.hub, certificate=absent))
    assert (fresh.hub.folder / "nginx.conf").read_text() == good
    assert install(replace(fresh.hub, port=free_port()))
    assert {fresh.hub.crl, fresh.hub.certificate} < set(watched(fresh.hub))


@pytest.mark.parametrize(
    "change",
    [
        {"superlink_name": "hub;} evil"},
        {"listen": ("1.2.3.4:5; include /etc/passwd",)},
        {"ca": "relative.crt"},
        {"ca": '/a"; include "/b'},
        {"ca": "/$document_root/x"},
    ],
)
def test_settings_that_nginx_would_read_otherwise_are_refused(change, fresh):
    if "ca" in change:
        change = {"ca": Path(change["ca"])}
    with pytest.raises(TransportError, match="expected"):
        replace(fresh.hub, **change)


def test_only_root_names_a_user(fresh):
    assert "user " not in render(fresh.hub)
    assert "user fedct;" in render(fresh.hub, "fedct")


def test_no_nginx_is_an_error_that_says_what_to_install(fresh, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(TransportError, match="apt-get install nginx"):
        install(fresh.hub)
