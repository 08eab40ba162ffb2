"""The grid on which a run of a real federation goes: its own sites, and patience.

Flower's `HttpGrid` waits for every part of a reply once its head has come, and whoever
uploads slowly, or died half-way, keeps all others waiting. Here a reply that is not
whole yet is set aside, and looked after at the next pull. Every call is also a place at
which a run can be stopped.

It rests on Flower's internals, see `server.superlink`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import StoppedError


@dataclass
class _Coming:
    """A reply whose head has come, and the parts of it so far."""

    head: Message
    tree: ObjectTree
    parts: dict[str, bytes] = field(default_factory=dict)


class HubGrid(Grid):
    """Flower's grid as one run sees it."""

    def __init__(
        self,
        channel: HttpGrid,
        members: Callable[[], set[int]],
        stopped: Callable[[], bool],
    ) -> None:
        """Wrap a channel.

        Args:
            channel: A Flower run that is open.
            members: Node ids of the run's sites, as the register has them now.
            stopped: Whether to leave the run.
        """
        self._channel = channel
        self._members = members
        self._stopped = stopped
        self._coming: dict[str, _Coming] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._channel.set_run(run)

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._channel.run

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
        """Connected nodes of the run's sites."""
        return list(self.arrivals())

    def arrivals(self) -> Mapping[int, str]:
        """Connected node of the run's sites to the time at which it came."""
        self._leave_if_stopped()
        members = self._members()
        nodes: Iterable[NodeInfo] = self._channel.get_nodes()
        return {
            int(node.node_id): node.last_activated_at
            for node in nodes
            if node.node_id in members
        }

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send orders out; an empty id for a node that the SuperLink doesn't know."""
        self._leave_if_stopped()
        return self._channel.push_messages(list(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the replies that are whole; returns at once."""
        self._leave_if_stopped()
        wanted = list(message_ids)
        missing = [one for one in wanted if one not in self._coming]
        if missing:
            self._look(missing)
        return [
            reply
            for one in wanted
            if one in self._coming and (reply := self._collect(one)) is not None
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until all are there or the time is over."""
        waiting = set(self.push_messages(messages))
        until = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and (until is None or time.monotonic() < until):
            replies = list(self.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in replies}
            found += replies
            time.sleep(0.1)
        return found

    def _look(self, message_ids: list[str]) -> None:
        """Ask for heads; the SuperLink gives each only once."""
        found = self._channel._runtime_client.PullMessages(
            PullAppMessagesRequest(message_ids=message_ids)
        )
        for proto, tree in zip(
            found.messages_list, found.message_object_trees, strict=True
        ):
            head = message_from_proto(proto)
            self._coming[head.metadata.reply_to_message_id] = _Coming(head, tree)

    def _collect(self, asked: str) -> Message | None:
        """The reply, if its last part is there; its parts are held only until then."""
        coming = self._coming[asked]
        client, node = self._channel._runtime_client, self._channel.node
        run_id = coming.head.metadata.run_id
        for part in iterate_object_tree(coming.tree):
            if part.object_id in coming.parts:
                continue
            got = client.PullObject(
                PullObjectRequest(node=node, run_id=run_id, object_id=part.object_id)
            )
            if not got.object_found:  # its upload was given up
                del self._coming[asked]
                return _lost(coming.head)
            if not got.object_available:
                return None
            coming.parts[part.object_id] = got.object_content
        del self._coming[asked]
        whole = coming.tree.object_id
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=node, run_id=run_id, message_object_id=whole
            )
        )
        reply = inflate_object_from_contents(whole, coming.parts)
        assert isinstance(reply, Message)
        reply.metadata.__dict__["_message_id"] = whole
        return reply

    def _leave_if_stopped(self) -> None:
        if self._stopped():
            raise StoppedError("run was stopped; it goes on with `fedct server resume`")


def _lost(head: Message) -> Message:
    """In place of a reply that will never be whole."""
    head.__dict__["_error"] = Error(
        ErrorCode.MESSAGE_UNAVAILABLE, "the upload of the reply was given up"
    )
    head.__dict__["_content"] = None
    return head
