"""One round's replies: asked for, checked, folded and dropped, one at a time."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from common.errors import ContributionError
from common.exchange import MaskedUpdate, Roster, TrainOrder, Update
from common.plan import Plan
from server.aggregate import Aggregate, norm_of
from server.asking import Reply, ask
from server.error_sentences import numbered
from server.federation import FEDERATED, Arm, Federation
from server.past import Past
from server.record import SiteRound
from server.robust import open_aggregate
from server.server_step import ServerState

log = logging.getLogger("fedct.run")


class Mean(Protocol):
    """Whatever came of a round."""

    def mean(self) -> Float32[np.ndarray, " P"]:
        """The round's update; see `WeightedMean.mean`."""
        ...


@dataclass(frozen=True, eq=False)
class Folded:
    """What the replies of a round add up to."""

    mean: Mean
    """The mean so far, or what the plan has in its place; reading it may find the round
    below quorum."""
    rows: tuple[SiteRound, ...]
    """One row per site that was asked."""
    control: Float32[np.ndarray, " P"] | None
    """SCAFFOLD: sum of the control changes over the number of sites."""
    lineage: str = ""
    """Under masks: `secagg.lineage.lineage_after` the round."""
    began_anew: bool | None = None
    """Under masks: whether the sites' optimisers began without memory."""
    weight_cap: int | None = None
    """Under masks: the largest weight of a site."""


def fold_round(
    federation: Federation,
    arm: Arm,
    state: ServerState,
    digest: str,
    number: int,
    past: Past,
) -> Folded:
    """Send the orders of a round and fold what comes back.

    Args:
        federation: The sites.
        arm: Says which sites train.
        state: The server's state before the round.
        digest: `digest_of` its model, which the last round's record holds.
        number: The round.
        past: What the sites go on from.
    """
    federation.let_in()
    orders = {
        site: TrainOrder(
            arm.run,
            arm.plan.digest,
            number,
            past.since.get(site, 0),
            state.model,
            digest,
            state.control,
        )
        for site in arm.train
    }
    mean = open_aggregate(
        arm.plan.federation,
        state.model.size,
        min_sites=arm.min_sites,
        folder=arm.folder,
        usual_norm=past.last_norm or norm_of(state.model),
        last_norm=past.last_norm,
        is_baseline=arm.name != FEDERATED,
    )
    control = None if state.control is None else np.zeros_like(state.control)
    rows = []
    for reply in ask(
        federation.line,
        federation.node_of,
        orders,
        Update,
        arm.plan.federation.deadline_s,
    ):
        row = _fold(reply, mean, control, arm, number, federation.rosters)
        log.info("reply", extra={"arm": arm.name, "round": number, "row": row})
        rows.append(row)
        del reply  # its vector is a whole model
    if control is not None:
        control /= np.float32(len(arm.train))
    return Folded(mean, _with_shares(rows, mean), control)


def _fold(
    reply: Reply[Update],
    mean: Aggregate,
    control: Float32[np.ndarray, " P"] | None,
    arm: Arm,
    number: int,
    rosters: Mapping[str, Roster],
) -> SiteRound:
    """Check one reply and add it, or say in its row why not."""
    row = SiteRound(
        site=reply.site,
        outcome=reply.outcome,
        reason=reply.reason,
        bytes_down=reply.bytes_down,
        bytes_up=reply.bytes_up,
    )
    update = reply.answer
    if update is None:
        return row
    try:
        _check(update, arm, number, rosters[reply.site])
        _check_control(update, control)
        check_cost(update, arm.plan)
        norm = mean.add(update.site, update.delta, _weight(update, arm))
    except ContributionError as error:
        return row.model_copy(update={"outcome": "refused", "reason": numbered(error)})
    if control is not None:
        control += update.control_delta
    return row.model_copy(
        update={
            "cases": update.cases,
            "accepted": update.accepted,
            "found": update.found,
            "loss": update.loss,
            "epsilon_pld": update.epsilon_pld,
            "epsilon_prv": update.epsilon_prv,
            "steps": update.steps,
            "update_norm": norm,
            "train_s": update.train_s,
        }
    )


def _weight(update: Update, arm: Arm) -> float:
    federation = arm.plan.federation
    if federation.weights == "uniform":
        return 1.0
    return min(float(update.cases), federation.weight_cap or float(update.cases))


def _check(update: Update, arm: Arm, number: int, roster: Roster) -> None:
    """Whether the answer is one to this order, with the cases of the roll call."""
    said = (update.round, update.plan_digest, update.cases)
    if said != (number, arm.plan.digest, roster.train):
        raise ContributionError(
            f"site {update.site!r} answered for round {update.round}, plan "
            f"{update.plan_digest[:12]}, {update.cases} cases; expected "
            f"round {number}, plan {arm.plan.digest[:12]}, {roster.train} cases"
        )


def check_cost(update: Update | MaskedUpdate, plan: Plan) -> None:
    """Whether an answer tells what DP has cost, as finite numbers.

    Raises:
        ContributionError: It tells nothing by a plan with DP, or what can't be.
    """
    told = {"PLD": update.epsilon_pld, "PRV": update.epsilon_prv}
    for name, epsilon in told.items():
        if epsilon is None and plan.privacy.dp is None:
            continue
        if epsilon is None or not 0.0 <= epsilon < math.inf:
            got = "nothing" if epsilon is None else f"{epsilon:g}"
            raise ContributionError(
                f"site {update.site!r} told {got} as its epsilon by {name}, expected a "
                "finite number of at least 0; is its FedCT of the hub's version?"
            )


def _check_control(update: Update, control: Float32[np.ndarray, " P"] | None) -> None:
    change = update.control_delta
    if (change is None) != (control is None):
        raise ContributionError(
            f"site {update.site!r} sent a control variate or left it out against the "
            "plan's algorithm"
        )
    if change is None:
        return
    if change.shape != update.delta.shape or not np.isfinite(change).all():
        raise ContributionError(
            f"site {update.site!r} sent a control variate that is not finite or does "
            "not fit the model"
        )


def _with_shares(rows: list[SiteRound], mean: Aggregate) -> tuple[SiteRound, ...]:
    shares = mean.weights
    return tuple(
        row.model_copy(update={"weight": shares.get(row.site, 0.0)}) for row in rows
    )
