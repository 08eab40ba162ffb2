"""A site's masks: its secrets of the rounds at hand, and what it will do with them.

    KeysOrder    make two key pairs and a seed, sign their public parts
    SharesOrder  check everybody's keys, share the secrets out, sealed
    TrainOrder   open the shares that came; after training, mask the update
    OpenOrder    for the sites in the sum, give shares of their seeds; for the others,
                 of their mask keys; once, and never both of one site

Secrets live in this process alone. A site that is started again in mid-round has lost
them, and counts as lost for that round; the next set-up has it back.

Not covered here: training, and whether an update may leave at all (`client.rules`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jaxtyping import Float32

from client.draws import secret_rounding
from client.lineage import begins_anew, lineage_of
from client.mask_memory import (
    check_group,
    load_carried,
    note_masked,
    note_opening,
    save_carried,
)
from client.peers import check_peers
from client.state import states_of
from common.errors import ContributionError
from common.exchange import (
    KeysOrder,
    MaskedUpdate,
    Opening,
    OpenOrder,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.plan import Plan
from common.plan_privacy import is_masked
from common.secagg.fixed_point import encode
from common.secagg.keys import (
    Announcement,
    KeySet,
    RoundSecrets,
    announce,
    key_set,
)
from common.secagg.rounds import (
    check_agreement,
    check_survivors,
    mask,
    release,
    sign_survivors,
)
from common.secagg.sharing import Shares, deal, open_shares
from common.secagg.terms import Terms, masked_weight, terms_of
from common.signing import public_text

_MOST_ROUNDS = 4
"""Rounds held at a time: the one at hand and the next, of two runs."""


@dataclass(eq=False)
class _Round:
    """One round on its way from keys to opening."""

    terms: Terms
    colluders: int
    """The plan's."""
    said: Announcement
    made: RoundSecrets | None
    """Gone once the update is masked: this site needs them no more."""
    keys: KeySet | None = None
    dealt: Mapping[str, bytes] = field(default_factory=dict)
    held: dict[str, Shares] = field(default_factory=dict)
    carried: Float32[np.ndarray, " P"] | None = None
    """16 bits: what rounding has lost so far, from `answered` until it is masked."""
    lineage: str | None = None
    """`lineage_of` the order that was masked under; set with `answer`."""
    answer: MaskedUpdate | None = None
    """Kept until the sum is opened: if the order comes again, so does the answer."""
    told: tuple[str, ...] | None = None
    """The survivors that this site signed or released for; there are no others."""


class SiteMasks:
    """The masks of one site. One thread at a time."""

    def __init__(self, folder: Path, site: str, identity: Ed25519PrivateKey) -> None:
        """Begin without secrets.

        Args:
            folder: The site's folder.
            site: Its name.
            identity: Signs round keys, and which survivors it was told; what updates
                are rounded by is derived from it.
        """
        self._folder = folder
        self._site = site
        self._identity = identity
        self._rounds: dict[tuple[str, int], _Round] = {}

    def keys(self, order: KeysOrder, plan: Plan, min_cohort: int) -> RoundKeys:
        """Make keys for a round; what was made for it before is forgotten.

        Args:
            order: The order.
            plan: The plan that the site approved.
            min_cohort: Fewest sites by the hospital's own rule.

        Raises:
            ContributionError: The roster is not one to mask with; `code` says why.
        """
        self._check(order, plan)
        if not is_masked(plan.privacy, plan.federation, len(order.members)):
            raise ContributionError(
                f"site {self._site!r} was asked for round keys, but the plan has no "
                "secure aggregation",
                code="roster",
            )
        # The hospital's own rule holds for what may be opened as well.
        least = max(min_cohort, plan.privacy.min_cohort)
        if len(order.members) < least:
            raise ContributionError(
                f"site {self._site!r} was shown a roster of {len(order.members)}, "
                f"expected at least {least} sites; no keys were made",
                code="cohort",
            )
        terms = terms_of(
            plan.privacy,
            order.run,
            order.round,
            plan.digest,
            order.members,
            order.weight_cap,
            order.size,
            order.slots,
        )
        mine = public_text(self._identity.public_key())
        if order.members.get(self._site) != mine:
            raise ContributionError(
                f"site {self._site!r} is not on the roster under its own key, expected "
                "to be; no keys were made",
                code="roster",
            )
        check_peers(self._folder, order.members)
        said = self._begin(terms, plan.privacy.colluders)
        return RoundKeys(self._site, order.round, said.pack())

    def shares(self, order: SharesOrder) -> SealedShares:
        """Share the round's secrets out, once the keys of all are checked."""
        one = self._at_hand(order)
        return SealedShares(self._site, order.round, self._dealt(one, order.keys))

    def answered(self, order: TrainOrder) -> MaskedUpdate | None:
        """The answer to this order if it was given before; else get ready for it.

        Raises:
            ContributionError: The round was masked for another model or memory, its
                keys are not set up here, a share does not open, or what 16 bits lost
                is of another grid; `code` says which.
        """
        one = self._at_hand(order)
        if one.lineage is not None:
            if one.answer is None or one.lineage != lineage_of(order):
                raise self._spent(order.round)
            return one.answer
        if one.keys is None or one.made is None:
            raise self._unknown(order.round)
        self._check_size(one, order.model.size)  # before it is trained and paid for
        if one.terms.mask_bits == 16:
            folder = states_of(self._folder, order.run)
            since = 0 if begins_anew(order) else order.state_round
            one.carried = load_carried(folder, since, one.terms)
        others = open_shares(one.keys, self._site, one.made, order.sealed)
        one.held = {**one.held, **others}
        return None

    def mask(self, order: TrainOrder, update: Update, plan: Plan) -> MaskedUpdate:
        """Mask an update; `answered` was asked before.

        Args:
            order: The order that was trained for.
            update: Its answer, as it may leave but for its vector.
            plan: The plan.

        Raises:
            ContributionError: The order is by another plan, the weight or too much of
                the update is beyond what the round allows, or other numbers were masked
                in it; `code` is "plan", "weights", "range" or "spent".
        """
        one = self._at_hand(order)
        if one.lineage is not None:
            raise self._spent(order.round)
        assert one.keys is not None
        assert one.made is not None
        self._check_size(one, update.delta.size)
        folder = states_of(self._folder, order.run)
        rounding = secret_rounding(self._identity, order.plan_digest, order.round)
        weight = masked_weight(plan.federation, update.cases)
        numbers = encode(one.terms, update.delta, weight, rounding, one.carried)
        threshold = one.terms.threshold
        note_masked(folder, order.round, one.keys.sites, threshold, numbers)
        if one.carried is not None:
            grid, keep = one.terms.grid, order.state_round
            save_carried(folder, order.round, one.carried, grid, keep)
            one.carried = None
        lineage = lineage_of(order)
        mask(one.keys, self._site, one.made, lineage, numbers)
        next_terms = replace(one.terms, round=order.round + 1)
        after = self._begin(next_terms, one.colluders)
        one.lineage, one.made = lineage, None
        one.answer = MaskedUpdate(
            site=self._site,
            round=order.round,
            plan_digest=update.plan_digest,
            masked=numbers,
            loss=update.loss,
            steps=update.steps,
            train_s=update.train_s,
            accepted=update.accepted,
            found=update.found,
            next_keys=after.pack(),
            epsilon_pld=update.epsilon_pld,
            epsilon_prv=update.epsilon_prv,
        )
        return one.answer

    def open(self, order: OpenOrder, min_cohort: int) -> Opening:
        """Sign what was told of the survivors, or release shares.

        Args:
            order: The order.
            min_cohort: Fewest sites by the hospital's own rule.

        Raises:
            ContributionError: The set may not be opened, is not the one that this site
                was told first, or not enough others were told the same.
        """
        one = self._at_hand(order)
        if one.keys is None or one.lineage is None:
            raise self._unknown(order.round)
        told = tuple(sorted(order.survivors))
        check_survivors(one.keys, self._site, told, min_cohort)
        if one.told not in (None, told):
            raise self._spent(order.round)
        if told != one.keys.sites:
            if not order.agreed:
                one.told = told
                word = sign_survivors(one.keys, told, self._identity)
                return Opening(self._site, order.round, agreement=word)
            check_agreement(one.keys, told, order.agreed)
        one.told = told
        note_opening(states_of(self._folder, order.run), order.round, one.lineage, told)
        one.answer = None  # a model's worth of memory
        sealed: Mapping[str, bytes] = {}
        if order.next_keys:
            after = self._round(order.run, order.round + 1)
            sealed = self._dealt(after, order.next_keys)
        shares = release(one.keys, told, one.held)
        return Opening(self._site, order.round, shares=shares, sealed=sealed)

    def grouped(self, order: OpenOrder) -> tuple[str, ...]:
        """Sites whose keys of the order's round were put together, in order of name."""
        one = self._rounds.get((order.run, order.round))
        return () if one is None or one.keys is None else one.keys.sites

    def _check(self, order: KeysOrder, plan: Plan) -> None:
        states_of(self._folder, order.run)  # or it names no folder
        if order.plan_digest != plan.digest:
            raise ContributionError(
                f"site {self._site!r} got an order for another plan than it approved",
                code="plan",
            )

    def _begin(self, terms: Terms, colluders: int) -> Announcement:
        made = RoundSecrets()
        said = announce(terms, self._site, made, self._identity)
        self._rounds.pop((terms.run, terms.round), None)
        self._rounds[terms.run, terms.round] = _Round(terms, colluders, said, made)
        while len(self._rounds) > _MOST_ROUNDS:
            del self._rounds[next(iter(self._rounds))]
        return said

    def _dealt(self, one: _Round, packed: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Receiver to sealed share; the same again for the same keys, and no others."""
        keys = key_set(one.terms, packed)
        if packed.get(self._site) != one.said.pack():
            raise ContributionError(
                f"site {self._site!r} is not among the keys of the round with its own, "
                "expected them unchanged; nothing was shared",
                code="keys",
            )
        if one.keys is None:
            assert one.made is not None
            terms, run = one.terms, states_of(self._folder, one.terms.run)
            check_group(run, terms.round, keys.sites, terms.threshold, one.colluders)
            mine, dealt = deal(keys, self._site, one.made)
            one.keys, one.dealt, one.held = keys, dealt, {self._site: mine}
        elif one.keys.transcript != keys.transcript:
            raise self._spent(one.terms.round)
        return one.dealt

    def _at_hand(self, order: SharesOrder | TrainOrder | OpenOrder) -> _Round:
        """The order's round, which was set up by its plan and no other."""
        one = self._round(order.run, order.round)
        if one.terms.plan_digest != order.plan_digest:
            raise ContributionError(
                f"site {self._site!r} has keys for round {order.round} by another plan "
                "than the order's, expected one plan; nothing was done",
                code="plan",
            )
        return one

    def _round(self, run: str, number: int) -> _Round:
        one = self._rounds.get((run, number))
        if one is None:
            raise self._unknown(number)
        return one

    def _unknown(self, number: int) -> ContributionError:
        return ContributionError(
            f"site {self._site!r} has no keys for round {number} in memory, expected a "
            "round that was set up with this process; it was started since, or the "
            "turns came out of order",
            code="keys",
        )

    def _check_size(self, one: _Round, size: int) -> None:
        if size != one.terms.size:
            raise ContributionError(
                f"site {self._site!r} has a model of {size} numbers, expected "
                f"{one.terms.size} as the keys of the round were made for",
                code="model",
            )

    def _spent(self, number: int) -> ContributionError:
        return ContributionError(
            f"site {self._site!r} gave another answer for round {number} before, and "
            "gives one a round; nothing was sent",
            code="spent",
        )
