"""What a new plan changes: the keys whose value is another than in an earlier plan."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from common.plan import Plan


@dataclass(frozen=True)
class Change:
    """One key of a plan."""

    key: str
    """With dots: `training.batch_size`."""
    old: str | None
    """Its value as JSON; unset where the earlier plan has no such key."""
    new: str | None
    """Its value as JSON; unset where the new plan has no such key."""


def changes(old: Plan, new: Plan) -> list[Change]:
    """Every key that makes two plans' digests differ, in the order of the new plan."""
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    return [
        Change(key, before.get(key), after.get(key))
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _flat(plan: Plan) -> dict[str, str]:
    found: dict[str, str] = {}

    def visit(table: Mapping[str, object], prefix: str) -> None:
        for name, value in table.items():
            # The classes of a segmentation are one value: their order numbers them.
            if isinstance(value, dict) and name != "classes":
                visit(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = json.dumps(value)

    visit(plan.model_dump(mode="json", exclude={"simulation"}), "")
    return found
