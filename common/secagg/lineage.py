"""What all sites of a masked round have in their optimisers' memory, as one digest.

Masks hide an update among the others only as long as nobody can tell those others. An
update depends on the model and on what the site's optimiser remembers: with moments
from models of a server's making, a site hardly moves, and a sum in which all sites but
one hardly move is the last one's update. So the memory is bound into the masks like the
model: its lineage is the chain of rounds and models that it stems from. Sites that went
through different ones have masks that do not cancel; where a site joins that was not in
the last sum, all begin with fresh optimisers.
"""

import hashlib

from common.canonical import items

FRESH = ""
"""The lineage of an optimiser without memory."""


def lineage_after(lineage: str, number: int, model: str) -> str:
    """The lineage of the memory after a round; the round's masks hang on it.

    Args:
        lineage: Before the round.
        number: The round.
        model: `digest_of` the model that is trained from.

    Returns:
        SHA-256, hexadecimal.
    """
    told = items({"lineage": lineage, "round": number, "model": model})
    return hashlib.sha256(told).hexdigest()
