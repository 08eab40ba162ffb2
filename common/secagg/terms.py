"""What the sites of a round agree on before they make keys: its terms.

Every site derives the terms from the plan that it approved and from what the order
adds, and signs their digest with its round keys. Every later key depends on that
digest. So a server that tells two sites different terms gets masks that don't cancel.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from common.canonical import items
from common.contract import CONTRACT
from common.errors import ContributionError
from common.plan_federation import Federation
from common.plan_privacy import Privacy, threshold_of

MAX_WEIGHT = 1_000_000
"""Most training cases that a site may count for (as `server.aggregate.MAX_CASES`)."""
MAX_MEMBERS = 257
"""Most sites: sums of bytes, in which weights travel, must fit into 16 bits."""


@dataclass(frozen=True)
class Terms:
    """The terms of one round; valid only after `check_terms`."""

    run: str
    """Id of the run."""
    round: int
    """From 1."""
    plan_digest: str
    """Canonical hash of the plan."""
    members: tuple[tuple[str, str], ...]
    """The roster: site and its Ed25519 key (64 hex digits), in order of name."""
    threshold: int
    """t: shares that are needed to open anything."""
    min_cohort: int
    """Fewest sites whose sum may be opened."""
    mask_bits: int
    """Width of a masked number."""
    mask_range: float
    """Largest change of one parameter."""
    weight_cap: int
    """Largest weight of a site; one that is larger is refused."""
    size: int
    """P, the length of an update."""
    slots: int
    """Sites for which sums have room, at least as many as members: those of the run, so
    that a number does not depend on who happens to be there."""
    contract: int = CONTRACT
    """What both sides speak: stands for the code."""

    @property
    def digest(self) -> bytes:
        """SHA-256 over all of it."""
        bound = {k: v for k, v in vars(self).items() if k != "members"}
        bound |= {f"member {site}": key for site, key in self.members}
        bound["purpose"] = "fedct round terms"
        return hashlib.sha256(items(bound)).digest()

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the members."""
        return tuple(site for site, _ in self.members)

    @property
    def limit(self) -> int:
        """Largest magnitude of a site's number: slots limit < 2^(bits - 1)."""
        return ((1 << (self.mask_bits - 1)) - 1) // self.slots

    @property
    def grid(self) -> tuple[int, int]:
        """What a round adds to the plan that a number depends on: cap and slots."""
        return self.weight_cap, self.slots

    @property
    def fewest(self) -> int:
        """Fewest survivors whose sum may be opened."""
        return max(self.threshold, self.min_cohort)


def terms_of(
    privacy: Privacy,
    run: str,
    number: int,
    plan_digest: str,
    members: Mapping[str, str],
    weight_cap: int,
    size: int,
    slots: int,
) -> Terms:
    """The terms that follow from a plan and from what the order adds to it.

    Args:
        privacy: `[privacy]` of the plan.
        run: Id of the run.
        number: The round.
        plan_digest: Canonical hash of the plan.
        members: Site to Ed25519 key, 64 hex digits.
        weight_cap: Largest weight.
        size: P, the length of an update.
        slots: Sites for which sums have room.

    Raises:
        ContributionError: There are too few or too many sites, two share a key, or a
            number is out of bounds; `code` says which check.
    """
    terms = Terms(
        run=run,
        round=number,
        plan_digest=plan_digest,
        members=tuple(sorted(members.items())),
        threshold=threshold_of(privacy, len(members)),
        min_cohort=privacy.min_cohort,
        mask_bits=privacy.mask_bits,
        mask_range=privacy.cut_at,
        weight_cap=weight_cap,
        size=size,
        slots=slots,
    )
    check_terms(terms)
    return terms


def masked_weight(federation: Federation, cases: int) -> int:
    """A site's weight under masks: a whole number, at least 1.

    Args:
        federation: `[federation]` of the plan; a fraction of its cap is cut off.
        cases: Training cases.
    """
    if federation.weights == "uniform":
        return 1
    return max(1, min(cases, int(federation.weight_cap or cases), MAX_WEIGHT))


def check_terms(terms: Terms) -> None:
    """Refuse terms under which a sum could tell one site's part, or wrap around.

    Raises:
        ContributionError: `code` says which check.
    """
    count = len(terms.members)
    if not terms.fewest <= count <= MAX_MEMBERS:
        raise ContributionError(
            f"round has a roster of {count} sites, expected {terms.fewest} to "
            f"{MAX_MEMBERS} for masks; nothing was masked",
            code="cohort",
        )
    if 2 * terms.threshold <= count:
        raise ContributionError(
            f"round opens with {terms.threshold} shares of {count}, expected more than "
            "half",
            code="threshold",
        )
    if len({key for _, key in terms.members}) != count:
        raise ContributionError(
            "two sites of the roster have one key, expected each its own", code="roster"
        )
    if not 1 <= terms.weight_cap <= MAX_WEIGHT:
        raise ContributionError(
            f"round caps weights at {terms.weight_cap}, expected 1 to {MAX_WEIGHT}",
            code="weights",
        )
    room = 1 << (terms.mask_bits - 1)
    fits = count <= terms.slots <= MAX_MEMBERS and terms.mask_bits in (16, 32)
    if not fits or not 0 < terms.slots * terms.limit < room:
        raise ContributionError(
            f"sums of {count} sites do not fit into {terms.slots} slots of "
            f"{terms.mask_bits} bits, expected room for all of them",
            code="headroom",
        )
