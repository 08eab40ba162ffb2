"""`[privacy]` of the plan: what the federation promises about each hospital's part.

A hospital's own policy may ask for more than the plan does, never for less.
"""

from typing import Literal

from pydantic import Field

from common.plan_dp import PatientPrivacy
from common.plan_federation import Federation
from common.plan_release import Release
from common.plan_section import Positive, Section

AUTO_SITES = 3
"""Fewest sites for which "auto" is on."""
_RANGE = {32: 16.0, 16: 0.25}
"""Mask bits to the range where the plan names none: 16 bits have to be used with care,
at 32 even running statistics of a batch norm fit in."""


class Privacy(Section):
    """`[privacy]`: how much of one hospital's work others get to see."""

    secure_aggregation: Literal["on", "auto", "off"] = "off"
    """On: the server learns the sites' sum only. Auto: on wherever three or more sites
    train by a plan whose algorithm and aggregation need no more than a sum."""
    min_cohort: int = Field(default=3, ge=2)
    """Fewest sites whose sum may be opened."""
    colluders: int = Field(default=0, ge=0)
    """Sites that may side with the server without the others' masks falling: raises the
    threshold of shares to more than (sites + colluders) / 2."""
    mask_bits: Literal[32, 16] = 32
    """Width of a masked number. 16 halves the bytes; what rounding loses stays at the
    site and is added to its next update."""
    mask_range: Positive | None = None
    """Largest change of one parameter in a round; a site cuts off what lies beyond,
    and refuses an update of which more than one number in twenty does. Unset: 16 for 32
    bits, 0.25 for 16."""
    dp: PatientPrivacy | None = None
    """Clips and blurs what is learnt from each patient; unset: nobody does."""
    release: Release | None = None
    """What a model must pass before it is handed out; unset: nothing."""

    @property
    def cut_at(self) -> float:
        """`mask_range`, or what stands for it."""
        return self.mask_range or _RANGE[self.mask_bits]


def is_masked(privacy: Privacy, federation: Federation, sites: int) -> bool:
    """Whether this number of sites trains under masks."""
    if privacy.secure_aggregation == "auto":
        return sites >= AUTO_SITES and not _needs_each_update(federation)
    return privacy.secure_aggregation == "on"


def quorum(privacy: Privacy, federation: Federation, sites: int) -> int:
    """Fewest sites of a round: under masks, at least as many as open a sum.

    Args:
        privacy: `[privacy]`.
        federation: `[federation]`.
        sites: Of the whole run.
    """
    if not is_masked(privacy, federation, sites):
        return federation.min_sites
    return max(federation.min_sites, privacy.min_cohort, privacy.colluders + 1)


def threshold_of(privacy: Privacy, sites: int) -> int:
    """t: shares that open a secret, more than half of the sites and the colluders."""
    return (sites + privacy.colluders) // 2 + 1


def privacy_disagreements(
    privacy: Privacy, federation: Federation, sites: int | None
) -> list[str]:
    """What `[privacy]` does not allow elsewhere in the plan.

    Args:
        privacy: `[privacy]`.
        federation: `[federation]`.
        sites: Of the rehearsal, if the plan has one.
    """
    said = _shut_gates(privacy, federation, sites)
    if privacy.secure_aggregation != "on":
        return said
    if why := _needs_each_update(federation):
        said.append(
            f"privacy.secure_aggregation 'on' does not fit {why}; choose one of the two"
        )
    if sites is not None and sites < privacy.min_cohort:
        said.append(
            f"privacy.min_cohort {privacy.min_cohort} is above the number of sites, "
            f"{sites}; no sum could ever be opened. Take more sites or do without "
            "masks: a sum of two tells each of them the other's update"
        )
    if sites is not None and sites < threshold_of(privacy, sites):
        said.append(
            f"privacy.colluders {privacy.colluders} is too many among {sites} sites; "
            "no sum could ever be opened"
        )
    return said


def _shut_gates(
    privacy: Privacy, federation: Federation, sites: int | None
) -> list[str]:
    """What `[privacy.release]` asks for that no run by the plan could give."""
    gate = privacy.release
    if gate is None:
        return []
    said = []
    if gate.under_masks and not is_masked(privacy, federation, sites or AUTO_SITES):
        said.append(
            "privacy.release.under_masks asks for masks, which the plan does without; "
            "set privacy.secure_aggregation = 'on', or no model could be handed out"
        )
    if gate.max_epsilon is None:
        return said
    if privacy.dp is None:
        said.append(
            "privacy.release.max_epsilon asks for an epsilon, which only [privacy.dp] "
            "gives; add it, or no model could be handed out"
        )
    elif privacy.dp.epsilon is not None and privacy.dp.epsilon > gate.max_epsilon:
        said.append(
            f"privacy.release.max_epsilon {gate.max_epsilon:g} is below what a run may "
            f"cost, privacy.dp.epsilon {privacy.dp.epsilon:g}; no model could be "
            "handed out"
        )
    return said


def _needs_each_update(federation: Federation) -> str | None:
    """What in the plan needs more than the sum of the updates."""
    if federation.algorithm == "scaffold":
        return "federation.algorithm 'scaffold', which sends a second vector"
    if federation.aggregation != "mean":
        return (
            f"federation.aggregation {federation.aggregation!r}, which looks at each "
            "update by itself"
        )
    return None
