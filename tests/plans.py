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
SLICES = """
[plan]
name = "slices"
[task]
kind = "segmentation"
classes = { nodule = ["nodule"] }
[model]
name = "UNet"
dimensions = 2
channels = [4, 8]
residual_units = 0
[preprocessing]
window_hu = [0.0, 255.0]
[training]
steps = 3
batch_size = 2
patch = [16, 16]
learning_rate = 1e-2
[federation]
rounds = 4
[evaluation]
region = "window"
surface = false
[data]
validation = 0.2
test = 0.2
"""
"""Of the phantom hospitals' pictures."""


def plan(text: str = SEGMENTATION, /, **changes: object) -> Plan:
    """The plan of `text` with keys replaced: `federation__rounds=5`."""
    content = parse_plan(text).model_dump(mode="json", exclude_none=True)
    for path, value in changes.items():
        table, key = path.split("__")
        content.setdefault(table, {})[key] = value
    return Plan.model_validate(content)
