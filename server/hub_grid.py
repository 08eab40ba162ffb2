"""The grid on which a run of a real federation goes: its own sites, and patience.

Flower's `HttpGrid` waits for every piece of a reply once its head has come, and whoever
died half-way keeps all others waiting. Here a reply that is not whole yet is set aside,
and looked after at the next pull. Models and updates do not pass the SuperLink, but
nginx (`server.part_files`). Every call is a place at which a run can be stopped.

It rests on Flower's internals, see `server.superlink`.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from common.errors import ERROR_BASE, EngineError, StoppedError
from common.packing import Packer, unpack
from common.pieces import MalformedError, Pieces, send
from common.wire import payload_bytes
from server.part_files import PartFiles

_MARGIN_BYTES = 1 << 24
"""What an answer may be larger than the largest order: an update is no longer than the
model that it comes from, and sums of a judgement are short."""


@dataclass
class _Coming:
    """A reply whose head has come, and its pieces so far."""

    head: Message
    tree: ObjectTree
    pieces: Pieces


class _GivenUpError(Exception):
    """The SuperLink has no such object any more."""


class HubGrid(Grid):
    """Flower's grid as one run sees it."""

    def __init__(
        self,
        channel: HttpGrid,
        members: Callable[[], Mapping[int, str]],
        stopped: Callable[[], bool],
        parts: PartFiles,
    ) -> None:
        """Wrap a channel.

        Args:
            channel: A Flower run that is open.
            members: Node id to name of the run's sites, as the register has them now.
            stopped: Whether to leave the run.
            parts: Where large arrays lie.
        """
        self._channel = channel
        self._members = members
        self._stopped = stopped
        self._parts = parts
        self._coming: dict[str, _Coming] = {}
        self._most_bytes = _MARGIN_BYTES

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
        whole = list(messages)
        if not whole:  # Flower calls that malformed
            return []
        largest = max(payload_bytes(message.content) for message in whole)
        self._most_bytes = max(self._most_bytes, largest + _MARGIN_BYTES)
        whole = self._packed(whole)
        with no_object_id_recompute():
            for message in whole:
                message.metadata.__dict__["_message_id"] = message.object_id
            heads = [message_to_proto(remove_content_from_message(m)) for m in whole]
            answer = self._channel._runtime_client.PushMessages(
                PushAppMessagesRequest(
                    messages_list=heads,
                    message_object_trees=[get_object_tree(m) for m in whole],
                )
            )

            def push(object_id: str, content: bytes) -> None:
                self._push_object(object_id, content, answer.session_id)

            send(whole, push, set(answer.objects_to_push))
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Take the replies that are whole, one at a time; waits for none."""
        self._leave_if_stopped()
        wanted = list(message_ids)
        missing = [one for one in wanted if one not in self._coming]
        if missing:
            self._look(missing)
        for one in wanted:
            if one in self._coming and (reply := self._collect(one)) is not None:
                yield reply
                del reply

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

    def _packed(self, messages: list[Message]) -> list[Message]:
        """The messages as they are sent, their large arrays laid out."""
        laid: set[str] = set()

        def put(digest: str, content: memoryview) -> None:
            laid.add(digest)
            self._parts.lay_out(digest, content)

        packer = Packer(put)
        packed = [packer.pack(message) for message in messages]
        self._parts.keep_newest(laid)
        return packed

    def _look(self, message_ids: list[str]) -> None:
        """Ask for heads; the SuperLink gives each only once."""
        found = self._channel._runtime_client.PullMessages(
            PullAppMessagesRequest(message_ids=message_ids)
        )
        for proto, tree in zip(
            found.messages_list, found.message_object_trees, strict=True
        ):
            head = message_from_proto(proto)
            coming = _Coming(head, tree, Pieces(tree))
            self._coming[head.metadata.reply_to_message_id] = coming

    def _collect(self, asked: str) -> Message | None:
        """The reply, if its last piece is there."""
        coming = self._coming[asked]
        client, node = self._channel._runtime_client, self._channel.node
        run_id, whole = coming.head.metadata.run_id, coming.tree.object_id

        def pull(object_id: str) -> bytes | None:
            got = client.PullObject(
                PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
            )
            if not got.object_found:
                raise _GivenUpError
            return got.object_content if got.object_available else None

        try:
            reply = coming.pieces.collect(pull)
            if reply is not None:
                self._unpack(reply, coming.head.metadata.src_node_id)
        except _GivenUpError:
            del self._coming[asked]
            why = "the upload of the reply was given up"
            return _in_place(coming.head, ErrorCode.MESSAGE_UNAVAILABLE, why)
        except MalformedError as error:
            del self._coming[asked]
            why = f"the reply can't be read ({error})"
            self._confirm(whole)
            return _in_place(coming.head, ErrorCode.UNKNOWN, why)
        if reply is None:
            return None
        del self._coming[asked]
        self._confirm(whole)
        if reply.has_error() and _is_forged(coming.head, reply.error):
            why = f"site answered with Flower's own error {reply.error.code}"
            return _in_place(coming.head, ErrorCode.UNKNOWN, why)
        reply.metadata.__dict__["_message_id"] = whole
        return reply

    def _unpack(self, reply: Message, node: int) -> None:
        """Read what the site brought for its reply; it is gone afterwards."""
        site, read = self._members().get(node), []

        def get(digest: str) -> bytes:
            if site is None:
                raise MalformedError("its site is not let in any more")
            read.append(digest)
            try:
                return self._parts.take(site, digest)
            except OSError as error:
                why = error.strerror
                raise MalformedError(f"a part of it was not brought: {why}") from error

        try:
            unpack(reply, get, self._most_bytes)
        finally:
            if site is not None:
                self._parts.drop(site, read)

    def _confirm(self, object_id: str) -> None:
        """Have the SuperLink forget a reply."""
        self._channel._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._channel.node,
                run_id=self._channel.run.run_id,
                message_object_id=object_id,
            )
        )

    def _push_object(self, object_id: str, content: bytes, session_id: str) -> None:
        request = PushObjectRequest(
            node=self._channel.node,
            run_id=self._channel.run.run_id,
            object_id=object_id,
            object_content=content,
            session_id=session_id,
        )
        stored = self._channel._runtime_client.PushObject(request).stored
        if not stored:
            raise EngineError(
                "hub's SuperLink did not take an order, expected room and a session; "
                "see superlink.log in the hub's folder"
            )

    def _leave_if_stopped(self) -> None:
        if self._stopped():
            raise StoppedError("run was stopped; it goes on with `fedct server resume`")


def _is_forged(head: Message, error: Error) -> bool:
    """Whether a site says what is the SuperLink's to say, which checks the sender."""
    own = head.metadata.src_node_id == SUPERLINK_NODE_ID
    return error.code < ERROR_BASE and not own


def _in_place(head: Message, code: int, why: str) -> Message:
    """In place of a reply that will never be whole."""
    head.__dict__["_error"] = Error(code, why)
    head.__dict__["_content"] = None
    return head
