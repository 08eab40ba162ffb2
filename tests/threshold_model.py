"""A model whose answer is known voxel by voxel: HU above a threshold.

It is a LinearProbe whose only weight that is not 0 is the centre of the kernel, so what
a prediction must be can be written down without running any network.
"""

from collections.abc import Sequence

import torch

from common.networks import build_network
from common.package import ModelPackage, PackageFacts
from common.plan import Plan
from common.tasks.catalog import task_of
from tests.plans import plan as small_plan

WINDOW_HU = (-1000.0, 1000.0)
STEEP = 1000.0


def threshold_plan(names: Sequence[str] = ("nodule",), **changes) -> Plan:
    return small_plan(
        task__classes={name: [name] for name in names},
        preprocessing__window_hu=WINDOW_HU,
        training__patch=[4, 8, 8],
        federation__min_sites=1,
        **changes,
    )


def threshold_package(plan: Plan, above_hu: Sequence[float] = (100.5,)) -> ModelPackage:
    """One threshold per class, rising: the class is the highest one that is passed."""
    network = build_network(plan, task_of(plan).out_channels, 0)
    state = {name: torch.zeros_like(t) for name, t in network.state_dict().items()}
    grey = [(hu - WINDOW_HU[0]) / 1000.0 - 1.0 for hu in above_hu]
    centre = (0, *(size // 2 for size in state["weight"].shape[2:]))
    if len(grey) == 1:
        state["weight"][(0, *centre)] = STEEP
        state["bias"][0] = -STEEP * grey[0]
    else:  # logit k is a line of slope k; neighbours cross at the thresholds
        for k in range(1, len(grey) + 1):
            state["weight"][(k, *centre)] = STEEP * k
            state["bias"][k] = -STEEP * sum(grey[:k])
    facts = PackageFacts(round=1, monitor="dice")
    return ModelPackage(plan, state, facts, "ab" * 32)
