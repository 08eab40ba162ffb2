"""`[privacy.release]` of the plan: what a model must pass before it is handed out.

The gate is closed unless shown open: a figure that was not measured does not pass.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.plan_section import Positive, Section


class Release(Section):
    """`[privacy.release]`: the gate in front of `model/`."""

    under_masks: bool = False
    """Whether every round that counted must have been under masks."""
    max_epsilon: Positive | None = None
    """Most that the run may have cost a patient of any site, by the larger of two
    accountants; a site that leaves it out of an update, or tells less than before,
    fails."""
    max_membership_auc: Annotated[float, Field(ge=0.5, le=1.0)] | None = None
    """How well training cases may be told from test cases by the loss, with the room
    that few cases leave to chance. It can be measured in a rehearsal only; elsewhere
    nothing is handed out."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        limits = (self.max_epsilon, self.max_membership_auc)
        if not self.under_masks and limits == (None, None):
            raise ValueError(
                "expected under_masks, max_epsilon or max_membership_auc; leave the "
                "table out for no gate"
            )
        return self
