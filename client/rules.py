"""What a hospital's own rules add to an order: approval, policy, a record of what left.

    order  -> permitted   paused? approved? allowed by the policy? one at a time
    answer -> let_out     the same rules once more, then the gate (`client.egress`)
    either -> note_left   a signed line of the audit log (`client.audit`)

A hospital's folder has a `client.toml`; a rehearsal's has a `site.json`, and no rules
but the gate: who rehearses owns all of it, and laid the plan into the folder.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.activity import Doing, work_of
from client.attempts import attempt
from client.audit import Kind, Left, check_log, record_left
from client.desk import (
    check_approved,
    check_sites,
    plan_of,
    queue_plan,
    sites_of,
)
from client.egress import Told, check_answer, norm_of, rounded
from client.order_log import (
    check_question,
    check_run,
    note_cases,
    note_question,
    runs_of,
    told_cases,
)
from client.policy import (
    AnswerKind,
    Policy,
    check_hours,
    check_kind,
    check_masks,
    check_norm,
    check_plan,
    check_round,
    check_runs,
)
from client.private_files import FILE_MODE
from client.site import PLAN_FILE, read_site
from client.site_file import is_hospital, read_site_file
from client.state import forget_old_states
from common.errors import JoinError
from common.exchange import (
    Answer,
    Hello,
    Judgement,
    JudgeOrder,
    KeysOrder,
    MaskedUpdate,
    OpenOrder,
    Order,
    Roster,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.plan import Plan
from common.plan_file import load_plan
from common.signing import Mark

WORK_LOCK = "work.lock"
"""Held by the process that works on an order."""
Tell = Callable[[int, int], None]
"""Called with (steps done, steps of the round); may raise, to stop the work."""

_DOING: dict[type[Order], Doing] = {
    Hello: "introducing",
    KeysOrder: "masking",
    SharesOrder: "masking",
    TrainOrder: "training",
    OpenOrder: "masking",
    JudgeOrder: "judging",
}
_KIND: dict[type[Order], Kind] = {
    Hello: "hello",
    KeysOrder: "keys",
    SharesOrder: "shares",
    TrainOrder: "train",
    OpenOrder: "open",
    JudgeOrder: "judge",
}
_ANSWER: dict[type[Order], AnswerKind] = {
    Hello: "roster",
    KeysOrder: "update",
    SharesOrder: "update",
    TrainOrder: "update",
    OpenOrder: "update",
    JudgeOrder: "judgement",
}
"""Keys and shares go where masked updates may."""
Mask = Callable[[Update], MaskedUpdate]
"""Masks an update that may leave."""


@dataclass(frozen=True)
class Grounds:
    """Why an answer may leave; for the audit log."""

    policy: str
    """Digest of the policy that it was checked by."""
    allowed: str
    """How its plan was approved."""


@contextmanager
def permitted(folder: Path, order: Order, tell: Tell) -> Iterator[tuple[Plan, Tell]]:
    """The approved plan to work by, and what to call after each step.

    Args:
        folder: The site's folder.
        order: What the server asks.
        tell: Hears of each step as well.

    Raises:
        PolicyError: The plan is not approved, the policy refuses it, or the site is
            paused; `code` names the rule.
        SupervisorError: The service died in this order too often.
        StoreError: The audit log was altered; `code` is "audit".
    """
    if not is_hospital(folder):
        path = folder / PLAN_FILE
        yield _laid_plan(path, path.stat().st_mtime_ns if path.exists() else 0), tell
        return
    policy = read_site_file(folder).policy
    check_log(folder)  # what could not be written down is not begun
    if isinstance(order, Hello):
        forget_old_states(folder, time.time())
        queue_plan(folder, order.plan_toml, order.run, policy, order.sites)
    number = None if isinstance(order, Hello) else order.round
    doing = _DOING[type(order)]
    work = work_of(folder)
    with (
        _one_at_a_time(folder),
        work.order(doing, order.run, order.plan_digest, number) as tell_desk,
        attempt(folder, doing, order.run, number),
    ):
        check_hours(policy, datetime.now())
        check_kind(policy, _ANSWER[type(order)])
        plan, _ = _allowed_plan(folder, policy, order)
        check_runs(policy, order.run, runs_of(folder, plan.digest))
        if not isinstance(order, Hello):
            check_run(folder, order)
        if isinstance(order, TrainOrder | JudgeOrder):
            check_question(folder, order)

        def both(done: int, steps: int) -> None:
            tell_desk(done, steps)
            tell(done, steps)

        yield plan, both


def min_cohort(folder: Path) -> int:
    """Fewest sites that may be summed, by the hospital's own rule."""
    return read_site_file(folder).policy.min_sites if is_hospital(folder) else 1


def let_out(
    folder: Path,
    order: Order,
    answer: Answer,
    key: str,
    mask: Mask,
    grouped: Sequence[str] = (),
) -> tuple[Answer, Grounds | None]:
    """What may leave of an answer.

    The policy is read and asked anew, as its engineer may have changed it while the
    order was worked on. Hours are not: what was begun in time may be finished.

    Args:
        folder: The site's folder.
        order: What is answered.
        answer: What would leave.
        key: The site's verifying key, as `signing.public_text`.
        mask: Masks the update of an order that came with sealed shares. It is asked
            last, so that rules and gate see what is then hidden.
        grouped: Sites whose keys of the order's round were put together here, if any.

    Returns:
        The answer with its counts as the policy tells them, and why it may leave;
        there are no grounds in a rehearsal, which has no policy.

    Raises:
        PolicyError: It may not leave; `code` names the rule.
    """
    grounds = None
    if is_hospital(folder):
        policy = read_site_file(folder).policy
        if isinstance(order, TrainOrder | JudgeOrder):
            with _one_at_a_time(folder):
                # Again: another run may have been answered in the meantime.
                check_runs(policy, order.run, runs_of(folder, order.plan_digest))
                note_question(folder, order)
        check_kind(policy, _ANSWER[type(order)])
        plan, allowed = _allowed_plan(folder, policy, order)
        if isinstance(answer, Update):
            check_norm(policy, norm_of(answer.delta))
        if policy.counts == "rounded":
            answer = rounded(answer, with_steps=plan.training.epochs is not None)
        answer = _judged_enough(answer, policy)
        if isinstance(answer, Roster):
            note_cases(folder, order.run, answer.train)
        grounds = Grounds(policy.digest, allowed)
    if isinstance(order, TrainOrder) and order.sealed and isinstance(answer, Update):
        clear = replace(order, sealed={})
        check_answer(answer, Told(read_site(folder).name, key, clear))
        cases = told_cases(folder, order.run)  # or the sum would not add up
        answer = mask(answer if cases is None else replace(answer, cases=cases))
    told = Told(read_site(folder).name, key, order, frozenset(grouped))
    check_answer(answer, told)
    return answer, grounds


def note_left(
    folder: Path,
    order: Order | None,
    key: Ed25519PrivateKey,
    *,
    what: str,
    code: int,
    bytes_in: int,
    bytes_out: int = 0,
    digest: bytes | None = None,
    grounds: Grounds | None = None,
) -> Mark | None:
    """Write down what is about to leave; in a hospital nothing leaves unwritten.

    Args:
        folder: The site's folder.
        order: What is answered; unset if it was no order.
        key: The site's.
        what: Kind of the answer, or "error".
        code: 0, or the number that is answered.
        bytes_in: Of the order's arrays.
        bytes_out: Of the answer's arrays.
        digest: `digest_of_answer`; unset for an error.
        grounds: Why it may leave; unset for an error.

    Returns:
        How far the log is now; none in a rehearsal, which keeps none.

    Raises:
        StoreError: It can't be written.
    """
    if not is_hospital(folder):
        return None
    left = Left(
        kind="unknown" if order is None else _KIND[type(order)],
        run=None if order is None else order.run,
        round=getattr(order, "round", None),
        plan=None if order is None else order.plan_digest,
        to=_hub_of(folder),
        what=what,
        code=code,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        digest=None if digest is None else digest.hex(),
        policy=None if grounds is None else grounds.policy,
        allowed=None if grounds is None else grounds.allowed,
    )
    line = record_left(folder, left, key)
    return Mark(line.number, line.hash)


def _allowed_plan(folder: Path, policy: Policy, order: Order) -> tuple[Plan, str]:
    """The order's plan, and how it was approved."""
    approved = check_approved(folder, order.plan_digest)
    plan = plan_of(folder, order.plan_digest)
    check_plan(policy, plan)
    if not isinstance(order, Hello):
        check_round(plan, order.round)
    match order:
        case Hello():
            check_sites(folder, plan, order.sites)
        case KeysOrder():  # of those who are there at the moment
            known = sites_of(folder, plan.digest)
            check_sites(folder, plan, {**known, **order.members})
        case TrainOrder() if not order.sealed:
            check_masks(policy, plan, len(sites_of(folder, plan.digest)))
    return plan, approved


def _judged_enough(answer: Answer, policy: Policy) -> Answer:
    """The answer; without its sums if they are over fewer cases than may be told."""
    if not isinstance(answer, Judgement) or not answer.sums:
        return answer
    enough = float(answer.sums["cases"][0]) >= policy.min_judged
    return answer if enough else replace(answer, sums={})


def _hub_of(folder: Path) -> str:
    try:
        return read_site_file(folder).hub.address
    except JoinError:  # settings that can't be read allow nothing but to say so
        return "unknown"


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


@lru_cache(maxsize=256)
def _laid_plan(path: Path, modified: int) -> Plan:
    """A rehearsal's plan; parsed once as long as its file stays."""
    return load_plan(path)
