"""A hospital's line to the hub: Flower's Fleet API, spoken with the site's own keys.

The site service is the Flower node itself. It opens one TLS 1.3 connection outwards,
shows the site's certificate, signs each request with the node key, and pulls orders.
Flower's own SuperNode would stand between: it starts a new process per message or must
be restarted together with whoever takes its tasks, it downloads code from the server,
and it can't show a client certificate. This module never asks for code: the only calls
made are those below.

It rests on Flower's internals (`FleetHttpClient` and the serialisation of messages),
pinned to one version; `tests/federation/test_line.py` says which.

Not covered here: what an order may ask (`client.service`), and the signature on the
answer (`client.app`). The node key alone does not protect a body; TLS and that
signature do.
"""

import random
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.hub_road import HubAddress, hub_client
from client.node_key import HubClock, NodeSignature
from client.refusals import error_of, unregistered
from common.error_numbers import ORDER_LOST
from common.errors import JoinError, KeyInUseError, TransportError
from common.packing import Packer, unpack
from common.parts import PATH
from common.pieces import MalformedError, send

HEARTBEAT_S = 15.0
"""The hub calls a site lost after two of these (Flower: HEARTBEAT_PATIENCE)."""
_TIMEOUT_S = 60.0
"""For one step on the network; a part of 4 MiB has as long as it goes on."""
_REGISTER_S, _QUESTION_S = 60.0, 2.0
"""How long, and how often, it is asked whether the hub knows this site's key yet."""
_PATIENCE_S = 600.0
"""For one message, over all tries: a line that is cut for minutes is waited for."""

T = TypeVar("T")


class _PartError(Exception):
    """A part of an order is not at the hub; a newer order is."""


class Fleet:
    """An activated node: pull an order, push the answer. One thread; one more beats."""

    def __init__(
        self,
        hub: HubAddress,
        key: ec.EllipticCurvePrivateKey,
        tell: Callable[[str], None],
        stop: threading.Event,
        note: Callable[[int], None] = lambda number: None,
    ) -> None:
        """Prepare the connection; nothing is sent yet.

        Args:
            hub: Address and certificates.
            key: The node key (EC P-384) that the hub has on its register.
            tell: Hears what goes wrong on the line, one sentence each.
            stop: Set from outside to leave every wait.
            note: Hears of the number that leaves for an order that can't be read.
        """
        self._tell = tell
        self._stop = stop
        self._note = note
        self._clock = HubClock()
        self._client = fleet_client(hub, NodeSignature(key, self._clock), _TIMEOUT_S)
        self._parts = hub.url + PATH
        self._key = key
        self._node = Node()
        self._left = threading.Event()

    def __enter__(self) -> "Fleet":
        """Use the connection."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the federation in order, if the hub can be reached, and hang up."""
        self._left.set()
        if self._node.node_id:
            with suppress(httpx.HTTPError, ValueError):
                self._client.DeactivateNode(
                    DeactivateNodeRequest(node_id=self._node.node_id)
                )
        self._client.close()

    def activate(self, left_over: int | None) -> int:
        """Say that this node is here; wait for the hub as long as it takes.

        Args:
            left_over: Node id of a process of this site that died on this machine; its
                place is given up first, or the hub would wait for it for half a minute.

        Returns:
            The node id that the hub keeps for this site's key.

        Raises:
            KeyInUseError: A service with this key has the place already.
            JoinError: The hub refuses this site.
        """
        public = NodeSignature(self._key, self._clock).public_key
        if left_over is not None:
            with suppress(JoinError):  # the hub gave it up already
                self._call(
                    self._client.DeactivateNode,
                    DeactivateNodeRequest(node_id=left_over),
                )
        node_id = self._place(public)
        self._node = Node(node_id=node_id)
        TaskIdentity.node_id = node_id
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return node_id

    def _place(self, public: bytes) -> int:
        """The node's place at the hub; a hub that has just begun knows no keys yet."""
        until = time.monotonic() + _REGISTER_S
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=HEARTBEAT_S)
        while True:
            try:
                return int(self._call(self._client.ActivateNode, request).node_id)
            except KeyInUseError:
                if self._is_registered(public):
                    raise
            if self._stop.is_set() or time.monotonic() > until:
                raise unregistered()
            self._tell("the hub has not this site's key on its register yet; waiting")
            self._stop.wait(_QUESTION_S)

    def _is_registered(self, public: bytes) -> bool:
        """Whether the hub knows this key; asked as `client.echo` does."""
        request = ActivateNodeRequest(public_key=public, heartbeat_interval=0)
        try:
            self._client.ActivateNode(request)
        except httpx.HTTPStatusError as error:
            said = FlowerError.from_json(error.response.text)
            failed = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED
            return said is None or said.code != failed
        except httpx.TransportError:
            pass
        return True

    def pull(self) -> Message | None:
        """The next order, whole, or none; returns at once."""
        response = self._call(
            self._client.PullMessages, PullMessagesRequest(node=self._node)
        )
        if not response.messages_list:
            return None
        head = message_from_proto(response.messages_list[0])
        run_id = head.metadata.run_id
        tree: ObjectTree = response.message_object_trees[0]
        try:
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(
                    self._retried(self._client.PullObject), self._node, run_id
                ),
                make_confirm_message_received_fn_protobuf(
                    self._retried(self._client.ConfirmMessageReceived),
                    self._node,
                    run_id,
                ),
                return_type=Message,
                initial_backoff=0.2,
                backoff_cap=0.5,
                max_tries_per_object=None,
                max_time=_PATIENCE_S,
            )
        except ObjectPullError as error:
            self._tell(f"an order was lost on the way ({error})")
            return None
        message.metadata.__dict__["_message_id"] = tree.object_id
        TaskIdentity.run_id = run_id
        TaskIdentity.task_id = run_id
        try:
            unpack(message, self._get_part, sys.maxsize)
        except (MalformedError, _PartError) as error:
            self._tell(f"an order can't be read ({error}); asking for it again")
            self._note(ORDER_LOST)
            self.push(Message(Error(ORDER_LOST, ""), reply_to=message), 0.0)
            return None
        return message

    def push(self, answer: Message, seconds: float) -> None:
        """Hand an answer over; said twice, it counts once.

        Args:
            answer: A reply to a message that `pull` gave.
            seconds: How long the work took.

        Raises:
            TransportError: The hub does not take it. A service that begins anew is
                asked anew, so it is better to end than to go on without this answer.
        """
        # By the hub's clock: one made "after" its order's end would be dropped.
        late_s = self._clock.offset_s
        answer.metadata.created_at += late_s
        answer.metadata.ttl -= late_s
        answer = Packer(self._put_part).pack(answer)
        answer.metadata.__dict__["_message_id"] = answer.object_id
        with no_object_id_recompute():
            tree = get_object_tree(answer)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(answer))],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            for _ in range(3):  # a push session that expired is opened anew
                response = self._call(self._client.PushMessages, request)
                try:
                    push = make_push_object_fn_protobuf(
                        self._retried(self._client.PushObject),
                        self._node,
                        answer.metadata.run_id,
                        response.session_id,
                    )
                    send([answer], push, set(response.objects_to_push))
                    return
                except ObjectPushError as error:
                    self._tell(f"an answer has to be sent again ({error})")
        raise TransportError(
            "site's answer was not taken by the hub in three tries, expected room for "
            "it there; ask the coordinator for `fedct server status`"
        )

    def _get_part(self, digest: str) -> bytes:
        """Fetch a part of a large array that the hub laid out."""
        return self._call(self._part, "GET", digest, None).content

    def _put_part(self, digest: str, content: memoryview) -> None:
        """Bring a part of a large array to the hub."""
        self._call(self._part, "PUT", digest, bytes(content))

    def _part(self, method: str, digest: str, content: bytes | None) -> httpx.Response:
        web = self._client._client
        response = web.request(method, self._parts + digest, content=content)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise _PartError("the hub has a part of it no more")
        if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
            raise httpx.WriteError("it can't store a part; is its disk full?")
        return response.raise_for_status()

    def _beat(self) -> None:
        while not self._left.wait(HEARTBEAT_S * 0.7):
            request = SendNodeHeartbeatRequest(
                node=self._node, heartbeat_interval=HEARTBEAT_S
            )
            try:
                self._client.SendNodeHeartbeat(request)
            except Exception as error:  # a thread that dies leaves a site nobody asks
                self._tell(f"no heartbeat reached the hub ({type(error).__name__})")

    def _retried(self, call: Callable[..., T]) -> Callable[..., T]:
        return lambda request: self._call(call, request)

    def _call(self, call: Callable[..., T], *request: object) -> T:
        """Call until it works, is refused, or nobody wants it any more."""
        until = time.monotonic() + _PATIENCE_S
        wait_s = 0.2
        while True:
            try:
                return call(*request)
            except httpx.HTTPStatusError as error:
                if self._clock.heard(error.response.headers):
                    continue  # our clock was off; the request is signed anew
                why = f"the hub answered HTTP {error.response.status_code}"
                if error.response.status_code not in (408, 429, 502, 503, 504):
                    raise error_of(error.response) from error
            except (httpx.TransportError, ssl.SSLError) as error:
                why = f"the hub can't be reached ({_line(error)})"
            if self._stop.is_set() or time.monotonic() > until:
                raise TransportError(
                    f"site gave up on the hub: {why}; see `fedct client check`"
                )
            self._tell(f"{why}; trying again in {wait_s:.1f} s")
            self._stop.wait(wait_s * random.uniform(0.8, 1.2))
            wait_s = min(wait_s * 2, 30.0)


def fleet_client(
    hub: HubAddress, signature: NodeSignature, timeout_s: float
) -> FleetHttpClient:
    """Flower's client, on our road to the hub."""
    client = FleetHttpClient(hub.url, interceptors=[signature])
    client.close()
    client._client = hub_client(hub, timeout_s)
    return client


def _line(error: Exception) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
