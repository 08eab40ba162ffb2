"""What FedProx and SCAFFOLD add to a site's gradients, and what SCAFFOLD sends back.

All of it is made of models and control variates that others know or that training has
produced, never of images: under DP it is added after the noise, and costs nothing.
"""

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from client.state import SiteState
from client.train import Correction
from common.errors import ContributionError
from common.exchange import TrainOrder
from common.parameters import Layout, parts_of
from common.plan_federation import Federation


def check_control(layout: Layout, federation: Federation, order: TrainOrder) -> None:
    """Refuse a control variate that the plan's algorithm doesn't have.

    It is added to every gradient. A hub that sent one to all sites but one could make
    their updates what it likes, and take them off a masked sum again.

    Raises:
        ContributionError: `code` is "content".
    """
    if order.control is None:
        return
    if federation.algorithm != "scaffold" or order.sealed:
        raise ContributionError(
            f"round {order.round} came with a control variate, which belongs to "
            'federation.algorithm "scaffold" without masks alone; nothing was done',
            code="content",
        )
    if len(order.control) != layout.size or not np.isfinite(order.control).all():
        raise ContributionError(
            f"round {order.round} came with a control variate of {len(order.control)} "
            f"numbers, expected {layout.size} finite ones; nothing was done",
            code="content",
        )


def correction_of(
    network: nn.Module,
    layout: Layout,
    federation: Federation,
    order: TrainOrder,
    state: SiteState,
) -> Correction:
    """What the plan's algorithm adds to each gradient of a round.

    Args:
        network: Holds the order's model.
        layout: Of its parameters.
        federation: Names the algorithm.
        order: Brings SCAFFOLD's c.
        state: Holds SCAFFOLD's c_i.
    """
    if federation.algorithm == "fedprox":
        anchor = tuple(p.detach().clone() for p in network.parameters())
        return Correction(anchor=anchor, mu=federation.proximal_mu)
    if order.control is None:
        return Correction()
    shift = order.control.copy()
    if state.control is not None:
        shift -= state.control.numpy()
    parts = dict(parts_of(shift, layout))
    return Correction(
        shift=tuple(
            torch.from_numpy(parts[name].copy()).to(parameter.device)
            for name, parameter in network.named_parameters()
        )
    )


def new_control(
    order: TrainOrder,
    state: SiteState,
    delta: Float32[np.ndarray, " P"],
    rate_sum: float,
) -> tuple[torch.Tensor | None, Float32[np.ndarray, " P"] | None]:
    """SCAFFOLD's option II: c_i' = c_i - c + (x - y) / sum of rates."""
    if order.control is None:
        return None, None
    change = -order.control - delta / np.float32(rate_sum)
    old = np.zeros_like(change) if state.control is None else state.control.numpy()
    return torch.from_numpy(old + change), change
