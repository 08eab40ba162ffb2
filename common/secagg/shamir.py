"""Shamir's sharing of 32-byte secrets (1979, doi 10.1145/359168.359176).

Over the integers modulo the Mersenne prime 2^521 - 1, so that any 32 bytes are one
element and a share always has 66 bytes. Lagrange's weights depend on who answered, not
on the secret, so that opening many secrets of one round costs t products each.

Not covered here: whether a share is the one that was dealt. What was shared is
committed to elsewhere, and checked after it was put together (`keys`).
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final

from common.errors import ContributionError

PRIME: Final = 2**521 - 1
"""The 13th Mersenne prime (Robinson 1952)."""
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 66


def split(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares of a secret; share i (from 0) is the polynomial's value at i + 1.

    Args:
        secret: 32 bytes.
        threshold: t, as many shares open it; fewer say nothing about it.
        count: n.
    """
    assert len(secret) == SECRET_BYTES
    assert 1 <= threshold <= count
    rest = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    polynomial = [int.from_bytes(secret), *rest]
    return [_value(polynomial, x).to_bytes(SHARE_BYTES) for x in range(1, count + 1)]


def _value(polynomial: Sequence[int], x: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * x + coefficient) % PRIME
    return value


def lagrange(places: Sequence[int]) -> dict[int, int]:
    """Place (from 0) of a share to its weight at the secret."""
    weights = {}
    for i in places:
        above, below = 1, 1
        for j in places:
            if j != i:
                above = above * (j + 1) % PRIME
                below = below * (j - i) % PRIME
        weights[i] = above * pow(below, -1, PRIME) % PRIME
    return weights


def join(shares: Mapping[int, bytes], weights: Mapping[int, int]) -> bytes:
    """The secret of which these are shares.

    Args:
        shares: Place (from 0) to share, at least of all places in `weights`.
        weights: `lagrange` of as many places as the threshold says.

    Raises:
        ContributionError: The shares do not belong together.
    """
    value = sum(weights[i] * int.from_bytes(shares[i]) for i in weights) % PRIME
    if value >> (8 * SECRET_BYTES):
        raise ContributionError(
            "shares of one secret do not fit together, expected those that were dealt",
            code="share",
        )
    return value.to_bytes(SECRET_BYTES)


def check_share(share: bytes) -> bytes:
    """A share as it came, if it can be one."""
    if len(share) != SHARE_BYTES or int.from_bytes(share) >= PRIME:
        raise ContributionError(
            f"a share came as {len(share)} bytes or too large a number, expected "
            f"{SHARE_BYTES} bytes below 2^521 - 1",
            code="share",
        )
    return share
