"""Which task a plan asks for."""

from common.plan import Plan
from common.task import Task
from common.tasks.classification import Classification
from common.tasks.segmentation import Segmentation


def task_of(plan: Plan) -> Task:
    """The task of the plan's `[task]` section."""
    if plan.task.kind == "segmentation":
        return Segmentation(plan)
    return Classification(plan)
