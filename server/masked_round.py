"""A round under masks: the replies are added up unread, and only their sum is opened.

Steady state has two turns. The training order carries the shares that others sealed for
this site, and comes back as a masked vector with the site's keys for the next round.
The order to open carries the survivors and everybody's next keys, and comes back as
shares to open with and sealed shares for the next round. If somebody was lost, there is
one more small turn: the survivors first sign the set that they were told, and release
shares when they have seen that enough others were told the same.

Memory is one accumulator and one reply, however many sites take part. Sums modulo 2^32
do not depend on the order of their terms, so nor does the model.

All optimisers of a round go on from the same memory, or from none (`server.past`).

Not covered here: an update that is hostile but well-formed. Norms and values of one
update are not to be seen any more; the site cuts off what is out of the plan's range.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float32

from common.errors import ContributionError, FedctError, QuorumError
from common.exchange import (
    MaskedUpdate,
    Opening,
    OpenOrder,
    TrainOrder,
    fresh_nonce,
)
from common.secagg.fixed_point import Masked, decode, length_of, type_of
from common.secagg.keys import KeySet, key_set
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.rounds import check_agreement, open_sum
from common.secagg.terms import masked_weight
from server.asking import Reply, ask
from server.error_sentences import numbered
from server.federation import Arm, Federation
from server.folding import Folded, check_cost
from server.masked_setup import (
    LeftOut,
    SetUp,
    can_mask,
    delivered,
    is_whole,
    set_up,
    turn_s,
)
from server.past import Past
from server.record import SiteRound
from server.server_step import ServerState

log = logging.getLogger("fedct.run")

_WAITS = "site was not in the last sum, and waits for a round in which all begin anew"


@dataclass(frozen=True, eq=False)
class _Opened:
    """What a round came to: a mean, or why there is none."""

    result: Float32[np.ndarray, " P"] | FedctError

    def mean(self) -> Float32[np.ndarray, " P"]:
        """The weighted mean of the survivors' updates.

        Raises:
            QuorumError: Too few sites for a sum; nothing was opened.
            ContributionError: The sum could not be opened.
        """
        if isinstance(self.result, FedctError):
            raise self.result
        return self.result


@dataclass(eq=False)
class _Sum:
    """The masked vectors so far."""

    keys: KeySet
    total: Masked
    lineage: str
    """After the round; its masks hang on it."""
    next_keys: dict[str, bytes] = field(default_factory=dict)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in it, in order of name."""
        return tuple(sorted(self.next_keys))


class MaskedRounds:
    """The masked rounds of one arm: keeps what was set up for the next."""

    def __init__(self, federation: Federation, arm: Arm) -> None:
        """Begin with nothing set up.

        Args:
            federation: The sites.
            arm: Says which of them train.
        """
        self._federation = federation
        self._arm = arm
        self._ready: SetUp | None = None

    def fold(self, state: ServerState, digest: str, number: int, past: Past) -> Folded:
        """Ask for masked updates and open their sum; see `folding.fold_round`."""
        self._federation.let_in()
        rows: dict[str, SiteRound] = {}
        here = can_mask(self._federation, self._arm)
        fewest = max(self._arm.min_sites, self._arm.plan.privacy.min_cohort)
        among = past.may_take_part(self._arm.train, here, fewest)
        ready, self._ready = self._ready, None
        if ready is not None and not self._fits(ready, number, among):
            ready = None
        try:
            one = self._gathered(ready, state, digest, number, past, among, rows)
            opened = _Opened(self._open(one))
        except (QuorumError, ContributionError) as error:
            return Folded(_Opened(error), self._all_rows(rows), None)
        return Folded(
            opened,
            self._all_rows(rows),
            None,
            lineage=one.lineage,
            began_anew=one.lineage == lineage_after(FRESH, number, digest),
            weight_cap=one.keys.terms.weight_cap,
        )

    def _gathered(
        self,
        ready: SetUp | None,
        state: ServerState,
        digest: str,
        number: int,
        past: Past,
        among: frozenset[str],
        rows: dict[str, SiteRound],
    ) -> _Sum:
        """Enough masked vectors to open their sum.

        If too many sites were lost, those that failed are given one more chance, with
        new keys: a site whose process was started again has no others. Nothing was
        opened yet, and a repeated round trains the same updates, from the same memory;
        who has another one does not join the second try.

        Raises:
            QuorumError: There are too few.
            ContributionError: Too few sites could be set up.
        """
        lineage, cap = None, past.weight_cap or 1
        for is_last in (False, True):
            self._note_waiting(among, rows)
            if ready is None:
                given = self._federation, self._arm, number, state.model.size
                ready = set_up(*given, LeftOut(rows), among, cap)
            cap = ready.keys.terms.weight_cap
            if lineage is None and past.goes_on(ready.keys):
                lineage, among = past.lineage, past.in_last_sum
            lineage = lineage or FRESH
            one = self._gather(ready, state, digest, past.since, lineage, rows)
            fewest = max(one.keys.terms.fewest, self._arm.min_sites)
            survivors = len(one.survivors)
            if survivors >= fewest:
                break
            failed = sum(rows[s].outcome == "failed" for s in among.intersection(rows))
            if is_last or survivors + failed < fewest:
                raise QuorumError(
                    f"round has {survivors} masked updates, expected at least "
                    f"{fewest}; nothing was opened, and the model stays as it was"
                )
            log.warning("set up anew", extra={"round": number, "failed": failed})
            ready = None
        return one

    def _note_waiting(self, among: frozenset[str], rows: dict[str, SiteRound]) -> None:
        """Say of sites that are here and may not take part why."""
        for site in set(can_mask(self._federation, self._arm)) - among - rows.keys():
            rows[site] = SiteRound(site=site, outcome="failed", reason=_WAITS)

    def _fits(self, ready: SetUp, number: int, among: frozenset[str]) -> bool:
        """Whether what was set up is for this round, and for all who may take part."""
        here = [s for s in can_mask(self._federation, self._arm) if s in among]
        return ready.keys.terms.round == number and list(ready.keys.sites) == here

    def _all_rows(self, rows: Mapping[str, SiteRound]) -> tuple[SiteRound, ...]:
        """A row for each of the arm's sites, with its share of the mean."""
        absent = {"outcome": "failed", "reason": "site took no part in the round"}
        whole = [
            rows[s] if s in rows else SiteRound.model_validate({"site": s, **absent})
            for s in self._arm.train
        ]
        weights = {
            row.site: self._weight(row.site)
            for row in whole
            if row.outcome == "accepted"
        }
        total = sum(weights.values())
        return tuple(
            row.model_copy(update={"weight": weights[row.site] / total})
            if row.site in weights
            else row
            for row in whole
        )

    def _weight(self, site: str) -> int:
        cases = self._federation.rosters[site].train
        return masked_weight(self._arm.plan.federation, cases)

    # --- first turn: masked vectors ---------------------------------------------------

    def _gather(
        self,
        ready: SetUp,
        state: ServerState,
        digest: str,
        since: Mapping[str, int],
        lineage: str,
        rows: dict[str, SiteRound],
    ) -> _Sum:
        """Everybody's masked vectors, added up; `rows` is told of each."""
        terms, arm = ready.keys.terms, self._arm
        orders = {
            site: TrainOrder(
                run=terms.run,
                plan_digest=terms.plan_digest,
                round=terms.round,
                state_round=since.get(site, 0),
                model=state.model,
                model_digest=digest,
                sealed=ready.sealed[site],
                lineage=lineage,
            )
            for site in ready.keys.sites
        }
        total: Masked = np.zeros(length_of(terms), dtype=type_of(terms))
        one = _Sum(ready.keys, total, lineage_after(lineage, terms.round, digest))
        nodes, line = self._federation.node_of, self._federation.line
        wait_s = arm.plan.federation.deadline_s
        for reply in ask(line, nodes, orders, MaskedUpdate, wait_s):
            row = self._add(one, reply)
            about = {"arm": arm.name, "round": terms.round, "row": row}
            log.info("reply", extra=about)
            rows[reply.site] = row
            del reply  # its vector is a whole model
        return one

    def _add(self, one: _Sum, reply: Reply[MaskedUpdate]) -> SiteRound:
        """Add one vector to the sum, or say in its row why not."""
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
        wanted = one.total.dtype, one.total.shape
        if (update.masked.dtype, update.masked.shape) != wanted:
            got = f"{update.masked.dtype}{list(update.masked.shape)}"
            why = f"site {reply.site!r} sent {got}, expected {wanted[0]}{[*wanted[1]]}"
            return row.model_copy(update={"outcome": "refused", "reason": why})
        try:
            check_cost(update, self._arm.plan)
        except ContributionError as error:
            why = numbered(error)
            return row.model_copy(update={"outcome": "refused", "reason": why})
        np.add(one.total, update.masked, out=one.total)
        one.next_keys[reply.site] = update.next_keys
        return row.model_copy(
            update={
                "cases": self._federation.rosters[reply.site].train,
                "accepted": update.accepted,
                "found": update.found,
                "loss": update.loss,
                "epsilon_pld": update.epsilon_pld,
                "epsilon_prv": update.epsilon_prv,
                "steps": update.steps,
                "train_s": update.train_s,
            }
        )

    # --- second turn: open the sum ----------------------------------------------------

    def _open(self, one: _Sum) -> Float32[np.ndarray, " P"]:
        """The mean in the sum, after all masks were taken off."""
        terms, survivors = one.keys.terms, one.survivors
        released = self._released(one)
        open_sum(one.keys, one.lineage, survivors, released, one.total)
        opened = decode(terms, one.total, len(survivors))
        weight = sum(self._weight(site) for site in survivors)
        if opened.weight != weight:
            raise ContributionError(
                f"the survivors' weights add up to {opened.weight}, expected {weight} "
                "as they said at the roll call; a site masked another weight",
                code="weights",
            )
        return opened.mean

    def _released(self, one: _Sum) -> dict[str, Mapping[str, bytes]]:
        """Site to the shares that it released."""
        terms, survivors = one.keys.terms, one.survivors
        after = self._next_keys(one)
        order = OpenOrder(terms.run, terms.plan_digest, terms.round, survivors)
        if survivors != one.keys.sites:
            told = self._ask(dict.fromkeys(survivors, order))
            agreed = {site: said.agreement for site, said in told.items()}
            check_agreement(one.keys, survivors, agreed)
            order = replace(order, agreed=agreed)
        elif after is not None:
            packed = {site: k.pack() for site, k in after.announcements.items()}
            order = replace(order, next_keys=packed)
        said = self._ask(dict.fromkeys(survivors, order))
        sealed = {site: opening.sealed for site, opening in said.items()}
        if (
            after is not None
            and set(sealed) == set(after.sites)
            and all(is_whole(after, site, sealed[site]) for site in after.sites)
        ):
            self._ready = SetUp(after, delivered(after, sealed))
        return {site: opening.shares for site, opening in said.items()}

    def _ask(self, orders: Mapping[str, OpenOrder]) -> dict[str, Opening]:
        """Who answered to an order to open, and what."""
        fresh = {site: replace(o, nonce=fresh_nonce()) for site, o in orders.items()}
        nodes, line = self._federation.node_of, self._federation.line
        found = {}
        for reply in ask(line, nodes, fresh, Opening, turn_s(self._arm)):
            if reply.answer is None:
                about = {"site": reply.site, "why": reply.reason}
                log.warning("did not open", extra=about)
            else:
                found[reply.site] = reply.answer
        return found

    def _next_keys(self, one: _Sum) -> KeySet | None:
        """Keys for the next round; none if the sites change, or one can't be used."""
        terms = one.keys.terms
        if one.survivors != terms.sites:
            return None
        try:
            return key_set(replace(terms, round=terms.round + 1), one.next_keys)
        except ContributionError as error:
            log.warning("set up anew", extra={"why": str(error)})
            return None
