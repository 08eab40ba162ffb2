"""The orders of a run that go out as files, and the answers that came back.

    RUN/parcels/orders/ID.json       what was asked, of whom, until when
    RUN/parcels/answers/ID.answer    its answer, still sealed
    RUN/parcels/reply.key            opens the answers; removed when the run ends
    HUB/parcels/out/SITE/            orders that are to be brought to their site
    HUB/parcels/in/                  where answers may be put that came back

The way takes days, so all of this outlives processes: a run that is resumed asks the
same question under the same id, and finds the answer if one came meanwhile. An order is
open while it is the newest to its site and has no answer.
"""

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.canonical import items
from common.durable import write_whole
from common.errors import RunError
from common.exchange import Hello, JudgeOrder, Order, Part, TrainOrder
from common.parcel_file import Kind

PARCELS = "parcels"
"""The folder in a hub and in a run."""
_WORD: dict[Kind, str] = {"query": "hello", "train": "train", "evaluate": "judge"}
_KIND: dict[type[Order], Kind] = {
    Hello: "query",
    TrainOrder: "train",
    JudgeOrder: "evaluate",
}

_LAST_S = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
"""The last day that has a date, in seconds since 1970."""


class PostedOrder(BaseModel):
    """One order that went out as a file; the content of `orders/ID.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    message_id: str
    """32 hexadecimal digits; the order's nonce too."""
    run: str
    """Id of the run, as orders have it."""
    site: str
    """Who is asked."""
    kind: Kind
    """Flower's type of message."""
    number: int
    """Place among the run's orders to this site, from 1."""
    round: int | None
    """Its round; unset at the roll call."""
    part: Part | None = None
    """Which patients to judge on; unset for other orders."""
    question: str
    """`question_of` the order."""
    written: int
    """When, seconds since 1970, UTC."""
    due: int = Field(ge=0, le=_LAST_S)
    """Until when an answer is waited for, the same."""

    @property
    def words(self) -> str:
        """What is asked, for people."""
        what = _WORD[self.kind]
        if self.part is not None:
            what = f"{what} {self.part} patients"
        return what if self.round is None else f"{what}, round {self.round}"

    @property
    def due_text(self) -> str:
        """`due` as people write it."""
        return f"{datetime.fromtimestamp(self.due, UTC):%Y-%m-%d %H:%M} UTC"


def question_of(order: Order) -> str:
    """SHA-256 of what an order asks; the same question has the same answer."""
    said = {f.name: getattr(order, f.name) for f in fields(order)}
    for name in ("nonce", "model", "fedct"):  # the model's digest stands beside it
        said.pop(name, None)
    short = {
        name: hashlib.sha256(value.data).digest()
        if isinstance(value, np.ndarray)
        else value
        for name, value in said.items()
    }
    text = items({"kind": type(order).__name__, **short})
    return hashlib.sha256(text).hexdigest()


def orders_of(run: Path) -> list[PostedOrder]:
    """Every order of a run that went out as a file, by site and number.

    Raises:
        RunError: The file of one is damaged.
    """
    found = [_read(run, path) for path in (run / PARCELS / "orders").glob("*.json")]
    return sorted(found, key=lambda order: (order.site, order.number))


def _read(run: Path, path: Path) -> PostedOrder:
    try:
        return PostedOrder.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RunError(
            f"run {run.name!r} has an order {path.name} in {PARCELS}/orders that can't "
            f"be read ({type(error).__name__}), expected what the hub wrote; put it "
            "back from a backup, or ask for the run anew under another name"
        ) from error


def open_orders(run: Path) -> list[PostedOrder]:
    """The orders of a run that wait for their answer, one per site at the most."""
    newest = {order.site: order for order in orders_of(run)}
    return [o for o in newest.values() if not answer_path(run, o).exists()]


def asked_before(run: Path, site: str, order: Order) -> PostedOrder | None:
    """The newest order to this site that asked the same, if there is one."""
    question = question_of(order)
    same = [o for o in orders_of(run) if (o.site, o.question) == (site, question)]
    return same[-1] if same else None


def enter(
    run: Path, site: str, order: Order, now: datetime, wait_s: float
) -> PostedOrder:
    """Put a new order into the book; what a later round made worthless goes."""
    before = [known for known in orders_of(run) if known.site == site]
    written = int(now.timestamp())
    entry = PostedOrder(
        message_id=secrets.token_hex(16),
        run=order.run,
        site=site,
        kind=_KIND[type(order)],
        number=before[-1].number + 1 if before else 1,
        round=None if isinstance(order, Hello) else order.round,
        part=order.part if isinstance(order, JudgeOrder) else None,
        question=question_of(order),
        written=written,
        due=written + int(wait_s),
    )
    orders = run / PARCELS / "orders"
    orders.mkdir(mode=0o700, parents=True, exist_ok=True)
    content = entry.model_dump_json(indent=1).encode()
    write_whole(orders / f"{entry.message_id}.json", content, mode=0o600)
    if isinstance(order, TrainOrder):  # the journal holds the rounds before
        for old in before:
            if old.round is not None and old.round < order.round:
                answer_path(run, old).unlink(missing_ok=True)
    return entry


def answer_path(run: Path, order: PostedOrder) -> Path:
    """Where the answer to an order lies once it was taken."""
    return run / PARCELS / "answers" / f"{order.message_id}.answer"


def order_path(hub: Path, run: Path, order: PostedOrder) -> Path:
    """Where an order lies that is to be brought to its site."""
    name = f"{order.site}-{run.name}-{order.number}-{_WORD[order.kind]}.order"
    return hub / PARCELS / "out" / order.site / name


def inbox(hub: Path) -> Path:
    """Where answers may be put."""
    return hub / PARCELS / "in"


def reply_key(run: Path) -> X25519PrivateKey:
    """The key that opens a run's answers; made at first need."""
    path = run / PARCELS / "reply.key"
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = X25519PrivateKey.generate().private_bytes_raw()
        write_whole(path, key, mode=0o600)
    return X25519PrivateKey.from_private_bytes(path.read_bytes())


def close_book(hub: Path, run: Path) -> None:
    """At a run's end: no order is open any more, and no answer can be opened."""
    for order in orders_of(run):
        order_path(hub, run, order).unlink(missing_ok=True)
    shutil.rmtree(run / PARCELS / "answers", ignore_errors=True)
    (run / PARCELS / "reply.key").unlink(missing_ok=True)


State = Literal["open", "answered", "older", "late", "ended"]


def state_of(run: Path, order: PostedOrder, now: datetime) -> State:
    """Whether an answer to an order is still wanted, and why not."""
    if answer_path(run, order).exists():
        return "answered"
    if not (run / PARCELS / "reply.key").exists():
        return "ended"
    newest = [o for o in orders_of(run) if o.site == order.site][-1]
    if newest != order:
        return "older"
    return "late" if now.timestamp() > order.due else "open"


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Let one process at a time take an answer of this run."""
    descriptor = os.open(run / PARCELS, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
