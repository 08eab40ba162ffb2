"""The hub's nginx as a real process, and what stands behind it."""

import functools
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from client.hub_road import HubAddress
from deploy.gateway import HubGateway, install
from deploy.nginx_run import command
from server.hub_grid import HubGrid
from server.part_files import PartFiles
from tests.federation.pki import Authority

HUB_NAME = "hub.example"
CHUNK = bytes(range(256)) * 20_480  # 5 MiB, as Flower's objects


ECHO = "/v1/fleet/push-object"
needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin") is None,
    reason="nginx is not installed; tests/debian.sh installs it",
)


def grid_of(channel, hub, *nodes, stopped=lambda: False):
    """The hub's grid on a channel, for these nodes of one site."""
    return HubGrid(
        channel, lambda: dict.fromkeys(nodes, "north"), stopped, PartFiles(hub)
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(is_so, seconds=10.0, every_s=0.05):
    """Wait for it."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(every_s)


def wait_for(port, seconds=10.0):
    """Until somebody listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert time.monotonic() < end, f"nobody listens on port {port}"
            time.sleep(0.02)


@contextmanager
def running(settings):
    """nginx with these settings; gives its process."""
    install(settings)
    log = settings.folder / "stderr"
    with log.open("ab") as stderr:
        process = subprocess.Popen(command(settings.folder), stderr=stderr)
    try:
        wait_for(settings.port)
        yield process
    finally:
        process.terminate()
        process.wait(10)


class Echo(BaseHTTPRequestHandler):
    """Stands in for the SuperLink: says what it got, or sends a chunk."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        self.server.seen.append(self.path)
        if self.path.endswith("/pull-object"):
            return self.answer(CHUNK)
        if self.path.endswith("/get-fab"):
            return self.answer(CHUNK * 8)
        said = {
            "path": self.path,
            "headers": {k.lower(): v for k, v in self.headers.items()},
            "bytes": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        return self.answer(json.dumps(said).encode())

    def do_GET(self):
        self.server.seen.append(self.path)
        self.answer(
            json.dumps({k.lower(): v for k, v in self.headers.items()}).encode()
        )

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class EchoServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a line that was cut on purpose


@contextmanager
def echo(pair, port=None):
    """A TLS server on loopback; gives it, with `seen`, the paths asked for."""
    server = EchoServer(
        ("127.0.0.1", port or free_port()), Echo, bind_and_activate=False
    )
    server.allow_reuse_address = True
    server.server_bind()
    server.server_activate()
    server.seen = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair.files)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Federation:
    """One authority, certificates for a hub and for sites, settings for its nginx."""

    root: Path
    superlink_port: int

    def __post_init__(self):
        self.authority = Authority(self.root / "ca")
        self.hub_pair = self.authority.issue("hub", hosts=[HUB_NAME])
        self.loopback = self.authority.issue(
            "loopback", hosts=["localhost", "127.0.0.1", "::1"]
        )
        self.north = self.authority.issue("north")
        self.hub = HubGateway(
            folder=self.root / "nginx",
            port=free_port(),
            certificate=self.hub_pair.certificate,
            key=self.hub_pair.key,
            ca=self.authority.certificate,
            crl=self.authority.crl,
            superlink_port=self.superlink_port,
            listen=("127.0.0.1",),
        )

    def address(self, pair=None, port=None, **changes):
        """The hub, as a site knows it."""
        pair = pair or self.north
        given = {
            "host": "127.0.0.1",
            "port": port or self.hub.port,
            "ca_file": self.authority.certificate,
            "certificate_file": pair.certificate,
            "key_file": pair.key,
            "tls_name": HUB_NAME,
        }
        return HubAddress(**given | changes)

    def tls(self, pair=None):
        """What somebody needs who connects to the hub."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.check_hostname = False
        if pair is not None:
            context.load_cert_chain(*pair.files)
        return context

    def client(self, pair=None):
        """Talks HTTP to the hub's nginx."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.hub.port}",
            verify=self.tls(pair),
            timeout=30.0,
            trust_env=False,
        )
