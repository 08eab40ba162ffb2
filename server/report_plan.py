"""What the report reads off the plan that stands in a run's record.

A record of another version may hold a plan that can't be read here: then nothing is
said of it, and the rounds speak for themselves.
"""

from functools import lru_cache

from common.errors import PlanError
from common.plan import Plan
from common.plan_file import parse_plan
from server.record import RunRecord


def plan_of(record: RunRecord) -> Plan | None:
    """The run's plan; unset if it can't be read."""
    return _parsed(record.plan_toml)


def takes_last(record: RunRecord) -> bool:
    """Whether the final model is that of the last round, and nothing was picked."""
    plan = plan_of(record)
    return plan is not None and plan.evaluation.final == "last"


@lru_cache(maxsize=4)
def _parsed(text: str) -> Plan | None:
    try:
        return parse_plan(text)
    except PlanError:
        return None
