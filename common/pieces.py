"""A Flower message in pieces of 5 MB, with the whole of it in memory only once.

Flower's own code takes a message apart and puts it together with up to three copies of
a model beside it: every piece, a buffer, the buffer as bytes. Here a piece goes to its
place and is dropped before the next is asked for, so that what a message costs is its
own size and a few pieces. That a message is put together step by step also means that
nobody waits for a slow sender.

Whoever sends is not believed: what makes no message, or grows past what its
receiver allows (one piece may stand for many), is the sender's fault and no crash.

It rests on Flower's internals (objects and their trees), pinned to one version;
`tests/federation/test_line.py` says which.
"""

import io
import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_body,
    get_object_children_ids_from_object_content,
    get_object_type_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from google.protobuf.message import DecodeError

_AT_ONCE = 2
"""Pieces under way when sending: one is encrypted while the other is stored."""

Pull = Callable[[str], bytes | None]
"""Object id to the object's content, or None if it is not there yet; may raise."""
Push = Callable[[str, bytes], None]
"""Hands an object over; raises if it is not taken."""


class MalformedError(Exception):
    """The pieces don't make a message; whoever sent them is at fault."""


MALFORMED = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(DecodeError, RecursionError, OverflowError),
)
"""What Flower's code, JSON and protobuf raise at bytes that nobody honest sent."""


@dataclass
class _Filling:
    """An array whose pieces are coming in order."""

    head: bytes
    pieces: Sequence[str]
    done: int = 0
    buffer: io.BytesIO = field(default_factory=io.BytesIO)


class Pieces:
    """A message of which not everything has come yet."""

    def __init__(self, tree: ObjectTree, most_bytes: int) -> None:
        """Begin with nothing but the tree of object ids, and room for `most_bytes`."""
        self._tree = tree
        self._room_bytes = most_bytes
        self._contents: dict[str, bytes] = {}
        self._filling: dict[str, _Filling] = {}
        self._arrays: dict[str, InflatableObject] = {}

    def collect(self, pull: Pull) -> Message | None:
        """Ask for what is missing; the message if that was the last of it.

        A message is given once; its pieces are not kept.

        Raises:
            MalformedError: They don't make a message.
        """
        try:
            if not self._take(self._tree, pull):
                return None
            whole = inflate_object_from_contents(
                self._tree.object_id, self._contents, objects=self._arrays
            )
        except MALFORMED as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error
        self._arrays = {}
        if not isinstance(whole, Message):
            raise MalformedError(f"a {type(whole).__name__} came in place of a message")
        return whole

    def _take(self, node: ObjectTree, pull: Pull) -> bool:
        """Whether a node and everything below it is here now; parents come first."""
        key = node.object_id
        if key in self._arrays:
            return True
        if key not in self._contents and key not in self._filling:
            content = pull(key)
            if content is None:
                return False
            self._make_room(content)
            if get_object_type_from_object_content(content) == "Array":
                self._filling[key] = _Filling(content, _order(content))
            else:
                self._contents[key] = content
        if key in self._filling:
            return self._fill(key, pull)
        return all(self._take(child, pull) for child in node.children)

    def _fill(self, key: str, pull: Pull) -> bool:
        """Add an array's next pieces; whether it has them all."""
        filling = self._filling[key]
        for wanted, equal in groupby(filling.pieces[filling.done :]):
            content = pull(wanted)
            if content is None:
                return False
            piece = get_object_body(content, ArrayChunk)
            del content
            for _ in equal:  # an array of zeros is one piece many times over
                self._make_room(piece)
                filling.buffer.write(piece)
                filling.done += 1
            del piece  # before the next one comes
        facts = json.loads(get_object_body(filling.head, Array))
        array = Array(facts["dtype"], tuple(facts["shape"]), facts["stype"], b"")
        array.data = filling.buffer.getvalue()  # the buffer's own bytes, not a copy
        del self._filling[key]
        self._arrays[key] = array
        return True

    def _make_room(self, content: bytes | memoryview) -> None:
        self._room_bytes -= len(content)
        if self._room_bytes < 0:
            raise MalformedError("it is larger than any answer may be")


def _order(head: bytes) -> list[str]:
    """The ids of an array's pieces, in order; equal pieces have one id."""
    known = get_object_children_ids_from_object_content(head)
    return [
        known[n] for n in json.loads(get_object_body(head, Array))["arraychunk_ids"]
    ]


def send(messages: Sequence[Message], push: Push, wanted: Collection[str]) -> None:
    """Hand over the pieces of messages, each made when its turn comes.

    Args:
        messages: Their object ids are known and stay (`no_object_id_recompute`).
        push: Called from several threads.
        wanted: Ids of the objects that the receiver lacks.
    """
    objects: dict[str, InflatableObject] = {}
    for message in messages:
        objects.update(get_all_nested_objects(message))
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        ids = [one for one in objects if one in wanted]
        for _ in pool.map(lambda one: push(one, objects[one].deflate()), ids):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
