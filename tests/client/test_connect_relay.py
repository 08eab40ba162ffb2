"""Laws of the relay through a proxy, on a real proxy and a real process."""

import asyncio
import contextlib
import hashlib
import os
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from client import connect_relay
from client.connect_relay import (
    PROXY_VARIABLE,
    Proxy,
    main,
    open_tunnel,
    parse_proxy,
    relay_command,
)
from common.errors import TransportError
from tests.federation.chain import free_port, until
from tests.federation.connect_proxy import connect_proxy

SECRET = "p@ss:word"
USER = "ward%20a:p%40ss%3Aword@"


@contextlib.contextmanager
def relay(port, hub, url):
    """The relay as the supervisor runs it; gives its process."""
    env = {**os.environ, PROXY_VARIABLE: url, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        relay_command(port, hub), env=env, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr.readline() == f"relay listens, port {port}\n"
        yield process
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


class Upper(socketserver.StreamRequestHandler):
    """Answers each line in capitals; `sum N` with the digest of N bytes."""

    def handle(self):
        for line in self.rfile:
            if line.startswith(b"sum "):
                digest = hashlib.sha256(self.rfile.read(int(line.split()[1])))
                self.wfile.write(digest.hexdigest().encode() + b"\n")
            elif line.startswith(b"give "):
                self.wfile.write(bytes(int(line.split()[1])))
            else:
                self.wfile.write(line.upper())


class UpperServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


@pytest.fixture
def hub():
    server = UpperServer(("127.0.0.1", 0), Upper)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_bytes_pass_both_ways_in_flat_memory_and_no_secret_shows(hub):
    port, target = free_port(), f"127.0.0.1:{hub}"
    with connect_proxy(password=f"ward a:{SECRET}") as proxy:
        url = f"http://{USER}127.0.0.1:{proxy.port}"
        with relay(port, target, url) as process:
            assert "p%40ss" not in " ".join(psutil.Process(process.pid).cmdline())
            with socket.create_connection(("127.0.0.1", port), 10) as line:
                file = line.makefile("rb")
                line.sendall(b"hello\n")
                assert file.readline() == b"HELLO\n"
                body = os.urandom(1 << 20) * 20
                line.sendall(b"sum %d\n" % len(body) + body)
                assert file.readline().decode().strip() == (
                    hashlib.sha256(body).hexdigest()
                )
                before = peak_mb(process.pid)
                line.sendall(b"give 60000000\n")  # and nobody reads for a while
                time.sleep(0.5)
                assert len(file.read(60_000_000)) == 60_000_000
                assert peak_mb(process.pid) < before + 5
                line.shutdown(socket.SHUT_WR)  # the end passes through, too
                assert file.read() == b""
                file.close()
        assert process.returncode == 0
        assert proxy.asked == [("CONNECT", target)]


def peak_mb(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_a_line_that_breaks_on_one_side_breaks_on_the_other(hub):
    port = free_port()
    with (
        connect_proxy() as proxy,
        relay(port, f"127.0.0.1:{hub}", f"http://127.0.0.1:{proxy.port}"),
        socket.create_connection(("127.0.0.1", port), 10) as line,
    ):
        line.sendall(b"a\n")
        assert line.recv(10) == b"A\n"
        start = time.monotonic()
        proxy.cut()
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
        assert time.monotonic() - start < 2
        with socket.create_connection(("127.0.0.1", port), 10) as again:
            again.sendall(b"b\n")
            assert again.recv(10) == b"B\n"
            before = proxy.open
            linger = struct.pack("ii", 1, 0)  # so that it ends with a reset
            again.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        until(lambda: proxy.open == before - 1)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"password": "ward a:other"}, "answered 407 to a tunnel"),
        ({"allowed": ()}, "answered 403 to a tunnel"),
    ],
)
def test_a_refused_tunnel_hangs_up_at_once_and_says_why(how, said, hub):
    port = free_port()
    with connect_proxy(**how) as proxy:
        url = f"http://{USER}127.0.0.1:{proxy.port}"
        with relay(port, f"127.0.0.1:{hub}", url) as process:
            with (
                socket.create_connection(("127.0.0.1", port), 10) as line,
                contextlib.suppress(ConnectionResetError),
            ):
                assert line.recv(1) == b""
            message = process.stderr.readline()
    assert said in message
    assert "[network] proxy" in message or "allow that address" in message
    assert "pass" not in message.replace("password", "")
    assert "ward" not in message


def test_an_absent_proxy_is_named():
    with pytest.raises(TransportError, match=r"can't reach the proxy 127\.0\.0\.1:1 "):
        asyncio.run(open_tunnel(Proxy("127.0.0.1", 1, False, None), "hub.example:443"))


def test_a_silent_proxy_is_given_up_on(monkeypatch, capsys):
    monkeypatch.setattr(connect_relay, "CONNECT_S", 0.3)

    async def ask(port):
        task = asyncio.create_task(
            connect_relay.serve(port, "hub.example:443", Proxy(*where, False, None))
        )
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    with connect_proxy(hangs=True) as proxy:
        where = ("127.0.0.1", proxy.port)
        asyncio.run(asyncio.wait_for(ask(free_port()), 5))
    assert "the proxy was silent for 0 s" in capsys.readouterr().err


def test_a_proxys_url_is_read():
    assert parse_proxy("http://proxy:3128") == Proxy("proxy", 3128, False, None)
    assert parse_proxy("https://proxy/") == Proxy("proxy", 443, True, None)
    with_user = parse_proxy(f"http://{USER}[::1]:8080")
    assert with_user.host == "::1"
    assert with_user.authorization == "Basic d2FyZCBhOnBAc3M6d29yZA=="
    assert "d2Fy" not in repr(with_user)


@pytest.mark.parametrize(
    "url", ["", "proxy:3128", "socks5://proxy", "http://", "http://p:x", "http://p/a"]
)
def test_what_is_no_proxys_url_is_refused_without_repeating_it(url):
    with pytest.raises(TransportError, match="mend"):
        parse_proxy(url)


def test_a_bad_hub_or_a_taken_port_is_an_error_with_a_number(capsys):
    proxy = {PROXY_VARIABLE: "http://u:secret@proxy:1"}
    assert main(["1", "hub:443\r\nX: y"], proxy) == TransportError.exit_code
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([port, "hub:443"], proxy) == TransportError.exit_code
    err = capsys.readouterr().err
    assert "expected name:port" in err
    assert "Address already in use" in err or "address already in use" in err
    assert "secret" not in err
