"""A Flower message piece by piece: what the SuperLink calls objects.

Flower's own code waits for every piece of a message once its head has come, and whoever
is slow, or died half-way, keeps all others waiting. Here what has come is kept, and the
rest is asked for at the next look. Messages are small; large arrays are no part of them
(`common.parts`).

Whoever sends is not believed: what makes no message, or grows past what a message may
have, is the sender's fault and no crash.

It rests on Flower's internals (objects and their trees), pinned to one version;
`tests/federation/test_line.py` says which.
"""

from collections.abc import Callable, Collection, Sequence

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError

MOST_BYTES = 16_000_000
"""Of a message without its large arrays: sums, keys, shares for hundreds of sites."""

Pull = Callable[[str], bytes | None]
"""Object id to the object's content, or None if it is not there yet; may raise."""
Push = Callable[[str, bytes], None]
"""Hands an object over; raises if it is not taken."""


class MalformedError(Exception):
    """What came makes no message; whoever sent it is at fault."""


MALFORMED = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(DecodeError, RecursionError, OverflowError),
)
"""What Flower's code, JSON and protobuf raise at bytes that nobody honest sent."""


class Pieces:
    """A message of which not everything has come yet."""

    def __init__(self, tree: ObjectTree) -> None:
        """Begin with nothing but the tree of object ids."""
        self._tree = tree
        self._contents: dict[str, bytes] = {}
        self._room_bytes = MOST_BYTES

    def collect(self, pull: Pull) -> Message | None:
        """Ask for what is missing; the message if that was the last of it.

        Raises:
            MalformedError: It makes no message.
        """
        try:
            if not self._take(self._tree, pull):
                return None
            whole = inflate_object_from_contents(self._tree.object_id, self._contents)
        except MALFORMED as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error
        if not isinstance(whole, Message):
            raise MalformedError(f"a {type(whole).__name__} came in place of a message")
        return whole

    def _take(self, node: ObjectTree, pull: Pull) -> bool:
        """Whether a node and everything below it is here now; parents come first."""
        key = node.object_id
        if key not in self._contents:
            content = pull(key)
            if content is None:
                return False
            self._room_bytes -= len(content)
            if self._room_bytes < 0:
                raise MalformedError("it is larger than any message may be")
            self._contents[key] = content
        return all(self._take(child, pull) for child in node.children)


def send(messages: Sequence[Message], push: Push, wanted: Collection[str]) -> None:
    """Hand over the pieces of messages, each once.

    Args:
        messages: Their object ids are known and stay (`no_object_id_recompute`).
        push: Takes an object.
        wanted: Ids of the objects that the receiver lacks.
    """
    objects: dict[str, InflatableObject] = {}
    for message in messages:
        objects.update(get_all_nested_objects(message))
    for one, content in objects.items():
        if one in wanted:
            push(one, content.deflate())
