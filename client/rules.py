"""What a hospital's own rules add to an order: approval, pause, a record of what left.

A hospital's folder has a `client.toml`; a rehearsal's has a `site.json`, and no rules:
who rehearses owns all of it, and laid the plan into the folder.

Not covered here: what an answer may hold (`common.exchange` fixes that), and limits on
rounds, hours or privacy.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from client.activity import Doing, work_of
from client.attempts import attempt
from client.desk import check_approved, plan_of, queue_plan
from client.order_log import Kind, Served, record_order
from client.private_files import FILE_MODE
from client.site import PLAN_FILE
from client.site_file import CLIENT_FILE, read_site_file
from common.exchange import Hello, JudgeOrder, Order, TrainOrder
from common.plan import Plan
from common.plan_file import load_plan

WORK_LOCK = "work.lock"
"""Held by the process that works on an order."""
Tell = Callable[[int, int], None]
"""Called with (steps done, steps of the round); may raise, to stop the work."""

_DOING: dict[type[Order], Doing] = {
    Hello: "introducing",
    TrainOrder: "training",
    JudgeOrder: "judging",
}
_KIND: dict[type[Order], Kind] = {
    Hello: "hello",
    TrainOrder: "train",
    JudgeOrder: "judge",
}


def is_hospital(folder: Path) -> bool:
    """Whether rules hold in this folder."""
    return (folder / CLIENT_FILE).exists()


@contextmanager
def permitted(folder: Path, order: Order, tell: Tell) -> Iterator[tuple[Plan, Tell]]:
    """The approved plan to work by, and what to call after each step.

    Args:
        folder: The site's folder.
        order: What the server asks.
        tell: Hears of each step as well.

    Raises:
        PolicyError: The plan is not approved, or the site is paused.
        SupervisorError: The service died in this order too often.
    """
    if not is_hospital(folder):
        path = folder / PLAN_FILE
        yield _laid_plan(path, path.stat().st_mtime_ns if path.exists() else 0), tell
        return
    if isinstance(order, Hello):
        auto = read_site_file(folder).policy.approve == "auto"
        queue_plan(folder, order.plan_toml, order.run, auto=auto)
    number = None if isinstance(order, Hello) else order.round
    doing = _DOING[type(order)]
    work = work_of(folder)
    with (
        _one_at_a_time(folder),
        work.order(doing, order.run, order.plan_digest, number) as tell_desk,
        attempt(folder, doing, order.run, number),
    ):
        check_approved(folder, order.plan_digest)

        def both(done: int, steps: int) -> None:
            tell_desk(done, steps)
            tell(done, steps)

        yield plan_of(folder, order.plan_digest), both


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Wait until no other process works here: the service, or an order from a file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(folder / WORK_LOCK, flags, FILE_MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def record(
    folder: Path,
    order: Order,
    *,
    code: int,
    bytes_in: int,
    bytes_out: int = 0,
    sha256: str | None = None,
) -> None:
    """Write down what is about to leave; in a hospital nothing leaves unwritten.

    Args:
        folder: The site's folder.
        order: What is answered.
        code: 0, or the exit code of the error that is answered.
        bytes_in: Of the order's arrays.
        bytes_out: Of the answer's arrays.
        sha256: Of the answer (`common.canonical`); unset for an error.

    Raises:
        StoreError: It can't be written.
    """
    if is_hospital(folder):
        served = Served(
            kind=_KIND[type(order)],
            run=order.run,
            round=None if isinstance(order, Hello) else order.round,
            plan=order.plan_digest,
            code=code,
            bytes_in=bytes_in,
            bytes_out=bytes_out,
            sha256=sha256,
        )
        record_order(folder, served)


@lru_cache(maxsize=256)
def _laid_plan(path: Path, modified: int) -> Plan:
    """A rehearsal's plan; parsed once as long as its file stays."""
    return load_plan(path)
