"""The hub's own line to its SuperLink, on loopback.

Flower's SuperLink carries messages and keeps them in SQLite; the round loop runs in our
process, on the `HttpGrid` that Flower gives to ServerApps. A Flower run is only a
channel: when the loop's process or the SuperLink dies, a new channel is opened and the
journal says where to go on. So nothing that Flower forgets is missed.

It rests on Flower's internals (Control and Runtime API over HTTP), pinned to one
version; `tests/federation/test_line.py` says which.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import (
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import EngineError
from server.hub import CA_CERTIFICATE, SECRET, read_hub_file

_BUNDLE = b"""[build-system]
requires = []
[project]
name = "fedct"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "fedct"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
"""
"""What Flower calls an app: names, no code. Hospitals never fetch it."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_BEAT_S = 10.0


@dataclass(frozen=True)
class SuperLinkAddress:
    """Where the hub's SuperLink listens."""

    port: int
    """TCP port on 127.0.0.1."""
    ca_file: Path
    """The CA that signed its loopback certificate."""
    secret: bytes
    """What was given to it as `--superexec-auth-secret-file`."""

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"


def superlink_of(folder: Path) -> SuperLinkAddress:
    """Where the SuperLink of a hub's folder listens."""
    port = read_hub_file(folder).superlink_port
    secret = (folder / SECRET).read_bytes()
    return SuperLinkAddress(port, folder / CA_CERTIFICATE, secret)


class SuperLinkLine:
    """Calls to a running SuperLink; each is one request."""

    def __init__(self, link: SuperLinkAddress) -> None:
        """Prepare the connections; nothing is sent yet."""
        self._link = link
        self._ca = link.ca_file.read_bytes()
        self._control = ControlHttpClient.from_server_address(
            link.address, False, self._ca, [RuntimeVersionHttpInterceptor("flwr-cli")]
        )
        self._runtime = RuntimeHttpClient.from_server_address(
            link.address,
            False,
            self._ca,
            [
                RuntimeVersionHttpInterceptor("SuperExec"),
                SuperExecAuthHttpInterceptor(
                    master_secret=link.secret, protected_methods={_ACQUIRE}
                ),
            ],
        )

    def __enter__(self) -> "SuperLinkLine":
        """Use the connections."""
        return self

    def __exit__(self, *why: object) -> None:
        """Hang up."""
        self._control.close()
        self._runtime.close()

    def is_up(self) -> bool:
        """Whether the SuperLink answers."""
        try:
            self._control.ListNodes(ListNodesRequest())
        except httpx.HTTPError:
            return False
        return True

    def nodes(self) -> dict[bytes, tuple[int, bool]]:
        """Node key to node id and whether it is online, of all registered nodes."""
        found = self._control.ListNodes(ListNodesRequest()).nodes_info
        return {
            node.public_key: (int(node.node_id), node.status == "online")
            for node in found
            if node.status != "unregistered"
        }

    def register(self, public_key: bytes) -> None:
        """Let a node with this key in."""
        self._control.RegisterNode(RegisterNodeRequest(public_key=public_key))

    def unregister(self, node_id: int) -> None:
        """Shut a node out."""
        self._control.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def close_channels(self) -> None:
        """End the Flower runs that a process before this one left open."""
        found = self._control.ListRuns(ListRunsRequest())
        for run_id, run in found.run_dict.items():
            if run.status.status != "finished":
                with suppress(httpx.HTTPStatusError):
                    self._control.StopRun(StopRunRequest(run_id=run_id))

    @contextmanager
    def channel(self) -> Iterator[HttpGrid]:
        """A Flower run of our own, as a grid; it ends when the block is left.

        Raises:
            EngineError: The SuperLink would not start a run.
        """
        token = self._claim(self._start())
        grid = HttpGrid(self._link.address, False, self._ca, token=token)
        given = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run_from_proto(given.run))
        done = threading.Event()
        beating = threading.Thread(
            target=_beat, args=(grid, done), name="run-heartbeat", daemon=True
        )
        beating.start()
        status = SubStatus.FAILED
        try:
            yield grid
            status = SubStatus.COMPLETED
        finally:
            done.set()
            grid._retry_invoker.max_tries = 1
            with suppress(httpx.HTTPError):
                grid._runtime_client.PushTaskOutput(
                    PushTaskOutputRequest(sub_status=status, details="")
                )
            grid.close()

    def _start(self) -> int:
        content, _ = build_fab_from_files({"pyproject.toml": _BUNDLE})
        bundle = Fab(hashlib.sha256(content).hexdigest(), content, {})
        started = self._control.StartRun(StartRunRequest(fab=fab_to_proto(bundle)))
        if not started.HasField("run_id"):
            raise EngineError(
                "hub could not start a run at its SuperLink, expected a run id; see "
                "superlink.log in the hub's folder"
            )
        return int(started.run_id)

    def _claim(self, run_id: int) -> str:
        """The token for the server's end of a run."""
        request = AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])
        while True:
            answer = self._runtime.AcquireTask(request)
            if not answer.HasField("task"):
                raise EngineError(
                    "hub started a run that another process has taken, expected to be "
                    "the only one; is a second `fedct server start` running here?"
                )
            if answer.task.run_id == run_id:
                return str(answer.token)


def _beat(grid: HttpGrid, done: threading.Event) -> None:
    while not done.wait(_BEAT_S):
        with suppress(httpx.HTTPError):
            grid._runtime_client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


def node_key_bytes(openssh: str) -> bytes:
    """A node key as the SuperLink writes it.

    Args:
        openssh: One line, as `common.keys.openssh_line` writes it.
    """
    key = load_ssh_public_key(openssh.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)  # checked when it was enrolled
    return public_key_to_bytes(key)
