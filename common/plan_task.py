"""What a plan asks the network to learn: the two kinds of `[task]`.

Classes are told apart by name, in metrics, reports and model cards, so a plan in which
two have one name, or one has none, is refused before it can mix them up.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.plan_section import Finite, Section

Text = Annotated[str, Field(min_length=1)]


class SegmentationTask(Section):
    """`[task] kind = "segmentation"`: a label per voxel."""

    kind: Literal["segmentation"]
    classes: dict[Text, Annotated[list[Text], Field(min_length=1)]] = Field(
        min_length=1, max_length=254
    )
    """Class name to the label names it is made of (segment label, ROI name, number of a
    label map); `"*"` takes every label. Where classes overlap, the later one wins."""
    lesions: bool = False
    """Whether connected parts are lesions, to be counted one by one."""

    @field_validator("classes", mode="before")
    @classmethod
    def _names_are_unique(cls, classes: object) -> object:
        # Spaces are stripped, which would drop one of "a" and " a" without a word.
        if isinstance(classes, Mapping):
            _refuse_twice([str(name) for name in classes])
        return classes


class ClassRule(Section):
    """Which cases belong to one class of a classification."""

    name: Text
    """Class name, as shown in the report."""
    equals: Annotated[list[Text], Field(min_length=1)] | None = None
    """The attribute is one of these texts."""
    below: Finite | None = None
    """The attribute, as a number, is below this."""
    above: Finite | None = None
    """The attribute, as a number, is above this."""

    @model_validator(mode="after")
    def _one_condition(self) -> Self:
        given = [self.equals, self.below, self.above]
        if sum(condition is not None for condition in given) != 1:
            raise ValueError("expected exactly one of equals, below, above")
        return self


class ClassificationTask(Section):
    """`[task] kind = "classification"`: a label per case."""

    kind: Literal["classification"]
    attribute: Text
    """The attribute of a case (column of a manifest) that holds the truth."""
    classes: list[ClassRule] = Field(min_length=2, max_length=100)
    """First class is 0; for two classes the second is the positive one. A case that
    fits none is left out, and counted as left out."""
    baseline_attribute: Text | None = None
    """A number known without any image (a diameter, say) whose own AUC is reported
    beside the model's."""

    @field_validator("classes")
    @classmethod
    def _names_are_unique(cls, classes: list[ClassRule]) -> list[ClassRule]:
        _refuse_twice([rule.name for rule in classes])
        return classes


def _refuse_twice(names: list[str]) -> None:
    bare = [name.strip() for name in names]
    if twice := sorted({name for name in bare if bare.count(name) > 1}):
        raise ValueError(f"class name {twice[0]!r} is used twice; rename one")
