"""Scripted sites that mask for real: their training is made up, their masks are not."""

from pathlib import Path

from flwr.app import Error, Message, RecordDict

from client.masking import SiteMasks
from common.error_numbers import number_of
from common.errors import FedctError
from common.exchange import (
    KeysOrder,
    OpenOrder,
    Order,
    SharesOrder,
    TrainOrder,
)
from common.plan import Plan
from common.wire import order_in
from tests.server.scripted import ScriptedGrid, honest, sealed, signing_key


class MaskedGrid(ScriptedGrid):
    """Sites that answer at once; faults are scripted by (site, order, round)."""

    def __init__(self, cases, folder: Path, plan: Plan, faults=None, **others) -> None:
        super().__init__(cases, **others)
        self.plan = plan
        self.folder = folder
        self.faults = dict(faults or {})
        self.asked: list[tuple[str, Order]] = []
        self.answers: list[object] = []
        self.masks = {site: self.started(site) for site in cases}

    def started(self, site: str) -> SiteMasks:
        """A site's process, with nothing in memory."""
        folder = self.folder / site
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return SiteMasks(folder, site, signing_key(site))

    def _answer(self, message: Message) -> RecordDict | Error | None:
        order = order_in(message.content)
        site = list(self.cases)[message.metadata.dst_node_id - 2]
        self.asked.append((site, order))
        key = (site, type(order), getattr(order, "round", 0))
        if key in self.faults:
            order = self.faults[key](self, site, order)
            if order is None:
                return None
        is_masked = isinstance(order, KeysOrder | SharesOrder | OpenOrder)
        if not is_masked and not (isinstance(order, TrainOrder) and order.sealed):
            return super()._answer(message)
        try:
            answer = self.masked(site, order)
        except FedctError as error:
            return Error(number_of(error))
        self.answers.append(answer)
        return sealed(answer, order, site)

    def masked(self, site: str, order: Order):
        """What the site's process answers."""
        masks = self.masks[site]
        if isinstance(order, KeysOrder):
            return masks.keys(order, self.plan, 1)
        if isinstance(order, SharesOrder):
            return masks.shares(order)
        if isinstance(order, OpenOrder):
            return masks.open(order, 1)
        assert isinstance(order, TrainOrder)
        self.orders.append((site, order))
        if (known := masks.answered(order)) is not None:
            return known
        return masks.mask(order, honest(site, self.cases[site], order), self.plan)


def silent(grid, site, order):
    """A site that never answers this."""
    return None


def restarted(grid, site, order):
    """A site whose process was started anew just before this."""
    grid.masks[site] = grid.started(site)
    return order
