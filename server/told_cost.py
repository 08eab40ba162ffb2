"""What DP has cost at a site, by what it told with every update that was accepted.

A hub can't measure it and hands models out by it, so silence and nonsense must never
look like a small cost: a site's figures stand only if it told both with each of those
updates, and what a run has cost can't fall while the run goes on.

Not covered here: a site that lies to its own patients, steadily and within reason.
"""

import math
from collections.abc import Iterable
from typing import Literal

from server.record import SiteRound

Told = tuple[float, float] | Literal["not told", "fell"]
"""Epsilon by PLD and PRV; or why there is none: with some update it was not told, or
was no finite number of at least 0; or it was less than before."""
_ROUNDING = 0.1 + 1e-9
"""Sites round up to a tenth, and an accountant errs by a hundredth: so much may seem
to fall."""


def told_by(rows: Iterable[SiteRound], site: str) -> Told:
    """The most that a site said of each accountant.

    Args:
        rows: In the order of the rounds, of all sites.
        site: Whose.
    """
    own = [row for row in rows if row.site == site and row.outcome == "accepted"]
    pld = _most([row.epsilon_pld for row in own])
    prv = _most([row.epsilon_prv for row in own])
    if isinstance(pld, str):
        return pld
    return prv if isinstance(prv, str) else (pld, prv)


def range_of(told: Told) -> str:
    """A range of one that holds the larger of two accountants, or why there is none."""
    if isinstance(told, str):
        return told
    high = max(1, math.ceil(max(told)))
    return f"{high - 1} to {high}"


def _most(told: list[float | None]) -> float | Literal["not told", "fell"]:
    most = 0.0
    for epsilon in told:
        if epsilon is None or not 0.0 <= epsilon < math.inf:
            return "not told"
        if epsilon < most - _ROUNDING:
            return "fell"
        most = max(most, epsilon)
    return most if told else "not told"
