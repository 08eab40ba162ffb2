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

    A hospital that fails to judge one round must not make that round look better or
    worse, so a round takes the lead only by its mean over the hospitals that judged
    both it and the leader, and only if these are most of those that judged the leader.
    Each new round either takes the lead or leaves it where it is; no earlier one gets
    it back, because its checkpoint is gone.

    Without any validation number it is the last closed round; 0 if there is none.
    """
    best: RoundRecord | None = None
    closed = 0
    for record in records:
        if record.outcome == "closed":
            closed = record.number
        if _scores(record, monitor) and (
            best is None or _takes_the_lead(record, best, monitor)
        ):
            best = record
    return closed if best is None else best.number


def final_round(records: Sequence[RoundRecord], plan: Plan, monitor: str) -> int:
    """The round whose model is tested and handed out; 0 if none closed."""
    if plan.evaluation.final == "best":
        return best_round(records, monitor)
    return max((r.number for r in records if r.outcome == "closed"), default=0)


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
    since = [r for r in records if r.number > best and r.validation]
    if patience is not None and best and len(since) >= patience:
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


def _takes_the_lead(record: RoundRecord, best: RoundRecord, monitor: str) -> bool:
    new, old = _scores(record, monitor), _scores(best, monitor)
    both = sorted(new.keys() & old.keys())
    if 2 * len(both) <= len(old):
        return False
    return sum(new[site] for site in both) > sum(old[site] for site in both)


def _scores(record: RoundRecord, monitor: str) -> dict[str, float]:
    """Site to its finite value of the monitored metric."""
    values = {site: m.get(monitor, math.nan) for site, m in record.validation.items()}
    return {site: value for site, value in values.items() if math.isfinite(value)}
