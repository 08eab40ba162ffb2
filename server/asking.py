"""Asking sites through Flower's grid, and taking the answers one at a time.

All orders go out at once. Answers are collected in the order of the roster, and the
next is not pulled before the caller has finished with the last, so memory is flat in
the number of sites and the fold order never depends on who was faster. A site that does
not answer by the deadline is late; what it sends afterwards is never pulled.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import ContributionError, EngineError
from common.exchange import (
    Answer,
    Hello,
    JudgeOrder,
    Order,
    Roster,
    TrainOrder,
)
from common.wire import from_record, payload_bytes, to_records

A = TypeVar("A", bound=Answer)

_POLL_S = 0.05
_TYPE_OF = {
    Hello: MessageType.QUERY,
    TrainOrder: MessageType.TRAIN,
    JudgeOrder: MessageType.EVALUATE,
}


@dataclass(frozen=True, eq=False)
class Reply(Generic[A]):
    """What came of one order."""

    site: str
    """Name of the site, or of the node before the roll call."""
    answer: A | None
    """The answer; unset when there is none, `reason` then says why."""
    outcome: Literal["accepted", "refused", "failed", "late"]
    """Accepted here means well-formed; the mean may still refuse it."""
    reason: str
    """A sentence for the record; empty when accepted."""
    bytes_down: int
    """Payload of the order."""
    bytes_up: int
    """Payload of the answer."""


def ask(
    grid: Grid,
    node_of: Mapping[str, int],
    orders: Mapping[str, Order],
    kind: type[A],
    deadline_s: float,
) -> Iterator[Reply[A]]:
    """Send each site its order and yield the replies in the orders' own order.

    Args:
        grid: Flower's grid, of any engine.
        node_of: Site to node id.
        orders: Site to order; vectors that several orders share are copied once.
        kind: The answer that is expected.
        deadline_s: Seconds from now after which a site counts as late.
    """
    records = to_records(orders)
    messages = [
        Message(
            records[site],
            dst_node_id=node_of[site],
            message_type=_TYPE_OF[type(order)],
            ttl=deadline_s,
        )
        for site, order in orders.items()
    ]
    sizes = {site: payload_bytes(record) for site, record in records.items()}
    del records
    until = time.monotonic() + deadline_s
    ids = list(grid.push_messages(messages))
    del messages
    for site, message_id in zip(orders, ids, strict=True):
        reply = _wait(grid, message_id, until)
        yield _read(site, reply, kind, sizes[site])
        del reply


def _wait(grid: Grid, message_id: str, until: float) -> Message | None:
    if not message_id:  # Flower: the node is gone
        return None
    while True:
        replies = list(grid.pull_messages([message_id]))
        if replies:
            return replies[0]
        if time.monotonic() > until:
            return None
        time.sleep(_POLL_S)


def _read(site: str, reply: Message | None, kind: type[A], down: int) -> Reply[A]:
    if reply is None:
        return Reply(site, None, "late", "no answer by the deadline", down, 0)
    if reply.has_error():
        reason = reply.error.reason or f"error {reply.error.code}"
        return Reply(site, None, "failed", reason, down, 0)
    up = payload_bytes(reply.content)
    try:
        answer = from_record(reply.content, kind)
        if kind is not Roster and answer.site != site:
            raise ContributionError(
                f"node of site {site!r} answered as another site, expected its own name"
            )
    except ContributionError as error:
        return Reply(site, None, "refused", str(error), down, up)
    return Reply(site, answer, "accepted", "", down, up)


def roll_call(
    grid: Grid, hello: Hello, deadline_s: float
) -> tuple[dict[str, int], dict[str, Roster]]:
    """Ask every connected node who it is.

    Returns:
        Site to node id, and site to roster, both by name of site.

    Raises:
        EngineError: A node could not be opened, or two claim one name.
    """
    nodes = {f"node {node_id}": node_id for node_id in grid.get_node_ids()}
    node_of: dict[str, int] = {}
    rosters: dict[str, Roster] = {}
    replies = ask(grid, nodes, dict.fromkeys(nodes, hello), Roster, deadline_s)
    for reply in replies:
        if reply.answer is None:
            raise EngineError(f"roll call failed: {reply.reason}")
        site = reply.answer.site
        if site in rosters:
            raise EngineError(f"two nodes answered as site {site!r}, expected one each")
        node_of[site] = nodes[reply.site]
        rosters[site] = reply.answer
    order = sorted(rosters)
    return {s: node_of[s] for s in order}, {s: rosters[s] for s in order}
