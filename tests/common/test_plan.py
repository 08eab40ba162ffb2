import itertools

import pytest
from pydantic import ValidationError

from common.plan import Plan
from tests.plans import plan


def test_the_hash_changes_with_every_key_that_a_hospital_approves():
    changes = [
        {"plan__seed": 2},
        {"training__learning_rate": 2e-3},
        {"federation__rounds": 4},
        {"preprocessing__window_hu": [-900.0, 400.0]},
        {"data__test": 0.25},
    ]
    digests = {plan(**change).digest for change in [{}, *changes]}
    assert len(digests) == len(changes) + 1


def test_the_hash_ignores_where_a_rehearsal_finds_its_data():
    sites = [{"name": n, "source": n} for n in ("a", "b")]
    with_sites = Plan.model_validate(
        {**plan().model_dump(), "simulation": {"sites": sites}}
    )
    assert with_sites.digest == plan().digest


def test_the_hash_does_not_depend_on_the_order_of_keys():
    content = plan().model_dump()
    turned = dict(reversed(list(content.items())))
    assert Plan.model_validate(turned).digest == plan().digest


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training__patch": [8, 8]}, "training.patch has 2 numbers"),
        ({"model__name": "ResNet18"}, "'ResNet18' does not fit"),
        ({"training__loss": "cross_entropy"}, "'cross_entropy' does not fit"),
        ({"federation__algorithm": "scaffold"}, "plain SGD"),
        ({"federation__algorithm": "fedbn"}, "instance norm has no parameters"),
        ({"data__test": 0.9}, "leave no patient"),
        ({"preprocessing__window_hu": [400.0, -1000.0]}, "is empty"),
        ({"plan__name": "Not A Name"}, "pattern"),
        ({"training__learning_rate": float("inf")}, "finite"),
        ({"task__classes": {"a": ["x"], " a": ["y"]}}, "'a' is used twice"),
        ({"task__classes": {"": ["x"]}}, "at least 1 character"),
        ({"task__classes": {"a": []}}, "at least 1 item"),
        ({"task__classes": {"a": [" "]}}, "at least 1 character"),
    ],
)
def test_a_plan_that_cannot_work_is_refused_by_name(changes, named):
    with pytest.raises(ValidationError, match=named):
        plan(**changes)


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ({"name": "benign", "above": 3.0}, "class name 'benign' is used twice"),
        ({"name": " ", "above": 3.0}, "at least 1 character"),
        ({"name": "malignant", "above": float("nan")}, "finite"),
        ({"name": "malignant", "below": float("inf")}, "finite"),
        ({"name": "malignant", "equals": []}, "at least 1 item"),
    ],
)
def test_a_class_that_cannot_be_told_or_filled_is_refused(rule, named):
    task = {
        "kind": "classification",
        "attribute": "score",
        "classes": [{"name": "benign", "below": 3.0}, rule],
    }
    content = plan().model_dump() | {"task": task}
    with pytest.raises(ValidationError, match=named):
        Plan.model_validate(content)


@pytest.mark.parametrize("name", ["public", "pooled"])
def test_a_site_may_not_be_called_like_a_node_of_the_rehearsal(name):
    sites = [{"name": n, "source": n} for n in ("a", name)]
    with pytest.raises(ValidationError, match=f"{name!r} is that of a rehearsal's own"):
        Plan.model_validate({**plan().model_dump(), "simulation": {"sites": sites}})


def test_quorum_above_the_number_of_sites_is_refused():
    content = plan(federation__min_sites=3).model_dump()
    sites = [{"name": n, "source": n} for n in ("a", "b")]
    with pytest.raises(ValidationError, match="min_sites 3 is above"):
        Plan.model_validate({**content, "simulation": {"sites": sites}})


def test_two_sites_of_one_name_are_refused():
    sites = [{"name": "a", "source": n} for n in ("x", "y")]
    with pytest.raises(ValidationError, match="'a' is used twice"):
        Plan.model_validate({**plan().model_dump(), "simulation": {"sites": sites}})


def test_the_hash_depends_on_the_order_of_classes_because_it_numbers_them():
    there = plan(task__classes={"a": ["a"], "b": ["b"]})
    back = plan(task__classes={"b": ["b"], "a": ["a"]})
    assert there.digest != back.digest


def test_a_plan_is_frozen():
    with pytest.raises(ValidationError):
        plan().plan.seed = 3


def test_every_key_of_the_schema_has_a_type():
    for table in Plan.model_json_schema()["$defs"].values():
        for field in itertools.chain(table.get("properties", {}).values()):
            assert {"type", "anyOf", "$ref", "const", "enum", "oneOf"} & field.keys()
