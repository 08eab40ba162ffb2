"""Which nodes are online, when they came, and how long a lost one is waited for.

A node that comes back is another process: what its last one was asked is lost with it.
The SuperLink says when each node last came online, so a change of that time means "ask
again", even if the absence fell between two looks. An engine whose nodes can't be lost
(a rehearsal's) tells no such time.
"""

import time
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

_LOOK_S = 2.0
"""Seconds between two looks at the SuperLink's nodes."""


@runtime_checkable
class TellsArrivals(Protocol):
    """A grid that knows when its nodes came online."""

    def arrivals(self) -> Mapping[int, str]:
        """Online node to the time at which it came, as any text that then changes."""
        ...


class Presence:
    """Looks after the nodes of one run."""

    def __init__(self, grid: Grid, rejoin_s: float = 0.0) -> None:
        """Look at a grid's nodes.

        Args:
            grid: Of any engine.
            rejoin_s: Seconds for which a lost node is waited for, once per loss.
        """
        self._grid = grid
        self._rejoin_s = rejoin_s
        self._seen: Mapping[int, str] = {}
        self._looked = float("-inf")
        self._lost: dict[int, float] = {}

    def arrivals(self) -> Mapping[int, str]:
        """Online node to the time at which it came; at most two seconds old."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            if isinstance(self._grid, TellsArrivals):
                self._seen = self._grid.arrivals()
            else:
                self._seen = dict.fromkeys(self._grid.get_node_ids(), "")
            self._looked = now
        return self._seen

    def arrival(self, node: int) -> str | None:
        """When a node came; unset while it is away."""
        arrival = self.arrivals().get(node)
        if arrival is not None:
            self._lost.pop(node, None)
        return arrival

    def is_given_up(self, node: int) -> bool:
        """Whether a node has been away for too long to wait for it any more."""
        if self.arrival(node) is not None:
            return False
        since = self._lost.setdefault(node, time.monotonic())
        if time.monotonic() - since < self._rejoin_s:
            return False
        self._looked = float("-inf")  # it may have come a second ago
        return self.arrival(node) is None
