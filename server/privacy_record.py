"""What is known of a finished run's privacy: the content of `privacy.json`.

It stands beside the model and says what was on, what was measured and what was not.
Numbers and site names only. What tells of one hospital is a range.
"""

import math
from typing import Literal

from server.record import Record


class DpRecord(Record):
    """What patient-level DP has cost, as the sites told."""

    delta: float
    """Chance of losing more."""
    clip_norm: float
    """Largest norm of one patient's gradient."""
    epsilon_pld: float | None
    """The largest over the sites, by privacy loss distributions; unset: one of them
    left it out of an update that was accepted, or told less than before."""
    epsilon_prv: float | None
    """The same by the PRV accountant."""

    @property
    def epsilon(self) -> float | None:
        """The larger of both: what may be published; unset unless both are sound."""
        both = (self.epsilon_pld, self.epsilon_prv)
        known = [e for e in both if e is not None and 0.0 <= e < math.inf]
        return max(known) if len(known) == len(both) else None


class OneRunRecord(Record):
    """The DP step of this installation, audited on canaries (`deploy.dp_audit`)."""

    claimed: float
    """Epsilon by accounting."""
    bound: float
    """Epsilon is at least this, with confidence 0.95."""
    bound_with_bug: float
    """What it shows with a tenth of the noise; below the claim it proves little."""
    canaries: int
    """How many."""


class MembershipRecord(Record):
    """Membership inference by the loss of the final model."""

    auc: float
    """0.5 is guessing."""
    found: float
    """Share of members found while one other in a hundred is accused."""
    members: int
    """Training cases."""
    others: int
    """Test cases."""


WORKS = 0.9
"""Likeness that a control must reach, for its attack to say anything."""
FULL_STEPS = 400
"""Of an attack whose time was enough."""


class InversionRecord(Record):
    """Gradient inversion: a phantom's picture back from one step, by its likeness.

    Likeness is SSIM (Wang 2004): 1 is the picture itself. A low one says that this
    attack was held up; it is no guarantee against a better one.
    """

    control: float
    """From the clear gradient of a network on which the attack is known to work; below
    `WORKS` the attack failed, and the other figures prove nothing."""
    chance: float
    """The most like of other patients' pictures, as many as lie in the sum."""
    defended: float | None
    """The control's network, by what the hub got in this run: a sum over sites, with
    the noise of DP, or both. Unset: nothing stood in between."""
    network: float
    """The plan's own network, by what the hub got in this run."""
    steps: int
    """Fewest steps that an attack took; below `FULL_STEPS` its time was up."""
    sites: int
    """Whose pictures lie in the sum attacked, one of each, eight at the most; 1: one
    site's by itself, in the clear."""
    noise_multiplier: float | None
    """Noise of DP, in clip norms; unset: no DP."""

    @property
    def was_cut(self) -> bool:
        """Whether an attack's time was up before it was done."""
        return self.steps < FULL_STEPS

    @property
    def works(self) -> bool:
        """Whether the attack got its control."""
        return self.control >= WORKS


class SiteShare(Record):
    """One hospital's part, as a range."""

    site: str
    """Name of the site."""
    share: str
    """Its share of the result, the mean over the rounds that counted: "20 to 30 %"."""
    epsilon: str
    """What the run cost its patients: "3 to 4"; "not told" if it left that out of an
    update that was accepted; "fell" if it ever told less than before."""


class PrivacyRecord(Record):
    """The content of `privacy.json`."""

    record_version: Literal[1] = 1
    plan_digest: str
    """Canonical hash of the plan."""
    model_digest: str
    """sha256 of the final model's parameters."""
    masked_rounds: int
    """Rounds that counted in which the server learnt only the sum of the updates."""
    rounds: int
    """Rounds that counted."""
    aggregation: str
    """`federation.aggregation` of the plan."""
    dp: DpRecord | None
    """Unset: no noise, so no bound on what the model tells of a patient."""
    one_run: OneRunRecord | None
    """Unset: not audited."""
    membership: MembershipRecord | None
    """Unset: not measured; a hub has no patients, only a rehearsal has."""
    inversion: InversionRecord | None = None
    """Unset: not measured."""
    shares: list[SiteShare]
    """In order of name."""
    gated: bool = False
    """Whether the plan has a gate, `[privacy.release]`."""
    refused: list[str]
    """What of the gate the model fails; empty: it may be handed out."""
