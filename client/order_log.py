"""What a site answered and told in a run: a round has one question, and no other.

One to train, and one to judge a model on each part of the held-out patients.

A round that comes again, as after a hub's crash, is the same question: the same model,
from the same state of this site. What training draws follows from the site's key, the
plan and the round, so the answer is the same to the bit and tells nothing new. Another
model for a round that was answered would be another look at the same images, and a hub
that could ask a hundred times would get a hundred; so it is refused, after a restart as
well. What was asked but never answered binds nobody.

A hub that lost its last checkpoint takes rounds back, and gets to the same models, as
long as the same sites count. Where they don't, its models differ from then on: the
rounds that this site answered are void for it, and it takes part again in the first
round that it has not answered. `docs/decisions/0031-one-question-a-round.md` says why
that is borne with.

Not covered here: a hub that begins run after run by one approved plan, but where the
policy has `max_runs`.
"""

import hashlib
import json
from pathlib import Path

from client.kept_texts import read_texts, write_texts
from client.private_files import make_private_folder
from client.state import STATES, states_of
from common.errors import ContributionError, StoreError
from common.exchange import JudgeOrder, KeysOrder, OpenOrder, SharesOrder, TrainOrder
from common.parameters import digest_of

ANSWERED = "answered.json"
"""In a run's folder of states: round to the digest of the question answered in it."""
BEGUN = "begun.json"
"""Beside it: by which plan the run is."""
_PLAN = "plan"
"""In both files: digest of the run's plan."""
TOLD = "told.json"
"""Beside them: the training cases that were told at the run's last roll call."""

Question = TrainOrder | JudgeOrder
"""What may be answered once a round."""
Turn = KeysOrder | SharesOrder | OpenOrder
"""What goes before and after it under masks."""


def check_run(site: Path, order: Question | Turn) -> None:
    """Bind a run to the plan of its first order, or refuse an order by another plan.

    The memory of a run, what it answered and what its optimiser holds, is by one plan.

    Raises:
        ContributionError: The run is by another plan; `code` is "question".
        StoreError: What it is by can't be read.
    """
    folder = states_of(site, order.run)
    known = read_texts(folder / BEGUN).get(_PLAN)
    if known is None:
        make_private_folder(folder)
        write_texts(folder / BEGUN, {_PLAN: order.plan_digest})
    elif known != order.plan_digest:
        raise ContributionError(
            f"the run of round {order.round} was begun by plan {known[:12]}, expected "
            f"no order by plan {order.plan_digest[:12]}; another plan needs a run of "
            "its own, and nothing was done",
            code="question",
        )


def note_cases(site: Path, run: str, cases: int) -> None:
    """Write down how many training cases are told at a roll call, before they are.

    Raises:
        StoreError: It can't be written.
    """
    folder = states_of(site, run)
    make_private_folder(folder)
    if read_texts(folder / TOLD) != (told := {"cases": str(cases)}):
        write_texts(folder / TOLD, told)


def told_cases(site: Path, run: str) -> int | None:
    """Training cases told at the run's last roll call; none if none were.

    The site's masked updates are weighed by them. A hospital that has taken in more
    cases since would else make the weights of a masked sum add up to something else
    than the hub was told, and every round void.

    Raises:
        StoreError: It can't be read. `code` is "memory".
    """
    cases = read_texts(states_of(site, run) / TOLD).get("cases")
    if cases is None:
        return None
    if not cases.isdecimal():
        raise StoreError(
            f"site found a {TOLD} without a number, expected what FedCT wrote; put it "
            "back from a backup",
            code="memory",
        )
    return int(cases)


def check_unanswered(site: Path, order: TrainOrder) -> None:
    """Refuse to train anew, with other noise, for what was answered.

    Raises:
        ContributionError: It was, and the answer is no longer kept; `code` is
            "question".
        StoreError: What was answered can't be read.
    """
    if _round_of(order) in read_texts(states_of(site, order.run) / ANSWERED):
        raise ContributionError(
            f"round {order.round} was answered under noise, and the answer is not kept "
            "any more; expected a later round, as other noise would be another look at "
            "the same patients, and nothing was done",
            code="question",
        )


def check_question(site: Path, order: Question) -> None:
    """Refuse another question in a round that was answered.

    Args:
        site: The site's folder.
        order: What is asked.

    Raises:
        ContributionError: It was answered for another model, state or plan; `code` is
            "question".
        StoreError: What was answered can't be read.
    """
    known = read_texts(states_of(site, order.run) / ANSWERED).get(_round_of(order))
    if known not in (None, _digest(order)):
        raise ContributionError(
            f"round {order.round} was answered for another model or state before, "
            "expected the same; each further model would be another look at the same "
            "images, and nothing was sent",
            code="question",
        )


def note_question(site: Path, order: Question) -> None:
    """Write down what was worked on, before anything of it leaves or is refused.

    What comes of it is told or not by rules that hang on it, and a refusal tells, too.
    """
    check_question(site, order)
    folder, number = states_of(site, order.run), _round_of(order)
    known = read_texts(folder / ANSWERED)
    if number not in known:
        make_private_folder(folder)
        answered = {**known, _PLAN: order.plan_digest, number: _digest(order)}
        write_texts(folder / ANSWERED, answered)


def runs_of(site: Path, plan_digest: str) -> frozenset[str]:
    """Ids of the runs by one plan in which this site has answered.

    Raises:
        StoreError: What was answered can't be read.
    """
    return frozenset(
        path.parent.name
        for path in (site / STATES).glob(f"*/{ANSWERED}")
        if read_texts(path).get(_PLAN) == plan_digest
    )


def _round_of(order: Question) -> str:
    """What there is one question of."""
    if isinstance(order, TrainOrder):
        return str(order.round)
    return f"{order.part} {order.round}"


def _digest(order: Question) -> str:
    """Of all that an answer depends on but the site's own state and cases.

    That the model is the one of this digest is checked before it is worked with.
    """
    asked = [order.plan_digest, order.state_round, order.model_digest]
    if isinstance(order, TrainOrder):
        asked.append(None if order.control is None else digest_of(order.control))
        asked.append(order.lineage)
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()
