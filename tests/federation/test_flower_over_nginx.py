"""Flower's own SuperLink and SuperNode as processes, with both nginx between them."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.nginx_run import reload
from deploy.traffic import traffic_by_site
from server.superlink import SuperLinkAddress, SuperLinkLine
from tests.federation.chain import (
    Federation,
    free_port,
    needs_nginx,
    running,
    until,
    wait_for,
)

pytestmark = needs_nginx
BIN = Path(sys.executable).parent


def environment(home):
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "no_proxy": "127.0.0.1,localhost,::1",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def process(root, name, *argv):
    """One of Flower's programs, with a log file."""
    log = root / f"{name}.log"
    with log.open("ab") as out:
        child = subprocess.Popen(
            [str(word) for word in argv],
            env=environment(root / "flwr"),
            cwd=root,
            stdout=out,
            stderr=out,
        )
    try:
        yield
    finally:
        child.kill()
        child.wait(10)


@contextmanager
def superlink(federation):
    pair = federation.loopback
    with process(
        federation.root, "superlink", BIN / "flower-superlink",
        "--host", "127.0.0.1", "--port", federation.superlink_port,
        "--ssl-certfile", pair.certificate, "--ssl-keyfile", pair.key,
        "--ssl-ca-certfile", federation.authority.certificate,
        "--database", federation.root / "state.db", "--enable-supernode-auth",
        "--isolation", "process",
        "--superexec-auth-secret-file", federation.root / "secret",
    ):  # fmt: skip
        wait_for(federation.superlink_port, 120)
        yield


def supernode(federation):
    return process(
        federation.root, "supernode", BIN / "flower-supernode",
        "--superlink", f"127.0.0.1:{federation.site.port}",
        "--root-certificates", federation.authority.certificate,
        "--auth-supernode-private-key", federation.root / "node.key",
        "--host", "127.0.0.1", "--port", free_port(), "--isolation", "process",
        "--superexec-auth-secret-file", federation.root / "secret",
    )  # fmt: skip


@contextmanager
def coordinator(federation):
    """The hub's own line to its SuperLink."""
    line = SuperLinkLine(
        SuperLinkAddress(
            federation.superlink_port,
            federation.authority.certificate,
            (federation.root / "secret").read_bytes(),
        )
    )
    try:
        yield line
    finally:
        line._control.close()
        line._runtime.close()


def online(line):
    """Whether each registered node is online."""
    return [is_online for _, is_online in line.nodes().values()]


def prepare(federation):
    root = federation.root
    (root / "secret").write_bytes(os.urandom(32))
    key = ec.generate_private_key(ec.SECP384R1())
    (root / "node.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
    )
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_a_supernode_joins_by_certificate_and_key_and_is_cut_off_by_revocation(
    tmp_path,
):
    """What a coordinator sees: registered, online, and refused within a minute."""
    federation = Federation(tmp_path, free_port())
    public_key = prepare(federation)
    with (
        superlink(federation),
        running(federation.hub) as hub,
        running(federation.site),
        coordinator(federation) as line,
    ):
        line.register(public_key)
        assert online(line) == [False]
        with supernode(federation):
            until(lambda: online(line) == [True], 120)
            folder = federation.hub.folder
            pulls = traffic_by_site(folder)["north"]
            assert pulls.received_bytes > 0
            until(lambda: traffic_by_site(folder)["north"].requests > pulls.requests)

            federation.authority.revoke(federation.north)
            reload(folder, hub.pid)
            until(lambda: last(folder)["certificate"] == "FAILED:certificate revoked")
            assert last(folder)["status"] == 400
            log = federation.root / "supernode.log"
            until(lambda: "400 Bad Request" in log.read_text())


def last(folder):
    return json.loads((folder / "access.jsonl").read_text().splitlines()[-1])
