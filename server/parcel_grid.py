"""A grid on which some sites are reached by files, beside those with a live line.

An order to such a site is written into the hub's `parcels/out/`, and its answer comes
by `fedct server import` or through `parcels/in/` (`server.parcel_book`). The round loop
knows no difference but that these sites have days to answer, and that their orders
outlive the process: whoever resumes the run asks under the same nonce as before.
"""

import logging
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from common.error_numbers import number_of
from common.errors import ERROR_BASE, ContributionError
from common.exchange import Order
from common.parcel import Failure, OrderParcel, read_answer, write_order
from server.hub import order_key
from server.parcel_book import (
    PostedOrder,
    answer_path,
    asked_before,
    enter,
    inbox,
    order_path,
    orders_of,
    reply_key,
)
from server.parcel_taking import take
from server.presence import TellsArrivals
from server.standing import Standing
from server.verifying import Keys

log = logging.getLogger("fedct.run")

_LOOK_S = 0.5
"""Seconds between two looks into `parcels/in/`."""
_TTL_S = 3600.0
"""Of the message that an answer is made a reply to; nobody looks at it."""


@dataclass(frozen=True)
class Post:
    """How a run reaches its sites by files."""

    hub: Path
    """The hub's folder."""
    run: Path
    """The run's folder, in the hub's folder of runs."""
    keys: Keys
    """Verifying keys of the sites that are reached so, and of no other."""
    wait_s: float
    """How long each order waits for its answer."""


class ParcelGrid(Grid):
    """A live grid, and files for those whom it does not reach."""

    def __init__(
        self, live: Grid, post: Post, node_of: Callable[[str], int | None]
    ) -> None:
        """Put files beside a grid.

        Args:
            live: Reaches the other sites, and holds the run.
            post: The files.
            node_of: Site to its node id; unset for one that is not let in (any more).
        """
        self._live = live
        self._post = post
        self._node_of = node_of
        self._site_of: dict[int, str] = {}
        self._orders: dict[int, PostedOrder] = {}
        self._asked: dict[str, tuple[int, PostedOrder]] = {}
        self._refused: dict[Path, tuple[tuple[int, int], str | None]] = {}
        self._looked = float("-inf")
        for place in (inbox(post.hub), *map(self._out, post.keys)):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _out(self, site: str) -> Path:
        return inbox(self._post.hub).with_name("out") / site

    @property
    def run(self) -> Any:
        """The run that messages belong to."""
        return self._live.run

    def set_run(self, run: Any) -> None:
        """Set the run that messages belong to."""
        self._live.set_run(run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Connected nodes, and those that are reached by files."""
        return list(self.arrivals())

    def by_file(self) -> Collection[int]:
        """Nodes of sites without a line."""
        self.arrivals()
        return self._site_of.keys()

    def arrivals(self) -> Mapping[int, str]:
        """Node to the time at which it came; a site without a line is never away."""
        if isinstance(self._live, TellsArrivals):
            live = dict(self._live.arrivals())
        else:
            live = dict.fromkeys(self._live.get_node_ids(), "")
        nodes = {self._node_of(site): site for site in self._post.keys}
        self._site_of = {n: site for n, site in nodes.items() if n is not None}
        return {**live, **dict.fromkeys(self._site_of, "")}

    def standing(self, node: int, order: Order, *, fresh: bool) -> Standing | None:
        """An order as it went out before a restart, or as it goes out now."""
        post, site = self._post, self._site_of.get(node)
        if site is None:
            return None
        known = None if fresh else asked_before(post.run, site, order)
        now = datetime.now(UTC)
        entry = known or enter(post.run, site, order, now, post.wait_s)
        self._orders[node] = entry
        return Standing(
            replace(order, nonce=entry.message_id),
            entry.due - now.timestamp(),
            is_kept=True,
            is_first=entry.number == 1,
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send live orders, write the others; in the order of the messages."""
        whole = list(messages)
        live = [m for m in whole if m.metadata.dst_node_id not in self._orders]
        sent = iter(list(self._live.push_messages(live)) if live else [])
        return [
            self._write(m) if m.metadata.dst_node_id in self._orders else next(sent)
            for m in whole
        ]

    def _write(self, message: Message) -> str:
        """Write an order into `parcels/out/`, unless it lies there or is answered."""
        node, post = message.metadata.dst_node_id, self._post
        entry = self._orders[node]
        self._asked[entry.message_id] = node, entry
        path = order_path(post.hub, post.run, entry)
        done = answer_path(post.run, entry).exists()
        if done or path.exists() or time.time() > entry.due:
            return entry.message_id
        for old in orders_of(post.run):  # nobody waits for their answers any more
            if old.site == entry.site:
                order_path(post.hub, post.run, old).unlink(missing_ok=True)
        order = OrderParcel(
            entry.message_id,
            entry.site,
            entry.kind,
            reply_key(post.run).public_key().public_bytes_raw().hex(),
            entry.run,
            entry.number,
            entry.due,
            message.content,
        )
        write_order(path, order, order_key(post.hub))
        log.info("order written", extra={"site": entry.site, "file": path.name})
        return entry.message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The answers that are there; waits for none."""
        wanted = list(message_ids)
        written = [one for one in wanted if one in self._asked]
        live = [one for one in wanted if one not in self._asked]
        if written:
            self._look()
        for one in written:
            node, entry = self._asked[one]
            if answer_path(self._post.run, entry).exists():
                yield self._reply(node, entry)
        if live:
            yield from self._live.pull_messages(live)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull once: whoever waits for days asks again."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _reply(self, node: int, entry: PostedOrder) -> Message:
        asked = Message(RecordDict(), node, entry.kind, ttl=_TTL_S)
        asked.metadata.__dict__["_message_id"] = entry.message_id
        path, waiting = (
            answer_path(self._post.run, entry),
            {entry.message_id: entry.site},
        )
        key = reply_key(self._post.run)
        try:
            answer = read_answer(path, waiting, self._post.keys, key).content
        except ContributionError as error:  # the site's key is another one by now
            log.warning("%s", error)
            lost = ContributionError(str(error), code="parcel")
            return Message(Error(number_of(lost)), reply_to=asked)
        if isinstance(answer, Failure):  # Flower's own numbers are not a site's to say
            code = max(answer.code, ERROR_BASE)
            return Message(Error(code), reply_to=asked)
        return Message(answer, reply_to=asked)

    def _look(self) -> None:
        """Take what lies in `parcels/in/`; what is refused stays, and is said once."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        for path in sorted(inbox(self._post.hub).glob("*.answer")):
            self._take(path)
        self._looked = time.monotonic()

    def _take(self, path: Path) -> None:
        try:
            status = path.lstat()
        except OSError:
            return  # taken away again
        if not stat.S_ISREG(status.st_mode):
            return  # opening a pipe would wait for its writer
        version = status.st_size, status.st_mtime_ns
        looked_at, code = self._refused.get(path, (None, None))
        if looked_at == version:
            return
        try:
            take(self._post.hub, self._post.run.parent, path, datetime.now(UTC))
            path.unlink(missing_ok=True)
        except FileNotFoundError:
            return  # taken away again
        except ContributionError as error:
            self._refused[path] = version, error.code
            if error.code != code:  # else it is being copied in
                extra = {"file": path.name, "code": error.code, "why": str(error)}
                log.warning("parcel refused", extra=extra)
