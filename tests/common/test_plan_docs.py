"""docs/plan.md says of every key what `common.plan` says."""

import re
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common import (
    plan,
    plan_dp,
    plan_federation,
    plan_privacy,
    plan_release,
    plan_task,
    sources,
)
from common.plan import Plan

TEXT = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
SECTIONS: dict[str, type[BaseModel]] = {
    "`[plan]`": plan.About,
    "`[task]` for segmentation": plan_task.SegmentationTask,
    "`[task]` for classification": plan_task.ClassificationTask,
    "`[[task.classes]]`: one class of a classification": plan_task.ClassRule,
    "`[model]`": plan.Model,
    "`[preprocessing]`": plan.Preprocessing,
    "`[training]`": plan.Training,
    "`[training.augmentation]`": plan.Augmentation,
    "`[federation]`": plan_federation.Federation,
    "`[evaluation]`": plan.Evaluation,
    "`[data]`": plan.Data,
    "`[privacy]`": plan_privacy.Privacy,
    "`[privacy.dp]`": plan_dp.PatientPrivacy,
    "`[privacy.release]`": plan_release.Release,
    "`[simulation]`": sources.Simulation,
    "`[[simulation.sites]]`: one hospital": sources.SimulatedSite,
}


def rows(heading: str) -> dict[str, list[str]]:
    """First cell, without its backticks, to the other cells of a section's table."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    names = [row[0].strip("`") for row in cells]
    assert len(set(names)) == len(names), f"{heading} has a key twice"
    return {name: row[1:] for name, row in zip(names, cells, strict=True)}


def default_cell(field: FieldInfo) -> object:
    """What the table has to show: words, or a value."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "all defaults"
    if field.default is None:
        return "unset"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    return list(value) if isinstance(value, tuple) else value


def choices(annotation: object) -> set[object]:
    """Values of every Literal in a type."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return {c for part in get_args(annotation) for c in choices(part)}


def models_in(annotation: object) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.values()
        found = {m for field in fields for m in models_in(field.annotation)}
        return found | {annotation}
    return {model for part in get_args(annotation) for model in models_in(part)}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_table_has_every_key_with_its_default(heading):
    fields = SECTIONS[heading].model_fields
    table = rows(heading)
    assert set(table) == set(fields)
    for name, (_, default, meaning) in table.items():
        shown = default
        if default.startswith("`"):
            shown = tomllib.loads(f"value = {default.strip('`')}")["value"]
        expected = default_cell(fields[name])
        assert shown == expected, f"{heading} {name}: {shown} is not {expected}"
        assert type(shown) is type(expected), f"{heading} {name}"
        assert meaning.endswith("."), f"{heading} {name} has no sentence"


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_type_names_every_choice(heading):
    for name, field in SECTIONS[heading].model_fields.items():
        wanted = choices(field.annotation)
        if wanted:
            shown = re.findall(r"`([^`]+)`", rows(heading)[name][0])
            assert {tomllib.loads(f"v = {s}")["v"] for s in shown} == wanted, name


def test_no_table_of_the_plan_is_left_out():
    documented = {*SECTIONS.values(), Plan, sources.Source}  # Source: a site, unnamed
    assert models_in(Plan) == documented
    assert set(SECTIONS) == set(re.findall(r"^## (.*`.*)$", TEXT, re.MULTILINE))


def test_the_list_of_tables_says_which_are_required():
    table = rows("The tables")
    assert set(table) == {f"[{name}]" for name in Plan.model_fields}
    for name, field in Plan.model_fields.items():
        assert table[f"[{name}]"][0] == default_cell(field), name
