"""Keys of one round: made fresh, signed by the site's identity, and bound to the terms.

A site makes two X25519 pairs (RFC 7748) and a seed. One pair seals shares and is never
shared itself; the secret of the other, which makes the pairwise masks, and the seed of
the site's own mask are shared out. Were there one pair only, then a server that calls
a site lost would get the secret that also opens the shares of that site's seed, and
with both it could open the vector that it said it never got.

All keys for use are derived by HKDF-SHA256 (RFC 5869) over the transcript: the terms,
and the signed keys of every site that takes part.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.canonical import Scalar, items
from common.errors import ContributionError
from common.secagg.terms import Terms

_POINT, _SIGNATURE = 32, 64
ANNOUNCEMENT_BYTES = 3 * _POINT + _SIGNATURE


@dataclass(frozen=True, eq=False)
class RoundSecrets:
    """What a site keeps to itself; 32 bytes each, from the operating system."""

    seal_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """X25519 secret that opens shares; never shared out."""
    mask_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """X25519 secret of the pairwise masks."""
    seed: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    """Of the site's own mask."""


@dataclass(frozen=True)
class Announcement:
    """A site's public keys of a round, and its signature under them and the terms."""

    seal_public: bytes
    """X25519, 32 bytes."""
    mask_public: bytes
    """X25519, 32 bytes."""
    commitment: bytes
    """SHA-256 over the seed: tells a wrongly joined seed from the right one."""
    signature: bytes
    """Ed25519 by the site's identity key, 64 bytes."""

    def pack(self) -> bytes:
        """160 bytes."""
        return self.seal_public + self.mask_public + self.commitment + self.signature


@dataclass(frozen=True)
class KeySet:
    """The checked keys of all sites that take part in a round."""

    terms: Terms
    """What they signed."""
    announcements: Mapping[str, Announcement]
    """Site to keys, in order of name."""
    transcript: bytes
    """SHA-256 over terms and keys; every derived key depends on it."""

    @property
    def sites(self) -> tuple[str, ...]:
        """Who takes part, in order of name."""
        return tuple(self.announcements)


def announce(
    terms: Terms, site: str, made: RoundSecrets, identity: Ed25519PrivateKey
) -> Announcement:
    """A site's public keys, signed."""
    seal, mask = public_of(made.seal_key), public_of(made.mask_key)
    commitment = commitment_of(terms, site, made.seed)
    statement = _statement(terms, site, seal + mask + commitment)
    return Announcement(seal, mask, commitment, identity.sign(statement))


def unpack(content: bytes) -> Announcement:
    """What `Announcement.pack` wrote."""
    if len(content) != ANNOUNCEMENT_BYTES:
        raise ContributionError(
            f"round keys came as {len(content)} bytes, expected {ANNOUNCEMENT_BYTES}",
            code="keys",
        )
    cuts = (0, _POINT, 2 * _POINT, 3 * _POINT, ANNOUNCEMENT_BYTES)
    return Announcement(*(content[a:b] for a, b in pairwise(cuts)))


def check_announcement(terms: Terms, site: str, keys: Announcement) -> None:
    """Refuse keys that this site did not sign under these terms.

    Raises:
        ContributionError: `code` is "roster" or "signature".
    """
    identity = dict(terms.members).get(site)
    if identity is None:
        raise ContributionError(
            f"site {site!r} has round keys but is not on the roster", code="roster"
        )
    content = keys.seal_public + keys.mask_public + keys.commitment
    try:
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity))
        verifier.verify(keys.signature, _statement(terms, site, content))
    except (InvalidSignature, ValueError) as error:
        raise ContributionError(
            f"round keys of site {site!r} are not signed by its key under these terms, "
            "expected its own; they were changed on the way or belong elsewhere",
            code="signature",
        ) from error


def key_set(terms: Terms, packed: Mapping[str, bytes]) -> KeySet:
    """Check the keys of all sites that take part, and bind them together.

    Raises:
        ContributionError: Too few take part, or keys are repeated, malformed or not
            signed; `code` says which check.
    """
    found = {site: unpack(packed[site]) for site in sorted(packed)}
    if len(found) < terms.fewest:
        raise ContributionError(
            f"round has keys of {len(found)} sites, expected at least {terms.fewest}; "
            "nothing was masked",
            code="cohort",
        )
    for site, keys in found.items():
        check_announcement(terms, site, keys)
    points = [p for k in found.values() for p in (k.seal_public, k.mask_public)]
    if len(set(points)) != len(points):
        raise ContributionError(
            "a round key came twice, expected each site to make its own", code="keys"
        )
    bound: dict[str, Scalar] = {f"site {site}": packed[site] for site in found}
    bound |= {"purpose": "fedct round transcript", "terms": terms.digest}
    return KeySet(terms, found, hashlib.sha256(items(bound)).digest())


def commitment_of(terms: Terms, site: str, seed: bytes) -> bytes:
    """What a site says of its seed before anyone may know it."""
    bound: dict[str, Scalar] = {"terms": terms.digest, "site": site, "seed": seed}
    bound["purpose"] = "fedct seed"
    return hashlib.sha256(items(bound)).digest()


def check_seed(keys: KeySet, site: str, seed: bytes) -> bytes:
    """A joined seed, if it is what the site committed to."""
    said = keys.announcements[site].commitment
    if not hmac.compare_digest(commitment_of(keys.terms, site, seed), said):
        raise _wrong_shares(site, "seed")
    return seed


def check_mask_key(keys: KeySet, site: str, secret: bytes) -> bytes:
    """A joined mask secret, if it belongs to the public key that the site signed."""
    if public_of(secret) != keys.announcements[site].mask_public:
        raise _wrong_shares(site, "mask key")
    return secret


def _wrong_shares(site: str, what: str) -> ContributionError:
    return ContributionError(
        f"the shares of site {site!r} make another {what} than it announced, expected "
        "the same; a share was changed, and the round can't be opened",
        code="share",
    )


# --- derived keys -----------------------------------------------------------------


def pair_key(keys: KeySet, lineage: str, site: str, secret: bytes, peer: str) -> bytes:
    """AES-128 key of the mask between two sites; both derive the same.

    Args:
        keys: Of the round.
        lineage: Of what the sites remember after the round, and so of its model.
        site: Whose mask secret this is.
        secret: Its mask secret.
        peer: The other site.
    """
    shared = _agree(secret, keys.announcements[peer].mask_public, peer)
    low, high = sorted((site, peer))
    about = {"lineage": lineage, "low": low, "high": high}
    return _derive(keys, "pair mask", shared, 16, about)


def self_key(keys: KeySet, lineage: str, site: str, seed: bytes) -> bytes:
    """AES-128 key of a site's own mask."""
    return _derive(keys, "own mask", seed, 16, {"lineage": lineage, "site": site})


def share_key(
    keys: KeySet, secret: bytes, peer: str, sender: str, receiver: str
) -> bytes:
    """AES-256 key that seals shares on their way from sender to receiver."""
    shared = _agree(secret, keys.announcements[peer].seal_public, peer)
    return _derive(keys, "share", shared, 32, {"from": sender, "to": receiver})


def public_of(secret: bytes) -> bytes:
    """The X25519 public key of a secret."""
    private = X25519PrivateKey.from_private_bytes(secret)
    return private.public_key().public_bytes_raw()


def _agree(secret: bytes, public: bytes, peer: str) -> bytes:
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:  # RFC 7748, 6.1: the all-zero result
        raise ContributionError(
            f"round key of site {peer!r} is a point of low order, expected a key",
            code="keys",
        ) from error


def _derive(
    keys: KeySet, purpose: str, secret: bytes, length: int, about: Mapping[str, Scalar]
) -> bytes:
    info = {"purpose": f"fedct {purpose}", "transcript": keys.transcript, **about}
    return HKDF(SHA256(), length, salt=None, info=items(info)).derive(secret)


def _statement(terms: Terms, site: str, content: bytes) -> bytes:
    return items(
        {
            "purpose": "fedct round keys",
            "terms": terms.digest,
            "site": site,
            "keys": content,
        }
    )
