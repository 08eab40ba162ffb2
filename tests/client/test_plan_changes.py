"""What an engineer is shown of a new plan is what makes it another."""

import pytest

from client.plan_changes import Change, changes
from tests.client.conftest import slices


def test_a_plan_changes_nothing_against_itself():
    assert changes(slices(), slices()) == []


def test_changed_added_and_removed_keys_are_named_with_both_values():
    new = slices(training__batch_size=8, federation__weight_cap=50.0)
    assert changes(slices(), new) == [
        Change("training.batch_size", "2", "8"),
        Change("federation.weight_cap", "null", "50.0"),
    ]
    ab = slices(task__classes={"a": ["x"], "b": ["*"]})
    ba = slices(task__classes={"b": ["*"], "a": ["x"]})
    assert [change.key for change in changes(ab, ba)] == ["task.classes"]


@pytest.mark.parametrize(
    "change",
    [
        {"plan__seed": 2},
        {"plan__description": "x"},
        {"model__channels": [8, 8]},
        {"training__augmentation": {"flip": ["H"]}},
        {"evaluation__region": "volume"},
    ],
)
def test_plans_of_two_digests_differ_in_a_key(change):
    new = slices(**change)
    assert new.digest != slices().digest
    assert len(changes(slices(), new)) == 1
