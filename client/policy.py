"""`[policy]` of `client.toml`: what a hospital lets happen, whatever a plan asks for.

The resident service reads it anew for every order and checks it twice: before any work
is begun, and again before the answer leaves, so that what the engineer changed
meanwhile counts. Plans and servers can't touch it. Each rule has a name, under which
the hub hears of a no (`common.error_numbers`).

Not covered here: which plans are approved (`client.desk`), what a message may hold
(`client.egress`).
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from datetime import datetime, time
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.errors import PolicyError
from common.plan import Plan
from common.plan_privacy import AUTO_SITES, is_masked

AnswerKind = Literal["roster", "update", "judgement"]
"""What may leave: who this site is, what it learnt, how good a model is on its data."""
EVERY_KIND: tuple[AnswerKind, ...] = ("roster", "update", "judgement")
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Policy(BaseModel):
    """`[policy]`: what the hospital lets happen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    approve: Literal["ask", "auto", "listed"] = "ask"
    """Whether a plan waits for the engineer ("ask"), trains unseen ("auto"), or has to
    be one of `plans` ("listed")."""
    plans: tuple[Digest, ...] = ()
    """Hashes of plans that need no other approval."""
    min_sites: Annotated[int, Field(ge=1)] = 1
    """Fewest sites that a plan must need for a round to count, and for a masked sum to
    be opened."""
    secure_aggregation: bool = False
    """Whether an update leaves only under masks."""
    max_rounds: Annotated[int, Field(ge=1)] | None = None
    """Most rounds of a run."""
    max_runs: Annotated[int, Field(ge=1)] = 1
    """Most runs by one plan: each is a look at the images from other models, and two
    among different sites tell apart what masks hide."""
    hours: tuple[str, ...] = ()
    """When orders are begun, by this machine's clock, like "18:00-07:00"; one that was
    begun in time is finished. Empty: at any hour."""
    max_update_norm: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Largest Euclidean norm of an update."""
    answers: tuple[AnswerKind, ...] = EVERY_KIND
    """Which kinds of answer may leave."""
    counts: Literal["rounded", "exact"] = "rounded"
    """Whether numbers of cases and series are told to the nearest ten, at least ten; or
    as they are."""
    min_judged: Annotated[int, Field(ge=1)] = 1
    """Fewest held-out cases over which sums of metrics leave."""
    dp_epsilon: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """What all training here may ever cost each patient, over all runs; plans without
    differential privacy are refused then (`client.ledger`)."""
    dp_delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Chance of losing more than dp_epsilon."""

    @field_validator("hours")
    @classmethod
    def _are_spans(cls, hours: tuple[str, ...]) -> tuple[str, ...]:
        for span in hours:
            if not _HOURS.fullmatch(span) or span[:5] == span[6:]:
                raise ValueError(f"{span!r}: expected hours like 18:00-07:00")
        return hours

    @model_validator(mode="after")
    def _lists_something(self) -> "Policy":
        if self.approve == "listed" and not self.plans:
            raise ValueError('approve "listed" needs at least one hash in plans')
        return self

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of its canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def objections(policy: Policy, plan: Plan) -> Iterator[PolicyError]:
    """What a policy has against a plan, rule by rule."""
    federation, privacy = plan.federation, plan.privacy
    if not _is_listed(policy, plan):
        yield _unlisted(plan)
    if policy.max_rounds is not None and federation.rounds > policy.max_rounds:
        yield _no(
            "rounds",
            f"a plan of {federation.rounds} rounds",
            f"at most {policy.max_rounds} (policy.max_rounds)",
        )
    masked = is_masked(privacy, federation, max(policy.min_sites, AUTO_SITES))
    cohort = privacy.min_cohort if masked else federation.min_sites
    if cohort < policy.min_sites:
        yield _no(
            "cohort",
            f"a plan that is content with {cohort} sites",
            f"{policy.min_sites} or more (policy.min_sites)",
        )
    if policy.secure_aggregation and not masked:
        yield _no(
            "masks",
            "a plan that does without secure aggregation",
            "one with it (policy.secure_aggregation)",
        )
    if policy.dp_epsilon is not None and privacy.dp is None:
        yield _no(
            "dp",
            "a plan that does without differential privacy",
            "one with [privacy.dp] (policy.dp_epsilon)",
        )


def check_plan(policy: Policy, plan: Plan) -> None:
    """Refuse a plan that the policy has something against.

    Raises:
        PolicyError: `code` names the rule.
    """
    for objection in objections(policy, plan):
        raise objection


def check_listed(policy: Policy, plan: Plan) -> None:
    """Refuse a plan where only listed ones are looked at, and this is none.

    Raises:
        PolicyError: `code` is "approval".
    """
    if not _is_listed(policy, plan):
        raise _unlisted(plan)


def check_round(plan: Plan, number: int) -> None:
    """Refuse a round that the approved plan does not have.

    Raises:
        PolicyError: `code` is "rounds".
    """
    if not 1 <= number <= plan.federation.rounds:
        raise _no(
            "rounds",
            f"an order for round {number}",
            f"one of the {plan.federation.rounds} of the plan",
        )


def check_runs(policy: Policy, run: str, answered: Collection[str]) -> None:
    """Refuse to answer in one run too many by a plan.

    Args:
        policy: The hospital's.
        run: Id of the order's run.
        answered: Ids of the plan's runs that were answered in here.

    Raises:
        PolicyError: `code` is "runs".
    """
    if run not in answered and len(answered) >= policy.max_runs:
        raise _no(
            "runs",
            f"another run by a plan that had {len(answered)}",
            f"at most {policy.max_runs} (policy.max_runs); a plan with another "
            "plan.seed is another plan",
        )


def check_hours(policy: Policy, now: datetime) -> None:
    """Refuse to begin with an order outside the hospital's hours.

    Args:
        policy: The hospital's.
        now: This machine's clock, local time.

    Raises:
        PolicyError: `code` is "hours".
    """
    if policy.hours and not any(_within(span, now.time()) for span in policy.hours):
        raise _no(
            "hours", f"an order at {now:%H:%M}", f"one in {', '.join(policy.hours)}"
        )


def check_kind(policy: Policy, kind: AnswerKind) -> None:
    """Refuse an answer of a kind that may not leave.

    Raises:
        PolicyError: `code` is "kind".
    """
    if kind not in policy.answers:
        raise _no("kind", f"an answer of kind {kind!r}", "one of policy.answers")


def check_masks(policy: Policy, plan: Plan, sites: int) -> None:
    """Refuse an order for an update in the clear where only masked ones may leave.

    Whether "auto" means masks follows from the sites that the plan was approved with,
    not from what a server makes of it at the moment.

    Args:
        policy: The hospital's.
        plan: The plan.
        sites: How many it was approved with; 0: it is not known, and may be enough.

    Raises:
        PolicyError: `code` is "masks".
    """
    among = sites or AUTO_SITES
    if policy.secure_aggregation or is_masked(plan.privacy, plan.federation, among):
        raise _no(
            "masks",
            "an update in the clear",
            "one under masks (the plan's privacy.secure_aggregation, or the policy's)",
        )


def check_norm(policy: Policy, norm: float) -> None:
    """Refuse an update that is too large to leave.

    Raises:
        PolicyError: `code` is "clip".
    """
    most = policy.max_update_norm
    if most is not None and not norm <= most:
        raise _no(
            "clip",
            f"an update of norm {norm:.4g}",
            f"at most {most:g} (policy.max_update_norm)",
        )


def _is_listed(policy: Policy, plan: Plan) -> bool:
    return policy.approve != "listed" or plan.digest in policy.plans


def _unlisted(plan: Plan) -> PolicyError:
    return _no("approval", f"plan {plan.digest[:12]}", "one of policy.plans")


def _within(span: str, now: time) -> bool:
    begin, end = (time.fromisoformat(text) for text in span.split("-"))
    if begin < end:
        return begin <= now < end
    return now >= begin or now < end  # over midnight


def _no(rule: str, got: str, want: str) -> PolicyError:
    return PolicyError(
        f"site's policy refused {got}, expected {want}; its engineer decides, in "
        "client.toml",
        code=rule,
    )
