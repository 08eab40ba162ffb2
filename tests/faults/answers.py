"""What can be done to a signed answer before it leaves (points at "message")."""

import copy
from typing import Any

from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode


def twice(messages: list[Message], order: Any, past: list[Message]) -> list[Message]:
    """Send it, then the very same again, then the same content as a new message."""
    (answer,) = messages
    metadata = copy.copy(answer.metadata)
    metadata.__dict__ = dict(answer.metadata.__dict__)
    metadata.__dict__["_created_at"] += 0.001  # so its id is another
    again = Message(content=answer.content, metadata=metadata)
    return [answer, answer, again]


def replay(messages: list[Message], order: Any, past: list[Message]) -> list[Message]:
    """Send what was answered a round before, with its seal, as the answer to this."""
    (answer,) = messages
    answer.content = RecordDict(dict(past[-1].content))
    return [answer]


def replay_as_new(
    messages: list[Message], order: Any, past: list[Message]
) -> list[Message]:
    """The same, with the seal's words changed to this order's: only the signature is
    old."""
    (answer,) = messages
    content = RecordDict(dict(past[-1].content))
    seal, now = dict(content["seal"]), dict(answer.content["seal"])
    content["seal"] = ConfigRecord({**now, "signature": seal["signature"]})
    answer.content = content
    return [answer]


def flip(messages: list[Message], order: Any, past: list[Message]) -> list[Message]:
    """Turn one bit of the update."""
    (answer,) = messages
    vectors = answer.content["vectors"]
    array = vectors["delta"]
    data = bytearray(array.data)
    data[len(data) // 2] ^= 1
    vectors["delta"] = Array(array.dtype, array.shape, array.stype, bytes(data))
    return [answer]


def pretend_lost(
    messages: list[Message], order: Any, past: list[Message]
) -> list[Message]:
    """Say what only the SuperLink may: that the answer got lost."""
    (answer,) = messages
    answer.__dict__["_error"] = Error(ErrorCode.MESSAGE_UNAVAILABLE, "")
    answer.__dict__["_content"] = None
    return [answer]
