import math

import pytest
from pydantic import ValidationError

from common.plan import Plan
from tests.plans import plan

DP = {"noise_multiplier": 1.0}


def test_a_plan_with_dp_is_another_plan_and_one_without_says_so():
    assert plan().privacy.dp is None
    assert plan(privacy__dp=DP).privacy.dp.clip_norm == 1.0
    assert plan(privacy__dp=DP).digest != plan().digest


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__norm": "batch"}, "model.norm 'batch' mixes the patients"),
        ({"training__amp": "fp16"}, "training.amp 'fp16' skips steps"),
        ({"training__max_grad_norm": 1.0}, "training.max_grad_norm clips"),
    ],
)
def test_what_breaks_a_patients_share_is_refused_by_name(changes, said):
    plan(**changes)  # well without DP
    with pytest.raises(ValidationError, match=said):
        plan(privacy__dp=DP, **changes)


@pytest.mark.parametrize(
    "dp",
    [
        {},
        {"noise_multiplier": 1.0, "epsilon": 2.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": 0.29},
        {"noise_multiplier": 1e-300},
        {"noise_multiplier": 1001.0},
        {"noise_multiplier": 1e300},
        {"noise_multiplier": math.nan},
        {"epsilon": 0.01},
        {"epsilon": 2.0, "delta": 0.0},
        {"epsilon": 2.0, "delta": 1.0},
        {"epsilon": 2.0, "clip_norm": 0.0},
        {"epsilon": 2.0, "clip_norm": 1e-7},
        {"epsilon": 2.0, "clip_norm": 1e7},
        {"epsilon": 2.0, "patches_per_patient": 0},
    ],
)
def test_strengths_that_promise_nothing_are_refused(dp):
    content = plan().model_dump(mode="json", exclude_none=True)
    content["privacy"]["dp"] = dp
    with pytest.raises(ValidationError):
        Plan.model_validate(content)


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"release": {"under_masks": True}}, "under_masks asks for masks"),
        ({"release": {"max_epsilon": 8.0}}, r"only \[privacy.dp\] gives"),
        (
            {"release": {"max_epsilon": 2.0}, "dp": {"epsilon": 8.0}},
            "below what a run may cost",
        ),
    ],
)
def test_a_gate_that_no_run_could_open_is_refused(privacy, said):
    content = plan().model_dump(mode="json", exclude_none=True)
    with pytest.raises(ValidationError, match=said):
        Plan.model_validate({**content, "privacy": privacy})
    opened = {"secure_aggregation": "on", "dp": {"epsilon": 2.0}}
    Plan.model_validate({**content, "privacy": {**privacy, **opened}})
