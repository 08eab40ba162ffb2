"""What an engineer reads in a terminal: status, waiting plans, orders, preflight.

Words that came from a server are shown with every unprintable character written out, so
that they can't move the cursor or hide what stands beside them.
"""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.audit import Line
from client.desk_control import PlanView, Status
from client.plan_changes import Change, changes
from client.preflight_row import Row
from common.error_numbers import spoken
from common.plan import Plan
from common.plan_file import parse_plan

_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


def print_status(status: Status, site: str) -> None:
    """Print what a site is doing."""
    if status.started is not None:
        print(f"site {site}: service runs since {_time(status.started)}, ", end="")
        print(f"process {status.pid}, FedCT {status.version}")
    else:
        print(f"site {site}: no service runs")
    activity = status.activity
    if activity is not None:
        running = status.pid is not None
        said = f"{activity.doing} since {_time(activity.since)}"
        if activity.run is not None:
            said += f", run {visible(activity.run)}"
        if activity.round is not None:
            said += f", round {activity.round}"
        if activity.step is not None:
            said += f", step {activity.step} of {activity.steps}"
        print(f"  {'now' if running else 'at last'}: {said}")
        if activity.last_error is not None and activity.last_error_at is not None:
            at = _time(activity.last_error_at)
            print(f"  last failed order: error {activity.last_error}, {at}")
    counts = f"{status.approved} approved, {status.waiting} waiting"
    print(f"  plans: {counts}, {status.denied} denied")
    if status.pause is not None:
        reason = visible(status.pause.reason) or "no reason given"
        print(f"  paused since {_time(status.pause.since)}: {reason}")


def describe(view: PlanView, approved: Sequence[PlanView]) -> dict[str, object]:
    """What an engineer has to know of a plan, against the last one approved before.

    Args:
        view: The plan.
        approved: Every approved plan.
    """
    plan = parse_plan(view.toml, view.digest[:12])
    others = [other for other in approved if other.digest != view.digest]
    last = max(others, key=_decided, default=None)
    task = plan.task
    classes = (
        list(task.classes)
        if task.kind == "segmentation"
        else [rule.name for rule in task.classes]
    )
    return {
        "name": plan.plan.name,
        "digest": view.digest,
        "state": view.state,
        "run": view.run,
        "first_seen": view.first_seen.isoformat(),
        "task": task.kind,
        "classes": classes,
        "model": f"{plan.model.name} {plan.model.dimensions}-D",
        "rounds": plan.federation.rounds,
        "min_sites": plan.federation.min_sites,
        "against": None if last is None else last.digest,
        "changes": [vars(change) for change in _changes(last, plan)],
    }


def print_plan(plan: dict[str, object]) -> None:
    """Print one plan as `describe` gives it."""
    classes = plan["classes"]
    assert isinstance(classes, list)
    first_seen = datetime.fromisoformat(str(plan["first_seen"]))
    print(f"{plan['name']}: {plan['state']}, first seen {_time(first_seen)}")
    print(f"  hash     {plan['digest']}")
    print(f"  run      {visible(str(plan['run']))}")
    print(f"  task     {plan['task']} of {visible(', '.join(classes))}")
    print(f"  model    {plan['model']}")
    print(f"  rounds   {plan['rounds']}, each with {plan['min_sites']} sites or more")
    if plan["against"] is None:
        print("  changes  no other plan is approved here")
        return
    print(f"  changes  against the last approved plan, {str(plan['against'])[:12]}:")
    rows = plan["changes"]
    assert isinstance(rows, list)
    for row in rows:
        old, new = (row[side] or "not there" for side in ("old", "new"))
        print(f"    {row['key']}: {visible(old)} -> {visible(new)}")


def print_audit(lines: Sequence[Line]) -> None:
    """Print lines of the audit log, each as one line."""
    for line in lines:
        order: str = line.kind if line.kind != "unknown" else "what was no order"
        if line.run is not None:
            order += f" of run {visible(line.run)}"
        if line.round is not None:
            order += f", round {line.round}"
        left = f"error {spoken(line.code)}"
        if line.code == 0:
            digest, policy = (line.digest or "")[:16], (line.policy or "")[:12]
            left = (
                f"{line.what} of {line.bytes_out} bytes, digest {digest}; "
                f"plan {visible((line.plan or '')[:12])} {line.allowed}, "
                f"policy {policy}"
            )
        print(f"{line.number}  {_time(line.time)}  to {line.to}: {order}: {left}")


def print_checks(rows: Sequence[Row]) -> None:
    """Print the preflight table."""
    table = Table("check", "", "found, and what to do", show_lines=False)
    for row in rows:
        said = Text(visible(row.found))
        if row.fix is not None:
            said.append(f"\n-> {visible(row.fix)}", style="bold")
        table.add_row(row.name, Text(row.verdict, style=_COLOURS[row.verdict]), said)
    Console(highlight=False).print(table)


def visible(text: str) -> str:
    """The text with every character that does not print written as its code."""
    return "".join(
        c if c.isprintable() and not unicodedata.combining(c) else f"\\u{ord(c):04x}"
        for c in text
    )


def _changes(last: PlanView | None, plan: Plan) -> list[Change]:
    if last is None:
        return []
    return changes(parse_plan(last.toml, last.digest[:12]), plan)


def _decided(view: PlanView) -> datetime:
    return view.decided or view.first_seen


def _time(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
