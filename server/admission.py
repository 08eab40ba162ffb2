"""Letting the hospitals of a run in: at its start, and while it goes on.

A hospital may not be there yet, may have to approve the plan first, or may take minutes
to take its images in. So the roll is called without waiting: whoever has not answered
is asked once and looked after later, and whoever refused is asked again after a while.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from common.exchange import Hello, Roster, fresh_nonce
from server.asking import Line, question, read_reply
from server.standing import stand

log = logging.getLogger("fedct.run")

_AGAIN_S, _AGAIN_LONGEST_S = 5.0, 60.0
"""Pause before a site that refused is asked again; it doubles from one to the other.
A plan may wait for approval overnight, and a hospital keeps a line of each refusal."""
_HELLO_TTL_S = 24 * 3600.0
"""A hospital's first intake of a large archive may take hours."""

Waiting = Mapping[str, str]
"""Node or site to the reason why it is not in."""


@dataclass
class _Asked:
    """One node that was asked in."""

    came: str
    """When the node came that was asked; another process would not know of it."""
    hello: Hello
    message_id: str
    refusals: int = 0
    """How often this process of the site has refused so far."""
    again_at: float = 0.0
    until: float = float("inf")
    """When an order in a file is too late, and another one has to be given."""
    is_awaited: bool = False
    """Whether it is the first order in a file to a site that has days to answer; it is
    shown where files are, as something to be brought."""
    reason: str = "has not answered yet"


@dataclass
class Admission:
    """Who is in, and who is not in yet."""

    line: Line
    """The way to the sites."""
    hello: Hello
    """The question; every asking gets a nonce of its own."""
    sites: Sequence[str]
    """Who is expected."""
    node_of: dict[str, int] = field(default_factory=dict)
    """Site to node id."""
    rosters: dict[str, Roster] = field(default_factory=dict)
    """Site to its introduction."""
    _asked: dict[int, _Asked] = field(default_factory=dict)

    def step(self) -> None:
        """Ask who is new, take what was answered; returns at once."""
        inside = set(self.node_of.values())
        arrivals = self.line.presence.arrivals()
        for node, came in arrivals.items():
            asked = self._asked.get(node)
            if node in inside:
                continue
            if asked is None or asked.came != came or 0 < asked.again_at < _now():
                self._ask(node, came)
        for node, asked in list(self._asked.items()):
            if asked.again_at == 0.0:
                self._take(node, asked)

    def is_patient(self) -> bool:
        """Whether a site that is reached by files still has time for its first word."""
        return any(asked.is_awaited for asked in self._asked.values())

    def missing(self) -> dict[str, str]:
        """Expected sites that are not in; nodes that refused say why."""
        reasons = {
            f"node {node}": asked.reason
            for node, asked in self._asked.items()
            if node not in self.node_of.values() and not asked.is_awaited
        }
        absent = [site for site in self.sites if site not in self.node_of]
        return dict.fromkeys(absent, "is not connected, or not ready") | reasons

    def _ask(self, node: int, came: str) -> None:
        hello, fresh = replace(self.hello, nonce=fresh_nonce()), node in self._asked
        one = stand(self.line.grid, node, hello, _HELLO_TTL_S, fresh=fresh)
        message = question(one.order, node, max(one.left_s, _HELLO_TTL_S))
        (message_id,) = self.line.grid.push_messages([message])
        if message_id:
            assert isinstance(one.order, Hello)
            asked = _Asked(came, one.order, message_id)
            last = self._asked.get(node)
            if last is not None and last.came == came:  # it says the same, most likely
                asked.refusals, asked.reason = last.refusals, last.reason
            self._asked[node] = asked
            if one.is_kept:
                asked.until = _now() + one.left_s
                asked.is_awaited = one.is_first

    def _take(self, node: int, asked: _Asked) -> None:
        for message in self.line.grid.pull_messages([asked.message_id]):
            reply = read_reply(
                f"node {node}", asked.hello, message, Roster, 0, self.line.verifier
            )
            if reply.answer is None:
                asked.reason = reply.reason
                pause_s = min(_AGAIN_S * 2**asked.refusals, _AGAIN_LONGEST_S)
                asked.again_at, asked.is_awaited = _now() + pause_s, False
                asked.refusals = min(asked.refusals + 1, 10)
                log.warning("not in", extra={"node": node, "why": reply.reason})
                return
            site = reply.answer.site
            self.node_of[site], self.rosters[site] = node, reply.answer
            del self._asked[node]
            log.info("site in", extra={"site": site})
            return
        if _now() > asked.until:
            asked.again_at, asked.is_awaited = _now(), False
            asked.reason = "did not answer in time, and is asked again"


def admit(
    admission: Admission,
    *,
    enough: int,
    join_s: float,
    tell: Callable[[Waiting], None],
) -> None:
    """Wait for the expected sites: without limit for enough, then a while for all.

    Args:
        admission: Begun or not.
        enough: The plan's quorum.
        join_s: Seconds to wait for the rest when there are enough; for those who are
            reached by files, as long as their first order waits.
        tell: Hears who is missing, and why, about once a second.
    """
    since: float | None = None
    while True:
        admission.step()
        tell(admission.missing())
        if all(site in admission.node_of for site in admission.sites):
            return
        if len(admission.node_of) >= enough:
            since = _now() if since is None else since
            if _now() - since >= join_s and not admission.is_patient():
                return
        time.sleep(0.5)


def _now() -> float:
    return time.monotonic()
