"""The engines that carry messages between server and sites in a rehearsal.

`in-process` is Flower's own `Grid` interface over function calls: it starts at once,
runs sites one after another in the caller's thread, and is deterministic. `ray` is
Flower's simulation engine, for many sites, several GPUs, a cluster. Both run the very
same `ServerApp` and `ClientApp` objects; so does the deployment engine.
"""

import json
import logging
import os
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import SITE_FOLDER_KEY, SITES_VARIABLE
from client.app import app as client_app
from common.errors import EngineError
from server.app import ARM_KEY, RUN_FOLDER_KEY
from server.app import app as server_app

log = logging.getLogger("fedct.engine")

_SERVER_NODE = 1
"""Flower's own number for the server's end."""


class InProcessGrid(Grid):
    """A grid whose nodes are site folders, served by function calls.

    An order is worked on when its reply is pulled, so only one site's reply exists at a
    time, and an interrupt leaves nothing running.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        """Give each site folder a node id, from 2."""
        self._folders = dict(enumerate(folders, start=_SERVER_NODE + 1))
        self._run = Run.create_empty(run_id=1)
        self._pending: dict[str, Message] = {}
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = 1
        TaskIdentity.node_id = _SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: one per site folder."""
        return list(self._folders)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages until their replies are asked for."""
        ids = []
        for message in messages:
            message_id = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Have the sites work, one after another, and yield their replies."""
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            if message is not None:
                yield client_app(message, self._context(message.metadata.dst_node_id))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull all; calls take as long as they take."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _context(self, node_id: int) -> Context:
        return Context(
            run_id=self._run.run_id,
            node_id=node_id,
            node_config={SITE_FOLDER_KEY: str(self._folders[node_id])},
            state=RecordDict(),
            run_config={},
        )


def run_in_process(grid: InProcessGrid, folder: Path, arm: str) -> None:
    """Run one arm of a run folder on an in-process grid."""
    server_app(grid, _server_context(folder, arm))


def run_on_ray(sites: Sequence[Path], folder: Path, arm: str) -> None:
    """Run one arm of a run folder on Flower's simulation engine.

    Raises:
        EngineError: Ray could not be started.
    """
    os.environ.update(
        {
            SITES_VARIABLE: json.dumps([str(site) for site in sites]),
            "RAY_USAGE_STATS_ENABLED": "0",
            "FLWR_TELEMETRY_ENABLED": "0",
        }
    )
    # The public function takes no context, so it could not say which arm to run.
    from flwr.simulation.run_simulation import _run_simulation
    from flwr.supercore.telemetry import EventType

    try:
        _run_simulation(
            num_supernodes=len(sites),
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
            client_app=client_app,
            server_app=server_app,
            backend_name="ray",
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": _gpu_share(len(sites))}
            },
            server_app_context=_server_context(folder, arm),
        )
    except RuntimeError as error:
        raise EngineError(
            f"ray engine failed ({error}); try --engine in-process, which needs no Ray"
        ) from error


def _gpu_share(sites: int) -> float:
    """GPUs per site: Ray hides all GPUs from a worker that asks for none."""
    return min(1.0, torch.cuda.device_count() / sites)


def _server_context(folder: Path, arm: str) -> Context:
    return Context(
        run_id=1,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config={RUN_FOLDER_KEY: str(folder), ARM_KEY: arm},
    )
