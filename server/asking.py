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

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from common.error_numbers import ORDER_LOST
from common.errors import (
    ERROR_BASE,
    ContributionError,
    EngineError,
    VersionError,
)
from common.exchange import (
    Answer,
    Hello,
    JudgeOrder,
    Order,
    Roster,
    TrainOrder,
    fresh_nonce,
)
from common.wire import from_record, payload_bytes, seal_in, to_record, to_records
from server.error_sentences import numbered, sentence_of
from server.presence import Presence
from server.standing import stand
from server.verifying import Verifier

log = logging.getLogger("fedct.run")

A = TypeVar("A", bound=Answer)

_QUICKEST_S, _SLOWEST_S = 0.1, 1.0
_PATIENCE = 0.03
"""The pause between two looks is this share of the time that was waited, within the
limits above: the SuperLink has one core for all, and each look takes some of it."""
_KEPT_S = 600.0
"""How long after the deadline the SuperLink keeps what came before it: answers are
taken in order, and who stands behind a late site must not be late too."""
_LONGEST_REASON = 500
"""Characters of a sentence for the record; more than any of ours has."""
_LOST = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ORDER_LOST)
"""The first two are said by a grid alone; what a site says under these numbers gets
another there. The last is the site's, and has its order sent again."""
_AGAIN_S, _LONGEST_AGAIN_S = 1.0, 60.0
"""The pause before an order whose answer was lost goes out to the same process again:
it is a whole model each time. Doubled from loss to loss."""
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


@dataclass(frozen=True)
class Line:
    """What asking needs: the way to the sites, and what to believe of their answers."""

    grid: Grid
    """Flower's grid, of any engine."""
    verifier: Verifier
    """Says whose seal an answer must have."""
    presence: Presence
    """Says who is online."""


def ask(
    line: Line,
    node_of: Mapping[str, int],
    orders: Mapping[str, Order],
    kind: type[A],
    deadline_s: float,
) -> Iterator[Reply[A]]:
    """Send each site its order and yield the replies in the orders' own order.

    A site whose process was lost is asked again when it comes back in time.

    Args:
        line: The way to the sites.
        node_of: Site to node id; a site without a node is not connected.
        orders: Site to order; vectors that several orders share are copied once.
        kind: The answer that is expected.
        deadline_s: Seconds from now after which a site counts as late; sites that are
            reached by files have longer, and as long as one of them is waited for, the
            others' time does not run.
    """
    standing = {
        site: stand(line.grid, node_of[site], order, deadline_s)
        for site, order in orders.items()
        if site in node_of
    }
    reached = {site: one.order for site, one in standing.items()}
    longest_s = max((s.left_s for s in standing.values() if s.is_kept), default=0.0)
    records = to_records(reached)
    messages = [
        _message(records[site], node_of[site], order, deadline_s + max(longest_s, 0.0))
        for site, order in reached.items()
    ]
    sizes = {site: payload_bytes(record) for site, record in records.items()}
    del records
    began = waited = time.monotonic()
    came = {site: line.presence.arrival(node_of[site]) for site in reached}
    sent = dict(zip(reached, line.grid.push_messages(messages), strict=True))
    del messages
    for site in orders:
        if site not in node_of:
            yield Reply(site, None, "failed", "site is not connected", 0, 0)
            continue
        ids = [sent[site]] if sent[site] else []  # Flower: empty if it is unknown
        one = standing[site]
        until = began + one.left_s if one.is_kept else waited + deadline_s
        reply = _wait(line, node_of[site], one.order, ids, came[site], until)
        if one.is_kept:
            waited = time.monotonic()
        yield read_reply(site, one.order, reply, kind, sizes[site], line.verifier)
        del reply


def question(order: Order, node: int, ttl_s: float) -> Message:
    """The order as a message to one node."""
    return _message(to_record(order), node, order, ttl_s)


def _message(record: RecordDict, node: int, order: Order, ttl_s: float) -> Message:
    kind = _TYPE_OF.get(type(order), MessageType.QUERY)
    return Message(record, dst_node_id=node, message_type=kind, ttl=ttl_s + _KEPT_S)


def _wait(
    line: Line,
    node: int,
    order: Order,
    ids: list[str],
    came: str | None,
    until: float,
) -> Message | Literal["late", "lost"]:
    """The reply to any of the messages that carried this order to this node."""
    began = time.monotonic()
    pause_s, not_before = _AGAIN_S, began
    while True:
        for reply in line.grid.pull_messages(ids) if ids else ():
            if not _is_lost(reply):
                return reply
            lost = reply.metadata.reply_to_message_id
            ids = [message_id for message_id in ids if message_id != lost]
            not_before = time.monotonic() + pause_s
            pause_s = min(2 * pause_s, _LONGEST_AGAIN_S)
        left_s = until - time.monotonic()
        if left_s <= 0:
            return "late"
        now = line.presence.arrival(node)
        if now is None and line.presence.is_given_up(node):
            return "lost"
        due = not ids and time.monotonic() >= not_before
        if now is not None and (now != came or due):
            message = question(order, node, left_s)
            ids = [*ids, *filter(None, line.grid.push_messages([message]))]
            came = now
        waited_s = time.monotonic() - began
        time.sleep(min(max(_PATIENCE * waited_s, _QUICKEST_S), _SLOWEST_S))


def _is_lost(reply: Message) -> bool:
    """Whether the grid says that no answer will come."""
    return reply.has_error() and reply.error.code in _LOST


def read_reply(
    site: str,
    order: Order,
    reply: Message | Literal["late", "lost"],
    kind: type[A],
    down: int,
    verifier: Verifier,
) -> Reply[A]:
    """What came of an order; an answer that does not count leaves no trace.

    Args:
        site: Who was asked; at the roll call, any name for the node.
        order: The order.
        reply: What came, or why nothing did.
        kind: The answer that is expected.
        down: Payload of the order, bytes.
        verifier: Says whose seal the answer must have.
    """
    if reply == "late":
        return Reply(site, None, "late", "no answer by the deadline", down, 0)
    if reply == "lost":
        return Reply(site, None, "failed", "site was lost and stayed away", down, 0)
    if reply.has_error():
        return Reply(site, None, "failed", _why(reply.error), down, 0)
    up = payload_bytes(reply.content)
    try:
        answer, seal = from_record(reply.content, kind), seal_in(reply.content)
        asked = answer.site if kind is Roster else site
        verifier.check(answer, seal, order, asked)
    except (ContributionError, VersionError) as error:
        code = getattr(error, "code", "contract")
        why = _plain(numbered(error))
        log.warning("refused", extra={"site": site, "code": code, "why": why})
        return Reply(site, None, "refused", why, down, up)
    return Reply(site, answer, "accepted", "", down, up)


def _why(error: Error) -> str:
    """A sentence of the hub's own; from a site comes a number, and no word counts."""
    if error.code >= ERROR_BASE:
        return sentence_of(error.code)
    return _plain(error.reason or f"error {error.code}")


def _plain(words: str) -> str:
    """A site's words as one short line; nobody knows who wrote them, or what for."""
    short = words[:_LONGEST_REASON]
    return "".join(one if one.isprintable() else " " for one in short)


def roll_call(
    line: Line, hello: Hello, deadline_s: float
) -> tuple[dict[str, int], dict[str, Roster]]:
    """Ask every node of a rehearsal who it is; all must answer.

    Args:
        line: The way to the sites; its verifier learns their keys.
        hello: The question; each node gets it with a nonce of its own.
        deadline_s: Seconds from now after which a node counts as late.

    Returns:
        Site to node id, and site to roster, both by name of site.

    Raises:
        EngineError: A node could not be opened, or two claim one name.
    """
    nodes = {f"node {node_id}": node_id for node_id in line.grid.get_node_ids()}
    node_of: dict[str, int] = {}
    rosters: dict[str, Roster] = {}
    hellos = {node: replace(hello, nonce=fresh_nonce()) for node in nodes}
    for reply in ask(line, nodes, hellos, Roster, deadline_s):
        if reply.answer is None:
            raise EngineError(f"roll call failed: {reply.reason}")
        site = reply.answer.site
        if site in rosters:
            raise EngineError(f"two nodes answered as site {site!r}, expected one each")
        node_of[site] = nodes[reply.site]
        rosters[site] = reply.answer
    order = sorted(rosters)
    return {s: node_of[s] for s in order}, {s: rosters[s] for s in order}
