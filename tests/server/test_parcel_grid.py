"""A run with a site that is reached by files: what counts, and what outlives a kill."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

from common.errors import ContributionError
from common.exchange import Hello, TrainOrder
from common.keys import read_signing_key
from common.parcel import AnswerParcel, Failure, read_order, write_answer
from common.parcel_file import peek
from server import admission
from server.asking import question
from server.federation import open_federation
from server.hub import Hub, order_key
from server.parcel_book import (
    close_book,
    inbox,
    open_orders,
    orders_of,
    question_of,
)
from server.parcel_grid import ParcelGrid, Post
from server.parcel_taking import site_keys, take
from server.record import ArmRecord
from server.revocation import revoke
from server.rounds import run_arm
from tests.joining import a_hub, content_of, joined
from tests.plans import plan
from tests.server.scripted import ScriptedGrid, arm_of, signing_key

CASES = {"east": 10, "north": 30, "west": 20}
EAST = 2
"""The node of the first site on a scripted grid."""
HELLO = Hello("run", "plan", "", "layout")
TRAIN = TrainOrder("run", "plan", 1, 0, np.zeros(9, np.float32), "model")


@dataclass(frozen=True)
class World:
    """A hub with a run, and the hospital `east` that has no line."""

    hub: Hub
    run: Path
    site: Path
    stick: Path

    @property
    def folder(self) -> Path:
        return self.hub.folder

    def orders(self) -> list[Path]:
        return sorted((self.folder / "parcels/out/east").glob("*.order"))


@pytest.fixture
def world(tmp_path) -> World:
    now = datetime.now(UTC)
    hub = a_hub(tmp_path / "hub", now=now)
    site = joined(hub, tmp_path / "east", "east", now).folder
    run, stick = hub.folder / "runs/lung", tmp_path / "stick"
    run.mkdir()
    stick.mkdir()
    return World(hub, run, site, stick)


def grid_of(world: World, wait_s: float = 3600) -> ParcelGrid:
    keys = site_keys(world.folder, datetime.now(UTC))
    post = Post(world.folder, world.run, keys, wait_s)
    grid = ParcelGrid(ScriptedGrid(CASES), post, lambda site: EAST)
    grid.arrivals()
    return grid


def push(grid: ParcelGrid, order: Hello | TrainOrder, *, fresh: bool = False) -> str:
    one = grid.standing(EAST, order, fresh=fresh)
    assert one is not None
    (message_id,) = grid.push_messages([question(one.order, EAST, 60.0)])
    return message_id


def worked(world: World, order: Path, content: RecordDict | Failure | None) -> Path:
    """What the hospital writes about an order; by default what it honestly says."""
    key = order_key(world.folder).public_key()
    got = read_order(order, "east", key, {}, datetime.now(UTC))
    if content is None:
        content = ScriptedGrid(CASES)._answer(Message(got.content, EAST, got.kind))
    assert content is not None
    path = world.stick / f"{order.stem}.answer"
    answer = AnswerParcel(got.message_id, "east", got.kind, content)
    write_answer(path, answer, got.reply_key, read_signing_key(world.site / SIGN))
    return path


SIGN = "keys/sign.key"
EMPTY = RecordDict()


def bring(world: World, path: Path, now: datetime | None = None) -> None:
    take(world.folder, world.folder / "runs", path, now or datetime.now(UTC))


def refused(world: World, path: Path, now: datetime | None = None) -> str | None:
    """Why, in a word; nothing at the hub is touched, and the file stays."""
    before, file = content_of(world.folder), path.read_bytes()
    with pytest.raises(ContributionError) as caught:
        bring(world, path, now)
    assert content_of(world.folder) == before
    assert path.read_bytes() == file
    assert caught.value.exit_code == 40
    assert "nothing was taken from it: " in str(caught.value)
    return caught.value.code


# --- one order ----------------------------------------------------------------------


def test_an_answer_that_was_brought_is_the_reply(world):
    grid = grid_of(world)
    message_id = push(grid, TRAIN)
    assert list(grid.pull_messages([message_id])) == []
    (order,) = world.orders()
    assert order.name == "east-lung-1-train.order"
    bring(world, worked(world, order, EMPTY))
    assert world.orders() == []
    for _ in range(2):  # until the round is in the journal it may be asked for again
        (reply,) = grid.pull_messages([message_id])
        assert reply.metadata.reply_to_message_id == message_id
        assert reply.metadata.src_node_id == EAST


def test_a_restarted_hub_asks_the_same_under_the_same_name_until_the_same_time(world):
    first = push(grid_of(world), TRAIN)
    (order,) = world.orders()
    before = order.read_bytes()
    grid = grid_of(world)
    again = replace(TRAIN, nonce="another")
    one = grid.standing(EAST, again, fresh=False)
    assert push(grid, again) == one.order.nonce == first
    assert 3590 < one.left_s <= 3600
    assert order.read_bytes() == before
    order.unlink()  # somebody moved it to the stick
    assert push(grid_of(world), again) == first
    bring(world, worked(world, order, EMPTY))
    grid = grid_of(world)
    assert push(grid, TRAIN) == first
    assert world.orders() == []
    assert len(list(grid.pull_messages([first]))) == 1


def test_another_question_is_another_order_and_takes_the_place_of_the_first(world):
    questions = [
        HELLO,
        TRAIN,
        replace(TRAIN, round=2),
        replace(TRAIN, round=2, state_round=1),
        replace(TRAIN, model_digest="other"),
        replace(TRAIN, control=np.zeros(9, np.float32)),
        replace(TRAIN, control=np.ones(9, np.float32)),
    ]
    assert len({question_of(one) for one in questions}) == len(questions)
    grid = grid_of(world)
    ids = [push(grid, one) for one in questions]
    assert len(set(ids)) == len(questions)
    assert [peek(path).number for path in world.orders()] == [len(questions)]
    assert [order.message_id for order in open_orders(world.run)] == ids[-1:]


def test_a_failure_is_an_error_reply(world):
    grid = grid_of(world)
    message_id = push(grid, TRAIN)
    bring(world, worked(world, world.orders()[0], Failure(105302)))
    (reply,) = grid.pull_messages([message_id])
    assert reply.error == Error(105302)


def test_answers_of_rounds_in_the_journal_are_dropped(world):
    grid = grid_of(world)
    for number in (1, 2, 3):
        push(grid, replace(TRAIN, round=number))
        bring(world, worked(world, world.orders()[-1], EMPTY))
        kept = list((world.run / "parcels/answers").glob("*.answer"))
        assert len(kept) == 1


def test_a_book_that_is_closed_opens_no_answer_any_more(world):
    push(grid_of(world), TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    close_book(world.folder, world.run)
    assert world.orders() == []
    assert refused(world, path) == "ended"
    assert not (world.run / "parcels/reply.key").exists()


# --- what does not count ------------------------------------------------------------


def test_an_answer_counts_once(world):
    push(grid_of(world), TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    bring(world, path)
    assert refused(world, path) == "replay"
    shutil.copy(path, inbox(world.folder) / path.name)
    grid = grid_of(world)
    message_id = push(grid, TRAIN)
    assert len(list(grid.pull_messages([message_id]))) == 1


def test_an_answer_to_an_earlier_order_is_older(world):
    grid = grid_of(world)
    push(grid, TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    push(grid, replace(TRAIN, round=2))
    assert refused(world, path) == "older"


def test_an_answer_after_its_time_is_late(world):
    push(grid_of(world), TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    assert refused(world, path, datetime.now(UTC) + timedelta(hours=2)) == "late"
    bring(world, path)


def test_an_answer_to_another_hub_is_unknown(world, tmp_path):
    now = datetime.now(UTC)
    (tmp_path / "b").mkdir()
    hub = a_hub(tmp_path / "b/hub", now=now)
    site = joined(hub, tmp_path / "b/east", "east", now).folder
    (hub.folder / "runs/lung").mkdir()
    other = World(hub, hub.folder / "runs/lung", site, tmp_path / "b")
    push(grid_of(world), TRAIN)
    push(grid_of(other), TRAIN)
    assert refused(world, worked(other, other.orders()[0], EMPTY)) == "unknown"


def test_an_order_and_an_altered_or_unfinished_answer_are_refused(world):
    push(grid_of(world), TRAIN)
    (order,) = world.orders()
    assert refused(world, order) == "kind"
    path = worked(world, order, EMPTY)
    whole = path.read_bytes()
    codes = set()
    for place in range(0, len(whole), 37):
        altered = bytearray(whole)
        altered[place] ^= 1
        path.write_bytes(altered)
        codes.add(refused(world, path))
    assert codes <= {"format", "truncated", "unknown", "key", "signature", "altered"}
    for size in (0, 11, 200, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert refused(world, path) in {"format", "truncated"}
    path.write_bytes(whole)
    bring(world, path)


def test_a_revoked_site_s_answer_is_refused(world):
    push(grid_of(world), TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    revoke(world.hub, "east", datetime.now(UTC))
    assert refused(world, path) == "key"


def test_files_put_into_the_inbox_are_taken_when_they_are_whole(world, caplog):
    grid = grid_of(world)
    message_id = push(grid, TRAIN)
    path = worked(world, world.orders()[0], EMPTY)
    whole, there = path.read_bytes(), inbox(world.folder) / path.name
    (inbox(world.folder) / "a.answer").write_bytes(b"junk")

    def look() -> int:
        grid._looked = float("-inf")
        return len(list(grid.pull_messages([message_id])))

    for size in (5, 100, len(whole) - 1):
        there.write_bytes(whole[:size])
        assert look() == 0
    there.write_bytes(whole)
    assert look() == 1
    assert not there.exists()
    said = [r.code for r in caplog.records if r.getMessage() == "parcel refused"]
    assert said == ["format", "truncated"]  # each said once


# --- a whole run --------------------------------------------------------------------


def run_by_files(world: World, wait_s: float = 3600, **changes: object) -> ArmRecord:
    """The round loop, with `east` by files."""
    the_plan = plan(federation__deadline_s=0.2, federation__join_s=0.0, **changes)
    arm = arm_of(the_plan, world.run, CASES)
    keys = {site: signing_key(site).public_key() for site in CASES}
    record, model = run_arm(open_federation(grid_of(world, wait_s), arm, keys), arm)
    (world.stick / "model").write_bytes(model.tobytes())
    return record


def forked(work: Callable[[], object]) -> int:
    """Does the work in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def next_order(world: World, pid: int, done: set[str]) -> Path | None:
    """The next file, or None when the run has ended well."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for path in world.orders():
            if path.name not in done:
                return path
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert status == 0
            return None
        time.sleep(0.01)
    raise AssertionError(orders_of(world.run))


def test_a_run_killed_at_every_wait_ends_in_the_model_of_one_with_live_lines(
    world, tmp_path
):
    arm = arm_of(plan(), tmp_path / "live", CASES)
    record, model = run_arm(open_federation(ScriptedGrid(CASES), arm), arm)
    done: set[str] = set()
    pid = forked(lambda: run_by_files(world))
    while (order := next_order(world, pid, done)) is not None:
        done.add(order.name)
        path = worked(world, order, None)
        before = order.read_bytes()
        kill(pid)
        pid = forked(lambda: run_by_files(world))
        time.sleep(0.1)  # it asks again, or was on its way to
        kill(pid)
        assert order.read_bytes() == before
        bring(world, path)
        pid = forked(lambda: run_by_files(world))
    assert len(done) == 1 + 2 * len(record.rounds) + 1
    assert (world.stick / "model").read_bytes() == model.tobytes()


def test_a_round_closes_without_a_file_that_is_late_and_the_next_one_asks_anew(
    world, monkeypatch
):
    monkeypatch.setattr("server.parcel_grid._LOOK_S", 0.05)
    pid = forked(lambda: run_by_files(world, wait_s=2))
    late, done = [], set()
    while (order := next_order(world, pid, done)) is not None:
        done.add(order.name)
        path = worked(world, order, None)
        if order.name == "east-lung-2-train.order":
            late.append(path)
        else:
            shutil.copy(path, inbox(world.folder) / path.name)
    assert refused(world, late[0]) in {"late", "older"}
    assert "east-lung-4-train.order" in done


def test_a_run_goes_on_without_a_site_that_declines_and_asks_it_again(
    world, monkeypatch
):
    monkeypatch.setattr(admission, "_AGAIN_S", 0.0)
    pid = forked(lambda: run_by_files(world, federation__min_sites=2))
    done: set[str] = set()
    order = next_order(world, pid, done)
    assert order is not None
    time.sleep(0.5)
    assert orders_of(world.run)[-1].number == 1  # quorum is there; east is waited for
    bring(world, worked(world, order, Failure(105301)))
    done.add(order.name)
    while next_order(world, pid, done) is not None:
        done.update(path.name for path in world.orders())
    assert [o.kind for o in orders_of(world.run)] == ["query"] * len(
        orders_of(world.run)
    )
    assert len(orders_of(world.run)) >= 2
