"""A plan as an engineer has to see it before it may train on the hospital's images.

What it learns, with which network and how many parameters, what hides the hospital's
share, who takes part under which keys, what the policy has against it, and, key by key,
what differs from the plan that was approved last.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from client.desk_control import PlanView
from client.plan_changes import Change, changes
from client.policy import objections
from common.plan import Model, Plan
from common.plan_file import parse_plan
from common.plan_privacy import AUTO_SITES, is_masked, quorum
from deploy.plan_sites_view import Here, describe_sites, print_sites
from deploy.site_tables import time_text, visible
from server.federation import plan_layout

_FLOAT_BYTES = 4


def describe(
    view: PlanView, approved: Sequence[PlanView], here: Here
) -> dict[str, object]:
    """What an engineer has to know of a plan, against the last one approved before.

    Args:
        view: The plan.
        approved: Every approved plan.
        here: What this site is, and knows.
    """
    plan = parse_plan(view.toml, view.digest[:12])
    others = [other for other in approved if other.digest != view.digest]
    last = max(others, key=_decided, default=None)
    layout = plan_layout(plan)
    sites = len(view.sites) or AUTO_SITES
    return {
        "name": plan.plan.name,
        "digest": view.digest,
        "state": view.state,
        "run": view.run,
        "first_seen": view.first_seen.isoformat(),
        "task": plan.task.kind,
        "classes": _classes(plan),
        "model": _architecture(plan.model),
        "layout_digest": layout.digest,
        "tensors": len(layout.names),
        "parameters": layout.size,
        "update_bytes": _FLOAT_BYTES * layout.size,
        "rounds": plan.federation.rounds,
        "min_sites": quorum(plan.privacy, plan.federation, sites),
        "privacy": _privacy(plan, len(view.sites)),
        "budget": _budget(plan, here),
        **describe_sites(view, here),
        "objections": [str(said) for said in objections(here.policy, plan)],
        "against": None if last is None else last.digest,
        "changes": [vars(change) for change in _changes(last, plan)],
    }


def print_plan(plan: dict[str, object]) -> None:
    """Print one plan as `describe` gives it."""
    first_seen = time_text(datetime.fromisoformat(str(plan["first_seen"])))
    print(f"{plan['name']}: {plan['state']}, first seen {first_seen}")
    print(f"  hash     {plan['digest']}")
    print(f"  run      {visible(str(plan['run']))}")
    print(f"  task     {plan['task']} of {visible(', '.join(_rows(plan['classes'])))}")
    print(f"  model    {plan['model']}")
    print(
        f"           {plan['parameters']:,} parameters in {plan['tensors']} tensors, "
        f"layout {str(plan['layout_digest'])[:12]}"
    )
    print(f"  rounds   {plan['rounds']}, each with {plan['min_sites']} sites or more")
    print(f"  privacy  {plan['privacy']}")
    if plan["budget"]:
        print(f"  budget   {plan['budget']}")
    print_sites(plan)
    for objection in _rows(plan["objections"]):
        print(f"  REFUSED  {objection}")
    if plan["against"] is None:
        print("  changes  no other plan is approved here")
        return
    print(f"  changes  against the last approved plan, {str(plan['against'])[:12]}:")
    for row in _rows(plan["changes"]):
        old, new = (row[side] or "not there" for side in ("old", "new"))
        print(f"    {row['key']}: {visible(old)} -> {visible(new)}")


def _rows(value: object) -> list[Any]:
    assert isinstance(value, list)
    return value


def _classes(plan: Plan) -> list[str]:
    if plan.task.kind == "segmentation":
        return list(plan.task.classes)
    return [rule.name for rule in plan.task.classes]


def _architecture(model: Model) -> str:
    """The network in a line."""
    channels = "-".join(map(str, model.channels))
    said = f"{model.name} {model.dimensions}-D, {model.norm} norm, channels {channels}"
    return f"{said}, dropout {model.dropout:g}" if model.dropout else said


def _privacy(plan: Plan, sites: int) -> str:
    """Who sees the hospital's update, and what hides a patient in it."""
    privacy = plan.privacy
    said = "each update leaves in the clear"
    if is_masked(privacy, plan.federation, sites or AUTO_SITES):
        where = f"with {AUTO_SITES} sites "
        if sites or privacy.secure_aggregation == "on":
            where = ""
        said = (
            f"{where}under masks: only the sum of {privacy.min_cohort} sites or more "
            "is opened"
        )
        if plan.federation.algorithm == "fedbn":
            said += " (norm layers are not bound: a hostile hub may get round this)"
    if privacy.dp is None:
        return f"{said}; no differential privacy"
    noise = f"epsilon {privacy.dp.epsilon}"
    if privacy.dp.epsilon is None:
        noise = f"noise {privacy.dp.noise_multiplier:g}"
    return (
        f"{said}; patient-level differential privacy, {noise}, delta "
        f"{privacy.dp.delta:g}, clip {privacy.dp.clip_norm:g}"
    )


def _budget(plan: Plan, here: Here) -> str | None:
    """What the plan asks of the hospital's budget, as far as that is known now."""
    dp, budget = plan.privacy.dp, here.policy.dp_epsilon
    if dp is None or budget is None:
        return None
    asks = "what its noise costs among the patients here"
    if dp.epsilon is not None:
        asks = f"epsilon {dp.epsilon:g} at delta {dp.delta:g}"
    left = max(0.0, budget - here.paid)
    return (
        f"this plan asks {asks}; {left:.2f} of epsilon {budget:g} left at delta "
        f"{here.policy.dp_delta:g}, and a run that would cost more is refused"
    )


def _changes(last: PlanView | None, plan: Plan) -> list[Change]:
    if last is None:
        return []
    return changes(parse_plan(last.toml, last.digest[:12]), plan)


def _decided(view: PlanView) -> datetime:
    return view.decided or view.first_seen
