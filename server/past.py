"""What a round goes on from, as the journal tells it.

Under masks all sites of a round go on from the same memory, or begin anew
(`common.secagg.lineage`). Beginning anew costs all of them their moments, so it is not
done for each site that comes and goes; but it is done where rounds are void because a
site that is needed may have lost its memory.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.secagg.keys import KeySet
from common.secagg.lineage import FRESH
from server.record import RoundRecord

STUCK = 2
"""Void rounds in a row after which all sites under masks begin anew."""
SELDOM = 5
"""Rounds for which a site that joins waits, once all began anew for another."""


@dataclass(frozen=True)
class Past:
    """What is known before a round."""

    since: Mapping[str, int]
    """Site to its last round that counted, where its memory goes on from; 0: none."""
    last_norm: float | None = None
    """Median norm of the updates of the last round that counted; one far larger is
    refused. Unset: there is none, they are held against the model."""
    lineage: str = FRESH
    """Under masks: after the last round that counted, if few were void since."""
    weight_cap: int | None = None
    """Under masks: of that round."""
    began_lately: bool = False
    """Under masks: all began anew for a site that joined, a few rounds ago."""

    @property
    def in_last_sum(self) -> frozenset[str]:
        """Sites whose updates counted in the last round that did; at first none."""
        last = max(self.since.values(), default=0)
        return frozenset(
            s for s, number in self.since.items() if last and number == last
        )

    def goes_on(self, keys: KeySet) -> bool:
        """Whether all sites of a masked round can go on from the last one's memory."""
        is_known = self.in_last_sum.issuperset(keys.sites)
        return is_known and self.weight_cap == keys.terms.weight_cap

    def may_take_part(
        self, sites: Collection[str], here: Collection[str], fewest: int
    ) -> frozenset[str]:
        """Who may take part in a masked round.

        Args:
            sites: All sites of the run.
            here: Those that are connected.
            fewest: So many are needed.
        """
        enough = len(self.in_last_sum.intersection(here)) >= fewest
        return self.in_last_sum if self.began_lately and enough else frozenset(sites)


def past_of(records: Sequence[RoundRecord], sites: Collection[str]) -> Past:
    """What the next round goes on from.

    Args:
        records: All rounds so far.
        sites: All sites of the run.
    """
    since = last_counted(records, sites)
    closed = [record for record in records if record.outcome == "closed"]
    if not closed:
        return Past(since)
    last, number = closed[-1], len(records) + 1
    anew = [record.number for record in closed if record.began_anew][1:]
    return Past(
        since,
        _last_norm(closed),
        lineage=FRESH if number - last.number > STUCK else last.lineage,
        weight_cap=last.weight_cap,
        began_lately=bool(anew)
        and number - anew[-1] <= SELDOM
        and last.number == len(records),  # else who waits may be the one who is needed
    )


def last_counted(
    records: Sequence[RoundRecord], sites: Collection[str]
) -> Mapping[str, int]:
    """Site to the last round whose model holds its update; 0 if there is none."""
    last = dict.fromkeys(sites, 0)
    for record in records:
        if record.outcome == "closed":
            for row in record.sites:
                if row.outcome == "accepted":
                    last[row.site] = record.number
    return last


def _last_norm(closed: Sequence[RoundRecord]) -> float | None:
    """The median norm of the updates that last counted."""
    for record in reversed(closed):
        norms = [row.update_norm for row in record.sites if row.update_norm]
        if norms:
            return float(np.median(norms))
    return None
