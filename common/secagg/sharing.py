"""Shares of a site's two secrets, each sealed for the one site that may hold it.

AES-256-GCM (NIST SP 800-38D) under a key that only sender and receiver can derive, with
the transcript as associated data. A share of both secrets has a constant size.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import ContributionError
from common.secagg.keys import KeySet, RoundSecrets, share_key
from common.secagg.shamir import SHARE_BYTES, check_share, split

_NONCE = 12
SEALED_BYTES = _NONCE + 2 * SHARE_BYTES + 16


@dataclass(frozen=True, eq=False)
class Shares:
    """What one site holds of another's secrets."""

    seed: bytes = field(repr=False)
    """Share of the seed of the own mask."""
    mask_key: bytes = field(repr=False)
    """Share of the secret of the pairwise masks."""


def deal(
    keys: KeySet, site: str, made: RoundSecrets
) -> tuple[Shares, dict[str, bytes]]:
    """Share a site's secrets out.

    Returns:
        The share that the site keeps, and receiver to sealed share.
    """
    places = keys.terms.sites
    parts = zip(
        split(made.seed, keys.terms.threshold, len(places)),
        split(made.mask_key, keys.terms.threshold, len(places)),
        strict=True,
    )
    dealt = {name: Shares(*both) for name, both in zip(places, parts, strict=True)}
    sealed = {
        peer: _seal(keys, site, made, peer, dealt[peer])
        for peer in keys.sites
        if peer != site
    }
    return dealt[site], sealed


def _seal(
    keys: KeySet, site: str, made: RoundSecrets, peer: str, shares: Shares
) -> bytes:
    nonce = secrets.token_bytes(_NONCE)
    cipher = AESGCM(share_key(keys, made.seal_key, peer, site, peer))
    content = shares.seed + shares.mask_key
    return nonce + cipher.encrypt(nonce, content, keys.transcript)


def open_shares(
    keys: KeySet, site: str, made: RoundSecrets, sealed: Mapping[str, bytes]
) -> dict[str, Shares]:
    """Sender to the share that it dealt to this site.

    Raises:
        ContributionError: One is missing, too many, or does not open; `code` is
            "share".
    """
    expected = {peer for peer in keys.sites if peer != site}
    if set(sealed) != expected:
        raise ContributionError(
            f"site {site!r} got sealed shares of {len(sealed)} sites, expected one of "
            f"each of the {len(expected)} others; nothing was masked",
            code="share",
        )
    return {
        peer: _open(keys, site, made, peer, sealed[peer])
        for peer in keys.sites
        if peer != site
    }


def _open(
    keys: KeySet, site: str, made: RoundSecrets, peer: str, sealed: bytes
) -> Shares:
    cipher = AESGCM(share_key(keys, made.seal_key, peer, peer, site))
    try:
        if len(sealed) != SEALED_BYTES:
            raise InvalidTag
        content = cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], keys.transcript)
    except InvalidTag as error:
        raise ContributionError(
            f"site {site!r} can't open the share that came as site {peer!r}'s, "
            "expected one sealed for it under the same terms and keys; it was changed, "
            "or the sites were told different things",
            code="share",
        ) from error
    seed, mask_key = content[:SHARE_BYTES], content[SHARE_BYTES:]
    return Shares(check_share(seed), check_share(mask_key))
