"""A lower bound on epsilon from one run with many canaries.

Each of m canaries is in the data or not, by the toss of a coin of its own. Whoever sees
the result guesses the coins of those he is surest of. Under (epsilon, delta)-DP the
number of right guesses can hardly be larger than that of as many coins that fall right
with chance e^epsilon / (1 + e^epsilon); if it is, epsilon is larger (Steinke 2023,
arXiv 2305.08846, theorem 5.2 and the program of its appendix D).

Not covered here: an upper bound. A small figure shows that these canaries found little,
not that there is little to find; accounting is what promises.
"""

import numpy as np
from jaxtyping import Bool, Float64
from scipy.stats import binom

DOUBT = 0.05
"""Chance that the bound is above the true epsilon."""
_STEPS = 40
"""Halvings: the bound is exact to far below a hundredth."""
_MOST = 64.0


def guesses_right(
    scores: Float64[np.ndarray, " M"], inside: Bool[np.ndarray, " M"], guesses: int
) -> int:
    """How many guesses are right: the highest scores inside, the lowest outside.

    Args:
        scores: Of each canary; higher if it looks as if it was in the data.
        inside: The coins.
        guesses: How many canaries are guessed, half of them inside; the others are
            passed over. It has to be settled before anything is seen.
    """
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())


def epsilon_at_least(
    canaries: int, guesses: int, right: int, delta: float, doubt: float = DOUBT
) -> float:
    """The largest epsilon that the guesses refute.

    Args:
        canaries: m.
        guesses: r, at most m.
        right: v, right ones among them.
        delta: Of the claim.
        doubt: Chance that the bound is wrong.

    Returns:
        Epsilon is larger than this, with confidence 1 - `doubt`; 0 if nothing is
        refuted.
    """
    low, high = 0.0, _MOST
    if chance_of(canaries, guesses, right, low, delta) >= doubt:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        if chance_of(canaries, guesses, right, middle, delta) < doubt:
            low = middle
        else:
            high = middle
    return low


def chance_of(
    canaries: int, guesses: int, right: int, epsilon: float, delta: float
) -> float:
    """The most chance that (epsilon, delta)-DP leaves for so many right guesses."""
    fair = 1.0 / (1.0 + np.exp(-epsilon))
    more = float(binom.sf(right - 1, guesses, fair))
    exactly = binom.pmf(np.arange(right - 1, -1, -1), guesses, fair)
    short = np.cumsum(exactly) / np.arange(1, right + 1)
    return min(1.0, more + 2.0 * canaries * delta * float(short.max(initial=0.0)))
