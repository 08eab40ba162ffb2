"""Orders that outlive the process that gave them, as files do on their way.

A resumed run asks again what it asked before. On a live line the last asking is lost
with its process; a file that is under way for days must still count. So before an order
is sent, the grid may say how it stands already: under which nonce, and how long it is
waited for.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flwr.serverapp import Grid

from common.exchange import Order


@dataclass(frozen=True, eq=False)
class Standing:
    """How an order is asked."""

    order: Order
    """With the nonce that its answer has to repeat."""
    left_s: float
    """Seconds until its site is late; below zero when it is already."""
    is_kept: bool = False
    """Whether it outlives this process."""
    is_first: bool = True
    """Whether it is the run's first order to this site, over all processes."""


@runtime_checkable
class KeepsOrders(Protocol):
    """A grid on which some orders outlive the process."""

    def standing(self, node: int, order: Order, *, fresh: bool) -> Standing | None:
        """How an order stands to a node; unset for a node with a live line.

        Args:
            node: Who is to be asked next.
            order: What.
            fresh: Whether an answer to an earlier asking of the same won't do.
        """


@runtime_checkable
class ReachesByFile(Protocol):
    """A grid some of whose nodes have no live line."""

    def by_file(self) -> Collection[int]:
        """Those nodes."""


def stand(
    grid: Grid, node: int, order: Order, wait_s: float, *, fresh: bool = False
) -> Standing:
    """How an order is asked; as it is, on a line whose orders die with the process."""
    kept = None
    if isinstance(grid, KeepsOrders):
        kept = grid.standing(node, order, fresh=fresh)
    return kept or Standing(order, wait_s)
