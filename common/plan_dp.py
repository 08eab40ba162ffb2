"""`[privacy.dp]` of the plan: patient-level DP-SGD at every site.

The unit is the patient: what a site sends changes little in distribution when all of
one training patient's images are taken away or put in. The plan fixes what everybody
may know: the clip, the noise or the epsilon it is computed from, and delta. What that
costs differs from hospital to hospital, because a patient of a small hospital is drawn
more often; each keeps its own ledger (`client.ledger`).
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from common.accounting import LEAST_NOISE, MOST_NOISE
from common.plan_section import Count, Section


class PatientPrivacy(Section):
    """`[privacy.dp]`: how well a training patient is hidden in what a site learns."""

    noise_multiplier: Annotated[float, Field(ge=LEAST_NOISE, le=MOST_NOISE)] | None = (
        None
    )
    """Standard deviation of the noise on the sum of a step, in clip norms; the same at
    all sites, so epsilon differs with the number of their patients. Beyond its range
    nobody could say what it costs."""
    epsilon: Annotated[float, Field(ge=0.1, allow_inf_nan=False)] | None = None
    """Instead of noise_multiplier: what the whole run may cost each patient. Each site
    computes its noise from this and its own number of patients, in the same range."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Chance of losing more than epsilon; a site with 1 / delta patients or more
    refuses."""
    clip_norm: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """Largest Euclidean norm of one patient's gradient in a step."""
    patches_per_patient: Count = 1
    """Patches of each patient that is drawn for a step, out of all of his cases; their
    mean gradient is clipped once. With DP, training.batch_size is the expected number
    of patients in a step, and an epoch counts patients."""

    @model_validator(mode="after")
    def _has_one_strength(self) -> Self:
        given = (self.noise_multiplier is not None) + (self.epsilon is not None)
        if given != 1:
            got = "neither" if given == 0 else "both"
            raise ValueError(f"got {got} of noise_multiplier and epsilon, expected one")
        return self


def dp_disagreements(
    dp: PatientPrivacy | None, *, norm: str, amp: str, max_grad_norm: float | None
) -> list[str]:
    """What DP does not allow elsewhere in the plan.

    Args:
        dp: Unset: nothing is asked for.
        norm: `model.norm`.
        amp: `training.amp`.
        max_grad_norm: `training.max_grad_norm`.
    """
    if dp is None:
        return []
    said = []
    if norm == "batch":
        said.append(
            "model.norm 'batch' mixes the patients of a step, so that no one's share "
            "of it can be clipped; privacy.dp needs 'instance' or 'group'"
        )
    if amp == "fp16":
        said.append(
            "training.amp 'fp16' skips steps as the data makes its gradients overflow, "
            "which no noise covers; privacy.dp needs 'off' or 'bf16'"
        )
    if max_grad_norm is not None:
        said.append(
            "training.max_grad_norm clips what privacy.dp has clipped by the patient "
            "already; leave it out and set privacy.dp.clip_norm"
        )
    return said
