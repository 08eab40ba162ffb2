"""Asking sites through Flower's grid, and taking the answers one at a time.

All orders go out at once. Answers are collected in the order of the roster, and the
next is not pulled before the caller has finished with the last, so memory is flat in
the number of sites and the fold order never depends on who was faster. A site that does
not answer by the deadline is late; what it sends afterwards is never pulled. An answer
whose seal does not fit its order is refused before anything else is done with it.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    fresh_nonce,
)
from common.wire import from_record, payload_bytes, seal_in, to_records
from server.verifying import Verifier

log = logging.getLogger("fedct.run")

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
    verifier: Verifier,
) -> Iterator[Reply[A]]:
    """Send each site its order and yield the replies in the orders' own order.

    Args:
        grid: Flower's grid, of any engine.
        node_of: Site to node id.
        orders: Site to order; vectors that several orders share are copied once.
        kind: The answer that is expected.
        deadline_s: Seconds from now after which a site counts as late.
        verifier: Says whose seal an answer must have.
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
    for (site, order), message_id in zip(orders.items(), ids, strict=True):
        reply = _wait(grid, message_id, until)
        yield _read(site, order, reply, kind, sizes[site], verifier)
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


def _read(
    site: str,
    order: Order,
    reply: Message | None,
    kind: type[A],
    down: int,
    verifier: Verifier,
) -> Reply[A]:
    if reply is None:
        return Reply(site, None, "late", "no answer by the deadline", down, 0)
    if reply.has_error():
        reason = reply.error.reason or f"error {reply.error.code}"
        return Reply(site, None, "failed", reason, down, 0)
    up = payload_bytes(reply.content)
    try:
        answer, seal = from_record(reply.content, kind), seal_in(reply.content)
        asked = answer.site if kind is Roster else site
        verifier.check(answer, seal, order, asked)
    except ContributionError as error:
        extra = {"site": site, "code": error.code, "why": str(error)}
        log.warning("refused", extra=extra)
        return Reply(site, None, "refused", str(error), down, up)
    return Reply(site, answer, "accepted", "", down, up)


def roll_call(
    grid: Grid, hello: Hello, deadline_s: float, verifier: Verifier
) -> tuple[dict[str, int], dict[str, Roster]]:
    """Ask every connected node who it is.

    Args:
        grid: Flower's grid, of any engine.
        hello: The question; each node gets it with a nonce of its own.
        deadline_s: Seconds from now after which a node counts as late.
        verifier: Learns the sites' keys, unless it has them from the register.

    Returns:
        Site to node id, and site to roster, both by name of site.

    Raises:
        EngineError: A node could not be opened, or two claim one name.
    """
    nodes = {f"node {node_id}": node_id for node_id in grid.get_node_ids()}
    node_of: dict[str, int] = {}
    rosters: dict[str, Roster] = {}
    hellos = {node: replace(hello, nonce=fresh_nonce()) for node in nodes}
    for reply in ask(grid, nodes, hellos, Roster, deadline_s, verifier):
        if reply.answer is None:
            raise EngineError(f"roll call failed: {reply.reason}")
        site = reply.answer.site
        if site in rosters:
            raise EngineError(f"two nodes answered as site {site!r}, expected one each")
        node_of[site] = nodes[reply.site]
        rosters[site] = reply.answer
    order = sorted(rosters)
    return {s: node_of[s] for s in order}, {s: rosters[s] for s in order}
