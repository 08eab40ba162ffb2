"""Updates as fixed-point numbers that add up exactly, and back.

A site's number is q = floor(u + x w limit / (range weight_cap)), x cut to the range, u
uniform in 0..1: rounding at random, so that its mean is right. Limit times the number
of sites stays below half of the modulus, so that no sum of such numbers ever wraps. A
sum that they could not add up to is refused, so a site that does not cut its numbers
moves no mean beyond the range. Behind the update stand the weight, byte by byte, and a
few ones: their sums say whether the masks of all sites fell away.

The draws are passed in, and must be the site's secret. Where a step of the grid is
wider than a change, a number is 1 or -1 only where u is near an edge. A hub that knew
everybody's u would know which site moved a number of the sum
([27](../../docs/decisions/0027-secure-aggregation.md)).

Not covered here: an honest weight. The hub compares the sum of the weights with what
the sites said at the roll call.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt16, UInt32

from common.errors import ContributionError, TrainingError
from common.secagg.terms import Terms

Masked = UInt32[np.ndarray, " L"] | UInt16[np.ndarray, " L"]
"""Numbers modulo 2^32 or 2^16: the update, then the tail."""
Draw = Callable[[int], Float[np.ndarray, " N"]]
"""So many numbers from 0 to below 1."""
ONES, LIMBS = 4, 3
"""The tail: so many ones, then so many bytes of the weight, lowest first."""
TAIL = ONES + LIMBS
_CHUNK = 1 << 16
_MOST_CUT = 0.05
"""Most of an update that may be cut at the range: training moves few parameters so far,
and a number that is cut tells its sign."""


def length_of(terms: Terms) -> int:
    """L, the length of a masked vector."""
    return terms.size + TAIL


def type_of(terms: Terms) -> np.dtype[np.unsignedinteger]:
    """Little-endian unsigned numbers of the mask's width."""
    return np.dtype(f"<u{terms.mask_bits // 8}")


def encode(
    terms: Terms,
    delta: Float32[np.ndarray, " P"],
    weight: int,
    rounding: Draw,
    carried: Float32[np.ndarray, " P"] | None = None,
) -> Masked:
    """A site's update times its weight, as fixed-point numbers; not yet masked.

    Args:
        terms: Of the round.
        delta: Local minus global parameters.
        weight: Training cases, or 1 where all sites count alike; no more than the cap.
        rounding: Draws one number per parameter; known to the site alone.
        carried: What earlier rounds did not get across (error feedback, Seide 2014);
            it is added, and replaced in place by what is left over now; spoilt if this
            raises.

    Raises:
        TrainingError: The update is not finite.
        ContributionError: The weight is above the cap, or more than one in twenty
            numbers would be cut; `code` is "weights" or "range".
    """
    if not 1 <= weight <= terms.weight_cap:
        # A hub that had weights cut could weigh the same updates in many ways.
        raise ContributionError(
            f"site weighs {weight}, expected 1 to {terms.weight_cap} as round "
            f"{terms.round} has it; nothing was masked",
            code="weights",
        )
    cut = 0
    scale = terms.limit * weight / (terms.mask_range * terms.weight_cap)
    numbers = np.empty(length_of(terms), dtype=type_of(terms))
    for start in range(0, terms.size, _CHUNK):
        part = slice(start, min(start + _CHUNK, terms.size))
        wanted = delta[part].astype(np.float64)
        if carried is not None:
            wanted += carried[part]
        if not np.isfinite(wanted).all():
            raise TrainingError(
                "site's update is not finite, expected finite numbers; its training "
                "has diverged, and nothing was masked"
            )
        scaled = np.clip(wanted, -terms.mask_range, terms.mask_range)
        cut += int(np.count_nonzero(np.abs(delta[part]) > terms.mask_range))
        scaled *= scale
        scaled += rounding(scaled.size)
        np.floor(scaled, out=scaled)
        numbers[part] = scaled.astype(np.int64).astype(numbers.dtype)
        if carried is not None:
            scaled /= scale
            carried[part] = wanted - scaled
    if cut > _MOST_CUT * terms.size:
        # Numbers at either end tell their signs, as weights tell the sites apart.
        raise ContributionError(
            f"{cut / terms.size:.0%} of the update lies beyond the plan's mask_range "
            f"{terms.mask_range:g}, expected at most {_MOST_CUT:.0%}; nothing was "
            "masked: the plan needs a larger privacy.mask_range, or its training "
            "diverges",
            code="range",
        )
    numbers[terms.size :] = [1] * ONES + list(weight.to_bytes(LIMBS, "little"))
    return numbers


@dataclass(frozen=True, eq=False)
class OpenedSum:
    """What the survivors' numbers add up to."""

    mean: Float32[np.ndarray, " P"]
    """Weighted mean of the updates."""
    weight: int
    """Sum of the weights."""


def decode(terms: Terms, total: Masked, survivors: int) -> OpenedSum:
    """The weighted mean in a sum of unmasked numbers.

    Args:
        terms: Of the round.
        total: The sum; used up, as the mean may take its place.
        survivors: How many sites' numbers are in it.

    Raises:
        ContributionError: Masks are left in it, or it is more than these sites' numbers
            can add up to; `code` is "masks" or "range".
    """
    tail = [int(number) for number in total[terms.size :]]
    weight = sum(limb << (8 * place) for place, limb in enumerate(tail[ONES:]))
    fits = survivors <= weight <= survivors * terms.weight_cap
    if tail[:ONES] != [survivors] * ONES or not fits:
        raise ContributionError(
            f"the sum of {survivors} sites does not open: masks are left in it, "
            "expected them to cancel; a site masked under another model or memory, or "
            "sent other numbers than it should",
            code="masks",
        )
    signed = total.dtype.newbyteorder("=").str.replace("u", "i")
    step = terms.mask_range * terms.weight_cap / terms.limit / weight
    most = terms.limit * weight / terms.weight_cap + survivors  # 1 each for rounding
    mean = (
        total[: terms.size].view(np.float32)
        if terms.mask_bits == 32
        else np.empty(terms.size, dtype=np.float32)
    )
    for start in range(0, terms.size, _CHUNK):
        part = slice(start, min(start + _CHUNK, terms.size))
        numbers = total[part].view(signed).astype(np.float64)
        if max(numbers.max(), -numbers.min()) > most:
            raise ContributionError(
                f"the sum of {survivors} sites has a number beyond {most:.0f}, "
                "expected what updates cut to the plan's mask_range add up to; a site "
                "masked larger numbers than it may",
                code="range",
            )
        mean[part] = numbers * step
    return OpenedSum(mean, weight)
