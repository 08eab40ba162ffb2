"""How well training cases can be told from others by what a model makes of them.

The attack scores each case, higher for "was trained on", and is judged by two numbers:
the AUC, which is what it gets on average, and the share of members that it finds while
it accuses one case in a hundred wrongly, which is what a patient has to fear (Carlini
2022, arXiv 2112.03570, section III). The simplest score is the negative loss (Yeom
2018, arXiv 1709.01604): whoever holds the model and a patient's images can work it out.

Not covered here: stronger attacks. A figure is a lower bound of what leaks; one near
chance is no proof that nothing does.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

WRONGLY = 0.01
"""Share of others that may be taken for members."""


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
    """Cases the model never saw; below 100 no wrong accusation at all is allowed."""


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
