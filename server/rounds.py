"""The round loop: orders out, replies folded, the model stepped, the round written.

Each round is a transaction. Nothing that happens before the journal's commit counts;
everything after it is kept. So the loop has no other memory than the journal and the
checkpoint it names, and a resumed run walks the same path to the bit.
"""

import gc
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32

from common.errors import ContributionError, QuorumError, RunError
from common.parameters import Layout, digest_of, to_vector
from common.plan import Plan
from common.sources import PUBLIC
from common.task import Sums, add_sums
from server.checkpoint import prune, read_checkpoint, write_checkpoint
from server.error_sentences import numbered
from server.federation import Arm, Federation, first_model, judge
from server.folding import Folded, fold_round
from server.journal import Entry, append, entries, open_journal, take_back
from server.masked_round import MaskedRounds
from server.past import Past, last_counted, past_of
from server.record import ArmRecord, Metrics, RoundRecord, SiteRound
from server.server_step import ServerState, first_state, server_step
from server.summary import best_round, final_round, mean_metrics, stop_reason

log = logging.getLogger("fedct.run")


def run_arm(
    federation: Federation, arm: Arm
) -> tuple[ArmRecord, Float32[np.ndarray, " P"]]:
    """Run or resume all rounds of an arm, then test its final model.

    Returns:
        The arm's record, and the final model's parameters.

    Raises:
        RunError: The folder holds another run, or no round could be closed.
    """
    first, layout = _first(arm.plan)
    arm.folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "plan": arm.plan.digest,
        "layout": layout.digest,
        "run": arm.run,
        "sites": " ".join(arm.train),
    }
    checkpoints = arm.folder / "checkpoints"
    monitor = arm.task.monitor
    with open_journal(arm.folder / "journal.sqlite", identity) as journal:
        done = entries(journal)
        state = _whole(journal, done, checkpoints) or first
        del first  # a model
        rounds = arm.plan.federation.rounds
        about = {"arm": arm.name, "monitor": monitor, "rounds": rounds}
        log.info("arm", extra={**about, "done": len(done)})
        begun = len(done)
        fold = _fold_of(federation, arm)
        federation.passed()  # the roll call belongs to no round
        while (reason := stop_reason(_records(done), arm.plan, monitor, begun)) is None:
            began = time.perf_counter()
            trained, state = _train(fold, arm, state, done)
            entry = _judged(federation, arm, state, done, trained, began)
            append(journal, entry)
            done.append(entry)
            best = _entry_of(done, best_round(_records(done), monitor))
            before = [e for e in done if e.checkpoint != entry.checkpoint][-1:]
            kept = (entry, *before, best)
            prune(checkpoints, {e.checkpoint for e in kept if e is not None})
            log.info("round", extra={"arm": arm.name, "record": entry.record})
        del state
    return _finish(federation, arm, done, reason)


@dataclass(frozen=True)
class _Trained:
    """A round up to its checkpoint; holds no vector."""

    outcome: Literal["closed", "void"]
    rows: tuple[SiteRound, ...]
    checkpoint: int
    sha256: str
    digest: str
    """`digest_of` the model after the round."""
    lineage: str = ""
    """As in `RoundRecord`."""
    began_anew: bool | None = None
    """As in `RoundRecord`."""
    weight_cap: int | None = None
    """As in `RoundRecord`."""
    reason: str = ""
    """Why it is void."""


Fold = Callable[[ServerState, str, int, Past], Folded]
"""Asks for a round's updates and folds them; see `folding.fold_round`."""


def _fold_of(federation: Federation, arm: Arm) -> Fold:
    """How an arm's updates are folded: under masks, or in the clear."""
    if not arm.is_masked:
        return partial(fold_round, federation, arm)
    return MaskedRounds(federation, arm).fold


def _train(
    fold: Fold, arm: Arm, state: ServerState, done: Sequence[Entry]
) -> tuple[_Trained, ServerState]:
    """Train, fold, step, checkpoint; the mean is gone when this returns."""
    number = len(done) + 1
    digest = done[-1].record.model_digest if done else digest_of(state.model)
    folded = fold(state, digest, number, past_of(_records(done), arm.train))
    checkpoints = arm.folder / "checkpoints"
    try:
        after = server_step(
            state, folded.mean.mean(), folded.control, arm.plan.federation
        )
    except (QuorumError, ContributionError) as error:
        extra = {"arm": arm.name, "round": number, "why": str(error)}
        log.warning("void", extra=extra)
        if done:
            last = done[-1]
            kept, sha256 = last.checkpoint, last.sha256
        else:  # the very first round is void: keep what it began with
            kept, sha256 = 0, write_checkpoint(checkpoints, 0, state)
        why = numbered(error)
        void = _Trained("void", folded.rows, kept, sha256, digest, reason=why)
        return void, state
    sha256 = write_checkpoint(checkpoints, number, after)
    digest = digest_of(after.model)
    closed = _Trained(
        "closed",
        folded.rows,
        number,
        sha256,
        digest,
        lineage=folded.lineage,
        began_anew=folded.began_anew,
        weight_cap=folded.weight_cap,
    )
    return closed, after


def _judged(
    federation: Federation,
    arm: Arm,
    state: ServerState,
    done: Sequence[Entry],
    trained: _Trained,
    began: float,
) -> Entry:
    """The round's row, after its model was judged if it is time; the caller commits."""
    number = len(done) + 1
    validation: dict[str, Metrics] = {}
    if trained.outcome == "closed" and _judges_now(number, arm.plan):
        counted = {row.site for row in trained.rows if row.outcome == "accepted"}
        since = {
            **last_counted(_records(done), arm.train),
            **dict.fromkeys(counted, number),
        }
        sums = judge(
            federation, arm, arm.validate, state.model, number, since, "validation"
        )
        validation = {site: arm.task.summarise(s) for site, s in sums.items()}
    record = RoundRecord(
        number=number,
        outcome=trained.outcome,
        reason=trained.reason,
        updates="under masks" if arm.is_masked else "in the clear",
        lineage=trained.lineage,
        began_anew=trained.began_anew,
        weight_cap=trained.weight_cap,
        sites=_with_wire(trained.rows, federation),
        validation=validation,
        validation_mean=mean_metrics(validation),
        model_digest=trained.digest,
        seconds=time.perf_counter() - began,
    )
    return Entry(trained.checkpoint, trained.sha256, record)


def _with_wire(rows: Sequence[SiteRound], federation: Federation) -> list[SiteRound]:
    """The rows with what passed since the last round's end, where anything did."""
    passed = federation.passed()
    return [
        row.model_copy(
            update=dict(
                zip(("wire_bytes_down", "wire_bytes_up"), passed[row.site], strict=True)
            )
        )
        if row.site in passed
        else row
        for row in rows
    ]


def _finish(
    federation: Federation,
    arm: Arm,
    done: Sequence[Entry],
    reason: Literal["all rounds", "early stop", "void rounds"],
) -> tuple[ArmRecord, Float32[np.ndarray, " P"]]:
    """Test the final model at every site."""
    last = final_round(_records(done), arm.plan, arm.task.monitor)
    entry = _entry_of(done, last)
    if entry is None:
        rows = {row.reason for e in done for row in e.record.sites}
        why = sorted((rows | {e.record.reason for e in done}) - {""})
        raise RunError(
            f"arm {arm.name!r} closed no round in {len(done)} tries, expected one; "
            f"the sites said: {'; '.join(why)}"
        )
    state = read_checkpoint(arm.folder / "checkpoints", entry.checkpoint, entry.sha256)
    # Sites keep only their latest memory (FedBN's norm layers), so test with that.
    since = last_counted(_records(done), arm.train)
    sums = judge(federation, arm, arm.test, state.model, last, since, "test")
    public = (PUBLIC,) if _has_public(federation, arm.plan) else ()
    shown = judge(federation, arm, public, state.model, last, since, "test")
    test = {site: arm.task.summarise(s) for site, s in sums.items()}
    everything: Sums = {}
    for site_sums in sums.values():
        everything = add_sums(everything, site_sums)
    records = _records(done)
    record = ArmRecord(
        name=arm.name,
        rounds=records,
        final_round=last,
        stopped=reason,
        steps=sum(row.steps for r in records for row in r.sites),
        test=test,
        test_mean=mean_metrics(test),
        test_pooled=arm.task.summarise(everything) if everything else {},
        public=arm.task.summarise(shown[PUBLIC]) if shown else {},
        seconds=sum(r.seconds for r in records),
    )
    return record, state.model


def _first(plan: Plan) -> tuple[ServerState, Layout]:
    """The state before round 1; the network itself is not kept."""
    network, layout = first_model(plan)
    state = first_state(to_vector(network, layout), plan.federation)
    del network
    gc.collect()  # networks are full of cycles, and this one is a model
    return state, layout


def _whole(
    journal: sqlite3.Connection, done: list[Entry], checkpoints: Path
) -> ServerState | None:
    """The state to go on from; one round back if the last checkpoint is damaged.

    The rounds that rest on it are taken back, and done again: sites still have the
    memory that they need for that.
    """
    try:
        return _latest(done, checkpoints)
    except RunError as error:
        sound = [entry for entry in done if entry.checkpoint != done[-1].checkpoint]
        state = _latest(sound, checkpoints)
        take_back(journal, keep=len(sound))
        log.warning("%s; going back to round %d", error, len(sound))
        done[:] = sound
        return state


def _latest(done: Sequence[Entry], checkpoints: Path) -> ServerState | None:
    if not done:
        return None
    return read_checkpoint(checkpoints, done[-1].checkpoint, done[-1].sha256)


def _has_public(federation: Federation, plan: Plan) -> bool:
    return PUBLIC in federation.rosters and plan.has_global_model


def _judges_now(number: int, plan: Plan) -> bool:
    return number % plan.evaluation.every == 0 or number == plan.federation.rounds


def _records(done: Sequence[Entry]) -> list[RoundRecord]:
    return [entry.record for entry in done]


def _entry_of(done: Sequence[Entry], number: int) -> Entry | None:
    return next((e for e in done if e.record.number == number), None)
