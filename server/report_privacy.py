"""What was and wasn't protected in a run, in the words that the report uses.

Read off the rounds and the plan, not off intentions: a round says itself whether the
updates came under masks.
"""

from collections.abc import Sequence

from common.plan import Plan
from server.record import ArmRecord, RoundRecord, RunRecord
from server.report_arms import arm_of
from server.report_plan import plan_of
from server.told_cost import told_by

_CLEAR = (
    "Each hospital's weight update travelled in the clear to the server. An update "
    "holds no image and no label, but whoever can read it may be able to infer "
    "something about the patients it was trained on. Treat the server, and everyone "
    "who can read the updates, as trusted with that."
)
_MASKED = (
    "The updates were masked (secure aggregation): the server learnt their weighted "
    "mean and none of them by itself. That mean, and the model, may still tell "
    "something of the patients. And as nobody could look at a single update, a "
    "hostile or broken hospital could move the model within the bounds of its "
    "numbers."
)
_FEDBN = (
    "The masks did not bind the norm layers that each hospital keeps (FedBN): a "
    "server that lied could have trained those of all hospitals but one to a "
    "standstill, and then read that one's update from a sum."
)
_LARGE = (
    "{site} weighed {share:.0%} of a mean, which so says much of its own update; "
    "federation.weight_cap bounds that."
)
_SOME = (
    "Of {rounds} rounds that counted {masked} were masked (secure aggregation: the "
    "server learnt the mean alone); in the others each hospital's update travelled in "
    "the clear."
)
_MEAN = (
    "The updates were averaged: the mean believes every hospital, so one that is "
    "hostile or broken could turn the model."
)
_ROBUST = (
    "The updates were made into one by {rule}, which bears with a few hostile or "
    "broken hospitals and needs every update in the clear."
)
_NO_DP = (
    "There was no differential privacy: nothing bounds what the model tells of a "
    "patient."
)
_DP = (
    "Patient-level differential privacy at every hospital: epsilon {epsilon:.1f} at "
    "delta {delta:g} for the patients who paid most, the larger of two accountants."
)
_DP_UNTOLD = (
    "The plan asked for patient-level differential privacy, but not every hospital "
    "told what it cost: don't rely on it."
)


def privacy_of(record: RunRecord) -> str:
    """A paragraph on what protected the hospitals and their patients."""
    federated = arm_of(record, "federated")
    plan = plan_of(record)
    if federated is None:
        return f"{_CLEAR} {_NO_DP}"
    return f"{_who_sees(federated, plan)} {_dp(federated, plan)}"


def _who_sees(arm: ArmRecord, plan: Plan | None) -> str:
    counted = [r for r in arm.rounds if r.outcome == "closed"]
    masked = sum(r.updates == "under masks" for r in counted)
    if masked == len(counted) > 0:
        is_fedbn = plan is not None and plan.federation.algorithm == "fedbn"
        said = [_MASKED, *([_FEDBN] if is_fedbn else []), *_largest(counted)]
        return " ".join(said)
    if masked:
        return _SOME.format(rounds=len(counted), masked=masked)
    rule = "mean" if plan is None else plan.federation.aggregation
    how = _MEAN if rule == "mean" else _ROBUST.format(rule=rule.replace("_", " "))
    return f"{_CLEAR} {how}"


def _largest(rounds: Sequence[RoundRecord]) -> list[str]:
    """Which hospital was more than half of a masked mean, if one was."""
    shares = [(row.weight or 0.0, row.site) for r in rounds for row in r.sites]
    share, site = max(shares, default=(0.0, ""))
    return [_LARGE.format(site=site, share=share)] if share > 0.5 else []


def _dp(arm: ArmRecord, plan: Plan | None) -> str:
    if plan is None or plan.privacy.dp is None:
        return _NO_DP
    rows = [row for r in arm.rounds for row in r.sites]
    told = [told_by(rows, site) for site in sorted({row.site for row in rows})]
    known = [max(pair) for pair in told if not isinstance(pair, str)]
    if not known or len(known) < len(told):
        return _DP_UNTOLD
    return _DP.format(epsilon=max(known), delta=plan.privacy.dp.delta)
