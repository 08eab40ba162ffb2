"""The set-up of a masked round: everybody's keys, then everybody's sealed shares.

Two small turns. They are needed for a run's first round and whenever the sites change;
in between, keys and shares for the next round travel with the turns of this one. A site
that gives its keys but no shares would leave masks that nobody can take off again, so
the set-up is then begun anew without it.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from common.errors import ContributionError
from common.exchange import KeysOrder, RoundKeys, SealedShares, SharesOrder
from common.secagg.keys import KeySet, check_announcement, key_set, unpack
from common.secagg.sharing import SEALED_BYTES
from common.secagg.terms import Terms, masked_weight, terms_of
from server.asking import Reply, ask
from server.error_sentences import numbered
from server.federation import Arm, Federation
from server.record import SiteRound
from server.standing import ReachesByFile

log = logging.getLogger("fedct.run")

_TURN_S = 60.0
"""For a small turn, besides the time for which a lost site is waited for."""


@dataclass(frozen=True, eq=False)
class SetUp:
    """What a masked round begins with."""

    keys: KeySet
    """Of all who take part."""
    sealed: Mapping[str, Mapping[str, bytes]]
    """Receiver to sender to sealed share."""


@dataclass
class LeftOut:
    """Why sites do not take part, by site."""

    rows: dict[str, SiteRound] = field(default_factory=dict)

    def note(self, reply: Reply[RoundKeys] | Reply[SealedShares]) -> None:
        """Remember a reply that was none."""
        why = SiteRound(site=reply.site, outcome=reply.outcome, reason=reply.reason)
        self.refuse(reply.site, why)

    def refuse(self, site: str, row: SiteRound) -> None:
        """Remember why a site does not take part."""
        self.rows[site] = row
        log.warning("not set up", extra={"site": site, "why": row.reason})


def turn_s(arm: Arm) -> float:
    """Seconds for a small turn."""
    federation = arm.plan.federation
    return min(federation.deadline_s, _TURN_S + federation.rejoin_s)


def can_mask(federation: Federation, arm: Arm) -> list[str]:
    """The arm's sites that are connected by a live line, in order of name.

    A site that is reached by files answers from a new process each time, which has no
    secrets of the turn before.
    """
    grid = federation.line.grid
    by_file = grid.by_file() if isinstance(grid, ReachesByFile) else frozenset()
    nodes = federation.node_of
    return sorted(s for s in arm.train if s in nodes and nodes[s] not in by_file)


def set_up(
    federation: Federation,
    arm: Arm,
    number: int,
    size: int,
    left_out: LeftOut,
    among: Collection[str],
    cap: int,
) -> SetUp:
    """Gather keys and shares for a round.

    Args:
        federation: The sites.
        arm: Says which of them train.
        number: The round.
        size: P, the length of an update.
        left_out: Is told who does not take part, and why.
        among: Sites that may take part.
        cap: Largest weight so far, which stays though its site goes: sites give one
            vector a round, and go on from what rounding left over under one cap only.

    Raises:
        ContributionError: Too few sites can be masked together; `code` is "cohort".
    """
    sites = [s for s in can_mask(federation, arm) if s in among]
    rosters, plan = federation.rosters, arm.plan.federation
    cap = max([cap, *(masked_weight(plan, rosters[s].train) for s in sites)])
    is_first = True
    while True:
        terms = _terms(federation, arm, number, size, sites, cap)
        keys = _gather_keys(federation, arm, terms, left_out)
        sealed = _gather_shares(federation, arm, keys, left_out)
        if len(sealed) == len(keys.sites):
            return SetUp(keys, delivered(keys, sealed))
        # A site that was started again between the turns can be had, with new keys.
        again = {s for s, row in left_out.rows.items() if row.outcome == "failed"}
        here = can_mask(federation, arm) if is_first else []
        sites = sorted({*sealed, *again.intersection(here, among)})
        is_first = False


def _terms(
    federation: Federation, arm: Arm, number: int, size: int, sites: list[str], cap: int
) -> Terms:
    rosters, plan = federation.rosters, arm.plan
    members = {site: rosters[site].key or "" for site in sites}
    return terms_of(
        plan.privacy,
        arm.run,
        number,
        plan.digest,
        members,
        cap,
        size,
        len(arm.train),
    )


def _gather_keys(
    federation: Federation, arm: Arm, terms: Terms, left_out: LeftOut
) -> KeySet:
    """Everybody's signed keys; who gives none is left out."""
    orders = {
        site: KeysOrder(
            run=terms.run,
            plan_digest=terms.plan_digest,
            round=terms.round,
            members=dict(terms.members),
            weight_cap=terms.weight_cap,
            size=terms.size,
            slots=terms.slots,
        )
        for site in terms.sites
    }
    packed = {}
    nodes, line = federation.node_of, federation.line
    for reply in ask(line, nodes, orders, RoundKeys, turn_s(arm)):
        if reply.answer is None:
            left_out.note(reply)
            continue
        try:
            check_announcement(terms, reply.site, unpack(reply.answer.keys))
            packed[reply.site] = reply.answer.keys
        except ContributionError as error:
            why = numbered(error)
            row = SiteRound(site=reply.site, outcome="refused", reason=why)
            left_out.refuse(reply.site, row)
    return key_set(terms, packed)


def _gather_shares(
    federation: Federation, arm: Arm, keys: KeySet, left_out: LeftOut
) -> dict[str, Mapping[str, bytes]]:
    """Sender to receiver to sealed share, of those who gave what they should."""
    terms = keys.terms
    packed = {site: one.pack() for site, one in keys.announcements.items()}
    orders = {
        site: SharesOrder(terms.run, terms.plan_digest, terms.round, packed)
        for site in keys.sites
    }
    sealed = {}
    nodes, line = federation.node_of, federation.line
    for reply in ask(line, nodes, orders, SealedShares, turn_s(arm)):
        if reply.answer is None:
            left_out.note(reply)
        elif is_whole(keys, reply.site, reply.answer.sealed):
            sealed[reply.site] = reply.answer.sealed
        else:
            row = SiteRound(
                site=reply.site,
                outcome="refused",
                reason=f"site {reply.site!r} sent shares that are not one for each "
                "other site, of the right size",
            )
            left_out.refuse(reply.site, row)
    return sealed


def is_whole(keys: KeySet, sender: str, sealed: Mapping[str, bytes]) -> bool:
    """Whether there is one sealed share for each other site."""
    others = {site for site in keys.sites if site != sender}
    return set(sealed) == others and all(
        len(one) == SEALED_BYTES for one in sealed.values()
    )


def delivered(
    keys: KeySet, sealed: Mapping[str, Mapping[str, bytes]]
) -> dict[str, dict[str, bytes]]:
    """By receiver what came by sender."""
    return {
        receiver: {s: sealed[s][receiver] for s in keys.sites if s != receiver}
        for receiver in keys.sites
    }
