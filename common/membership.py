"""How well training cases can be told from others by what a model makes of them.

The attack scores each case, higher for "was trained on", and is judged by two numbers:
the AUC, which is what it gets on average, and the share of members that it finds while
it accuses one case in a hundred wrongly, which is what a patient has to fear (Carlini
2022, arXiv 2112.03570, section III). The simplest score is the negative loss (Yeom
2018, arXiv 1709.01604): whoever holds the model and a patient's images can work it out.

Not covered here: stronger attacks. A figure is a lower bound of what leaks; one near
chance is no proof that nothing does.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

WRONGLY = 0.01
"""Share of others that may be taken for members."""
FEWEST_OTHERS = 100
"""With fewer others `WRONGLY` of them is not even one: what is found at that rate then
says little."""


@dataclass(frozen=True)
class Membership:
    """What an attack gets."""

    auc: float
    """Chance that a member scores above another case; 0.5 is guessing."""
    found: float
    """Share of members found while at most `WRONGLY` of the others are accused."""
    members: int
    """Training cases it was tried on."""
    others: int
    """Cases the model never saw; below `FEWEST_OTHERS` not one may be accused."""


def membership_of(
    members: Float64[np.ndarray, " M"], others: Float64[np.ndarray, " N"]
) -> Membership:
    """The two numbers of an attack.

    Args:
        members: Scores of training cases, at least one.
        others: Scores of cases the model never saw, at least one.
    """
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, side="left")
    up_to = np.searchsorted(ordered, members, side="right")
    auc = float((below + up_to).mean() / (2 * len(others)))
    bar = ordered[len(others) - 1 - int(WRONGLY * len(others))]
    found = float((members > bar).mean())
    return Membership(auc, found, len(members), len(others))


def guessed(members: int, others: int) -> tuple[float, float]:
    """Between which AUCs guessing ends, 19 times of 20.

    An AUC of guesses is normal around 0.5 with variance (M + N + 1) / (12 M N) (Mann
    and Whitney 1947, Annals of Mathematical Statistics 18(1), section 4), the more so
    the more cases there are. Several cases of one patient spread it further.

    Args:
        members: M, at least one.
        others: N, at least one.
    """
    spread = _spread(members, others)
    return max(0.0, 0.5 - spread), min(1.0, 0.5 + spread)


def at_most(auc: float, members: int, others: int) -> float:
    """What an AUC may be with all the cases there could be, 39 times of 40.

    An AUC spreads most where it is 0.5, so that spread is taken for all.

    Args:
        auc: Of the cases it was tried on.
        members: M, at least one.
        others: N, at least one.
    """
    return min(1.0, auc + _spread(members, others))


def _spread(members: int, others: int) -> float:
    return 1.96 * math.sqrt((members + others + 1) / (12 * members * others))
