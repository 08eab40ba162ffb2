"""Under masks a site goes on from what all sites of the round remember alike.

`common.secagg.lineage` says why. FedBN's norm layers are a site's own and stay.
"""

from client.state import SiteState
from common.errors import ContributionError
from common.exchange import TrainOrder
from common.secagg.lineage import FRESH, lineage_after


def lineage_of(order: TrainOrder) -> str:
    """The lineage of a site's memory once it did this order."""
    if not order.sealed:
        return FRESH  # in the clear nobody hides behind others
    return lineage_after(order.lineage, order.round, order.model_digest)


def begins_anew(order: TrainOrder) -> bool:
    """Whether an order under masks asks for an optimiser without memory."""
    return bool(order.sealed) and order.lineage == FRESH


def checked_memory(state: SiteState, order: TrainOrder) -> SiteState:
    """The state to train from: under masks that of the order's lineage, or a fresh one.

    Args:
        state: After the order's `state_round`.
        order: The order.

    Raises:
        ContributionError: The state is of another lineage; `code` is "lineage".
    """
    if not order.sealed:
        return state
    if begins_anew(order):
        return SiteState(local=state.local)
    if order.lineage != state.lineage:
        raise ContributionError(
            f"site was asked to go on in round {order.round} from its memory of round "
            f"{order.state_round} with lineage {order.lineage[:12]}, has "
            f"{state.lineage[:12] or 'a fresh one'}; under masks all sites must stem "
            "from the same rounds and models, so nothing was done; it can take part "
            "where all begin anew",
            code="lineage",
        )
    return state
