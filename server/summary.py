"""Pure functions over the records of finished rounds: best, stop, means.

They look at nothing but the journal's rows, so a resumed run decides as the
uninterrupted one would have.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from common.plan import Plan
from server.record import Metrics, RoundRecord


def best_round(records: Sequence[RoundRecord], monitor: str) -> int:
    """The round with the highest monitored metric; the first of equals.

    Without any validation number it is the last closed round; 0 if there is none.
    """
    scored = [
        (record.validation_mean[monitor], -record.number)
        for record in records
        if math.isfinite(record.validation_mean.get(monitor, math.nan))
    ]
    if scored:
        return -max(scored)[1]
    closed = [record.number for record in records if record.outcome == "closed"]
    return closed[-1] if closed else 0


def stop_reason(
    records: Sequence[RoundRecord], plan: Plan, monitor: str, resumed_at: int = 0
) -> Literal["all rounds", "early stop", "void rounds"] | None:
    """Why the run is over, or None if it goes on.

    Args:
        records: All rounds so far.
        plan: Gives the limits.
        monitor: Metric that early stop watches.
        resumed_at: Rounds that were there when this process began; void ones among
            them do not stop the run again, for their cause may have been mended.
    """
    federation = plan.federation
    if len(records) >= federation.rounds:
        return "all rounds"
    tail = records[resumed_at:][-federation.max_void_rounds :]
    if len(tail) == federation.max_void_rounds and all(
        record.outcome == "void" for record in tail
    ):
        return "void rounds"
    patience = federation.early_stop_rounds
    best = best_round(records, monitor)
    if patience is not None and best and len(records) - best >= patience:
        return "early stop"
    return None


def mean_metrics(by_site: Mapping[str, Metrics]) -> Metrics:
    """Unweighted mean over the sites that have a finite value, by metric."""
    names = sorted({name for metrics in by_site.values() for name in metrics})
    means = {}
    for name in names:
        values = [
            m[name] for m in by_site.values() if math.isfinite(m.get(name, math.nan))
        ]
        if values:
            means[name] = sum(values) / len(values)
    return means
