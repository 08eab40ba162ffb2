"""Masking at a site, and opening at the hub: the two ends of one round."""

from collections.abc import Mapping

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from common.canonical import Scalar, items
from common.errors import ContributionError
from common.secagg.fixed_point import Masked
from common.secagg.keys import (
    KeySet,
    RoundSecrets,
    check_mask_key,
    check_seed,
    pair_key,
    self_key,
)
from common.secagg.masks import apply_masks
from common.secagg.shamir import check_share, join, lagrange
from common.secagg.sharing import Shares


def mask(
    keys: KeySet, site: str, made: RoundSecrets, lineage: str, numbers: Masked
) -> None:
    """Mask a site's numbers in place (Bonawitz 2017, section 4, round 2).

    Args:
        keys: Of the round.
        site: Whose numbers.
        made: Its secrets.
        lineage: `lineage_after` the round: sites that were given different models, or
            remember different ones, have masks that do not cancel.
        numbers: `fixed_point.encode`.
    """
    peers = [peer for peer in keys.sites if peer != site]
    pairs = {p: pair_key(keys, lineage, site, made.mask_key, p) for p in peers}
    own = self_key(keys, lineage, site, made.seed)
    apply_masks(
        numbers,
        plus=[own, *(key for peer, key in pairs.items() if site < peer)],
        minus=[key for peer, key in pairs.items() if site > peer],
    )


# --- who is in the sum ------------------------------------------------------------


def check_survivors(
    keys: KeySet, site: str, survivors: tuple[str, ...], min_cohort: int = 0
) -> None:
    """Refuse a set whose sum may not be opened.

    Args:
        keys: Of the round.
        site: Who is asked.
        survivors: Who is in the sum, by the server's word.
        min_cohort: Fewest of them by the site's own rule, besides the terms'.

    Raises:
        ContributionError: It has strangers or is too small (`code` "survivors" or
            "cohort"), or leaves out the site itself.
    """
    names = set(survivors)
    if len(names) != len(survivors) or not names <= set(keys.sites):
        raise ContributionError(
            f"site {site!r} was told of survivors who are not of the round or come "
            "twice, expected some of those who gave keys; nothing was opened",
            code="survivors",
        )
    fewest = max(keys.terms.fewest, min_cohort)
    if len(names) < fewest:
        raise ContributionError(
            f"site {site!r} was asked to open the sum of {len(names)} sites, expected "
            f"at least {fewest}; nothing was opened",
            code="cohort",
        )
    if site not in names:
        raise ContributionError(
            f"site {site!r} was asked to open a sum without itself, expected to be in "
            "it; nothing was opened",
            code="survivors",
        )


def sign_survivors(
    keys: KeySet, survivors: tuple[str, ...], identity: Ed25519PrivateKey
) -> bytes:
    """A site's word that it was told this set, and will be told no other."""
    return identity.sign(_statement(keys, survivors))


def check_agreement(
    keys: KeySet, survivors: tuple[str, ...], signatures: Mapping[str, bytes]
) -> None:
    """Refuse unless enough of the survivors signed this very set.

    Raises:
        ContributionError: Fewer than the threshold did; `code` is "survivors".
    """
    identities, statement = dict(keys.terms.members), _statement(keys, survivors)
    agreed = sum(
        _is_signed(identities[site], signatures[site], statement)
        for site in survivors
        if site in signatures
    )
    if agreed < keys.terms.threshold:
        raise ContributionError(
            f"{agreed} sites signed this set of survivors, expected at least "
            f"{keys.terms.threshold}; nothing was opened",
            code="survivors",
        )


def _is_signed(identity: str, signature: bytes, statement: bytes) -> bool:
    try:
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity))
        verifier.verify(signature, statement)
    except (InvalidSignature, ValueError):
        return False
    return True


def _statement(keys: KeySet, survivors: tuple[str, ...]) -> bytes:
    told: dict[str, Scalar] = {f"site {site}": None for site in survivors}
    return items({**told, "purpose": "fedct survivors", "transcript": keys.transcript})


# --- opening ----------------------------------------------------------------------


def release(
    keys: KeySet, survivors: tuple[str, ...], held: Mapping[str, Shares]
) -> dict[str, bytes]:
    """A site's shares: of the seed of who is in the sum, of the mask key of who isn't.

    Never both of one site: with both its vector could be opened.
    """
    return {
        site: shares.seed if site in survivors else shares.mask_key
        for site, shares in held.items()
        if site in keys.sites
    }


def open_sum(
    keys: KeySet,
    lineage: str,
    survivors: tuple[str, ...],
    released: Mapping[str, Mapping[str, bytes]],
    total: Masked,
) -> None:
    """Take all masks off the survivors' sum, in place.

    Args:
        keys: Of the round.
        lineage: `lineage_after` the round.
        survivors: Whose masked numbers are in the sum.
        released: Site to what it released.
        total: Sum of the survivors' masked numbers; unchanged if this raises.

    Raises:
        ContributionError: There are too few shares, or they do not fit what the sites
            announced; `code` says which.
    """
    whole = {
        site: shares
        for site, shares in released.items()
        if site in survivors and set(shares) == set(keys.sites)
    }
    if len(whole) < keys.terms.threshold:
        raise ContributionError(
            f"{len(whole)} sites released their shares, expected at least "
            f"{keys.terms.threshold}; the sum stays closed",
            code="threshold",
        )
    places = {site: place for place, site in enumerate(keys.terms.sites)}
    chosen = sorted(whole)[: keys.terms.threshold]
    weights = lagrange([places[site] for site in chosen])

    def joined(owner: str) -> bytes:
        dealt = {places[site]: check_share(whole[site][owner]) for site in chosen}
        return join(dealt, weights)

    plus: list[bytes] = []
    minus: list[bytes] = []
    for site in survivors:
        seed = check_seed(keys, site, joined(site))
        minus.append(self_key(keys, lineage, site, seed))
    for lost in set(keys.sites) - set(survivors):
        secret = check_mask_key(keys, lost, joined(lost))
        for site in survivors:  # what `site` added for `lost` comes off, and back
            key = pair_key(keys, lineage, lost, secret, site)
            (minus if site < lost else plus).append(key)
    apply_masks(total, plus=plus, minus=minus)
