"""Small valid plans for tests."""

from common.plan import Plan
from common.plan_file import parse_plan

SEGMENTATION = """
[plan]
name = "test"
[task]
kind = "segmentation"
classes = { nodule = ["nodule"] }
[model]
name = "LinearProbe"
dimensions = 3
[training]
steps = 2
batch_size = 2
patch = [8, 8, 8]
[federation]
rounds = 3
min_sites = 2
[evaluation]
surface = false
"""


def plan(text: str = SEGMENTATION, /, **changes: object) -> Plan:
    """The plan of `text` with keys replaced: `federation__rounds=5`."""
    content = parse_plan(text).model_dump(mode="json", exclude_none=True)
    for path, value in changes.items():
        table, key = path.split("__")
        content.setdefault(table, {})[key] = value
    return Plan.model_validate(content)
