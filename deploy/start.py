"""What runs at a hub and at a hospital, and how each is started.

    hub        SuperLink on loopback  ->  runner  ->  nginx on the public port
    hospital   the resident site service, and nothing else

Both are supervisors in the foreground (`deploy.supervisor`), alone in their folder.
"""

import datetime
import fcntl
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from client.install import read_membership
from client.private_files import FILE_MODE
from client.site_file import SITE_CERTIFICATE, read_site_file
from common.certificates import instant
from common.errors import JoinError, SupervisorError
from deploy.gateway import HubGateway, install, watched
from deploy.nginx_run import command, end_orphans
from deploy.no_proxy import no_proxy
from deploy.supervisor import Program, Tell, supervise
from server.hub import (
    CA_CERTIFICATE,
    CA_CRL,
    HUB_CERTIFICATE,
    HUB_KEY,
    LOOPBACK_CERTIFICATE,
    LOOPBACK_KEY,
    SECRET,
    HubFile,
    open_hub,
    read_hub_file,
)
from server.revocation import refresh_crl

LOCK_FILE = "start.lock"
_LET_GO_S = 10.0
"""How long a killed hub's SuperLink may hold its port."""
_LOOK_S = 0.2
"""Who only looks whether a supervisor runs holds its lock for less than that."""
_THRIFT = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "1000000",
    "MALLOC_TRIM_THRESHOLD_": "10000000",
}
"""glibc's allocator (mallopt(3)), at the hub: give a model's memory back when it is
freed. By itself it keeps blocks below 32 MB for later, in as many heaps as there are
threads, which doubles what the hub's processes hold while models pass."""
_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONSAFEPATH": "1",
}
"""For every process: no word to Flower's makers, no code from outside."""


def start_hub(folder: Path, stop: threading.Event, tell: Tell) -> None:
    """Run a hub until `stop` is set.

    Raises:
        FedctError: It is no hub, is running already, or a program is missing.
    """
    settings = read_hub_file(folder)
    with alone(folder, "hub"):
        end_orphans((folder / "nginx").resolve())
        _check_free("127.0.0.1", settings.superlink_port, "superlink_port")
        _check_free(settings.listen, settings.port, "port")
        refresh_crl(open_hub(folder, _now()), _now())
        gateway = HubGateway(
            folder=(folder / "nginx").resolve(),
            port=settings.port,
            certificate=(folder / HUB_CERTIFICATE).resolve(),
            key=(folder / HUB_KEY).resolve(),
            ca=(folder / CA_CERTIFICATE).resolve(),
            crl=(folder / CA_CRL).resolve(),
            superlink_port=settings.superlink_port,
            listen=(settings.listen,),
        )
        install(gateway)
        nginx = Program(
            "nginx", command(gateway.folder), _environment(), reload_on=watched(gateway)
        )
        programs = [_superlink(folder, settings), _runner(folder), nginx]
        supervise(folder, programs, stop, tell)


def start_client(folder: Path, stop: threading.Event, tell: Tell) -> None:
    """Run a hospital's service until `stop` is set.

    Raises:
        FedctError: It is no site, has not joined, or is running already.
    """
    read_site_file(folder)
    if not (folder / SITE_CERTIFICATE).exists():
        raise JoinError(
            "site has no certificate yet, expected one from the hub's join kit; run "
            "`fedct client install`"
        )
    _remark(folder, tell)
    argv = (sys.executable, "-m", "client.resident", str(folder.resolve()))
    with alone(folder, "site"):
        supervise(folder, [Program("service", argv, _environment())], stop, tell)


def _remark(folder: Path, tell: Tell) -> None:
    """Say at the start what would keep the hub from letting this site in."""
    try:
        membership = read_membership(folder, _now())
    except JoinError as error:  # no reason to stop: a new kit mends it meanwhile
        tell(f"warning: {error}")
        return
    if membership.is_renewal_due(_now()):
        tell(
            f"warning: the certificate is good until {instant(membership.not_after)}; "
            "renew it now with `fedct client renew`"
        )


@contextmanager
def alone(folder: Path, who: str, patience_s: float = _LOOK_S) -> Iterator[None]:
    """Hold a folder for this supervisor; the kernel lets go when it ends.

    Args:
        folder: The hub's or the site's.
        who: "hub" or "site".
        patience_s: How long it may be held by another.

    Raises:
        SupervisorError: Another one holds it.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        try:
            _lock(descriptor, time.monotonic() + patience_s)
        except BlockingIOError as error:
            raise SupervisorError(
                f"{who} is running in this folder already, expected to be the only "
                f"one; see `fedct {'server' if who == 'hub' else 'client'} status`"
            ) from error
        yield
    finally:
        os.close(descriptor)


def is_running(folder: Path) -> bool:
    """Whether a supervisor holds this folder."""
    if not (folder / LOCK_FILE).exists():
        return False
    with suppress(OSError, SupervisorError), alone(folder, "site", patience_s=0.0):
        return False
    return True


def _lock(descriptor: int, until: float) -> None:
    """Lock a file; BlockingIOError if another holds it until then."""
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)


def _superlink(folder: Path, settings: HubFile) -> Program:
    state = folder / "superlink"
    port = settings.superlink_port
    argv = (
        _beside_python("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", str(folder / LOOPBACK_CERTIFICATE)),
        *("--ssl-keyfile", str(folder / LOOPBACK_KEY)),
        *("--ssl-ca-certfile", str(folder / CA_CERTIFICATE)),
        *("--database", str(state / "state.db")),
        "--enable-supernode-auth",
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder / SECRET)),
    )
    env = {**_environment(), **_THRIFT, "FLWR_HOME": str(state.resolve())}
    return Program("superlink", argv, env, is_ready=lambda: _listens(port))


def _runner(folder: Path) -> Program:
    argv = (sys.executable, "-m", "deploy.runner", str(folder.resolve()))
    return Program("runner", argv, {**_environment(), **_THRIFT})


def _environment() -> dict[str, str]:
    """What every program gets beside the supervisor's own environment.

    No proxy is on the way to our own loopback ports.
    """
    return {**_FLOWER, **no_proxy()}


def _beside_python(name: str) -> str:
    """A command of the environment that this Python belongs to."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SupervisorError(
            f"hub finds no {name}, expected it beside Python; install FedCT again"
        )
    return found


def _check_free(host: str, port: int, key: str) -> None:
    """Wait a moment for the programs of a hub that was killed; then insist.

    Raises:
        SupervisorError: Somebody else listens there.
    """
    until = time.monotonic() + _LET_GO_S
    while _listens(port, host.strip("[]")):
        if time.monotonic() > until:
            raise SupervisorError(
                f"hub found port {port} of this machine in use, expected it free; "
                "stop what listens there (another hub?), or choose another "
                f"{key} in hub.toml"
            )
        time.sleep(0.2)


def _listens(port: int, host: str = "127.0.0.1") -> bool:
    with suppress(OSError), socket.create_connection((host, port), 1.0):
        return True
    return False


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
