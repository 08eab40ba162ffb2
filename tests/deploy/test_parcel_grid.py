"""A federation whose messages are files, with each site in a process of its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Error, Message, RecordDict

from client.site import SIGN_KEY
from common.errors import ContributionError
from common.keys import read_signing_key
from common.parcel import AnswerParcel, Failure, read_order, write_answer
from common.parcel_file import peek
from common.signing import public_text
from deploy.parcel_grid import INBOX, OUTBOX, ParcelGrid
from deploy.parcel_work import PARCELS, work_parcel
from deploy.simulate import simulate
from server.app import execute
from tests.deploy.conftest import environment
from tests.deploy.test_simulate import model_bytes

HUB = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SITES = {
    name: Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    for number, name in enumerate(("north", "south"))
}
COURIER = """
import os, sys, time
from pathlib import Path
import torch, torch._dynamo
from common.signing import public_from_text
from deploy.parcel_work import work_parcel
outbox, inbox, key, *sites = sys.argv[1:]
torch.set_num_threads(1)

def serve(site, stick):
    stick.mkdir()
    while True:
        for order in sorted(Path(outbox).glob(f"{site.name}-*.order")):
            copy = stick / order.name
            if not copy.exists():
                copy.write_bytes(order.read_bytes())
                answer = work_parcel(site, copy, stick, public_from_text(key))
                answer.rename(Path(inbox) / answer.name)
        time.sleep(0.02)

for site in map(Path, sites):
    if os.fork() == 0:
        serve(site, site / "stick")
print("ready", flush=True)
os.wait()
"""
"""Imports everything once, then becomes one process a site, which fetches orders,
works, and brings the answers back."""


@contextmanager
def couriers(folder: Path, sites: list[Path]) -> Iterator[None]:
    """Have the sites served while the body runs."""
    key = public_text(HUB.public_key())
    argv = [folder / OUTBOX, folder / INBOX, key, *sites]
    with subprocess.Popen(
        [sys.executable, "-c", COURIER, *map(str, argv)],
        env=environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_two_sites_by_files_end_bit_equal_to_the_in_process_engine(plan_file, tmp_path):
    run, parcels = tmp_path / "whole", tmp_path / "parcels"
    simulate(plan_file(), run, threads=1)
    again = tmp_path / "again"
    again.mkdir()
    for name in ("plan.toml", "arms.json"):
        shutil.copy(run / name, again / name)
    sites = [again / "sites" / name for name in ("north", "south")]
    for site in sites:
        shutil.copytree(run / "sites" / site.name, site)
        shutil.rmtree(site / "state")
    keys = {site.name: read_signing_key(site / SIGN_KEY).public_key() for site in sites}
    grid = ParcelGrid(parcels, HUB, keys)
    with couriers(parcels, sites):
        execute(grid, again, "federated", keys)
    assert model_bytes(again) == model_bytes(run)
    assert list((parcels / OUTBOX).iterdir()) == []
    assert list((parcels / INBOX).iterdir()) == []
    served = [len(list((site / PARCELS).iterdir())) for site in sites]
    assert served == [1 + 3 + 3 + 1] * 2  # hello, three rounds judged, the test


@pytest.fixture
def grid(tmp_path) -> ParcelGrid:
    keys = {name: key.public_key() for name, key in SITES.items()}
    return ParcelGrid(tmp_path, HUB, keys)


def push(grid: ParcelGrid, node: int = 2) -> tuple[str, Path]:
    """Send an order; its id and its file."""
    content = RecordDict({"c": ConfigRecord({"node": node})})
    (message_id,) = grid.push_messages([Message(content, node, "train", ttl=60)])
    (path,) = [p for p in grid._out.iterdir() if peek(p).message_id == message_id]
    return message_id, path


def answer(grid: ParcelGrid, order: Path, **changes: object) -> Path:
    """What the site answers, in `inbox/`."""
    site = peek(order).site
    got = read_order(order, site, HUB.public_key())
    said = {"message_id": got.message_id, "site": site, "kind": "train"}
    parcel = AnswerParcel(**{**said, "content": got.content, **changes})
    path = grid._in / f"{order.stem}.answer"
    write_answer(path, parcel, got.reply_key, SITES[site])
    return path


def pull(grid: ParcelGrid, *ids: str) -> list[Message]:
    return list(grid.pull_messages(ids))


def codes(caplog) -> list[str]:
    return [r.code for r in caplog.records if r.getMessage() == "parcel refused"]


def test_an_answer_is_taken_when_it_is_asked_for_and_counts_once(grid, caplog):
    (first, to_north), (second, to_south) = push(grid, 2), push(grid, 3)
    assert pull(grid, first) == []
    brought = answer(grid, to_north), answer(grid, to_south)
    again = brought[0].read_bytes()
    (reply,) = pull(grid, second)
    assert reply.content["c"]["node"] == 3
    assert reply.metadata.reply_to_message_id == second
    assert not brought[1].exists()
    assert not to_south.exists()
    (reply,) = pull(grid, first)
    assert (reply.content["c"]["node"], reply.metadata.src_node_id) == (2, 2)
    assert codes(caplog) == []
    brought[0].write_bytes(again)
    assert pull(grid, first) == []
    assert pull(grid, first) == []
    assert codes(caplog) == ["replay"]  # said once, and left where it is
    assert brought[0].exists()


def test_a_reply_that_is_taken_alone_leaves_no_file_behind(grid):
    message_id, order = push(grid)
    path = answer(grid, order)
    assert next(iter(grid.pull_messages([message_id]))).has_content()
    assert not path.exists()


def test_a_file_that_is_still_being_copied_in_is_taken_when_it_is_whole(grid, caplog):
    message_id, order = push(grid)
    path = answer(grid, order)
    whole = path.read_bytes()
    for size in (5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert pull(grid, message_id) == []
    assert codes(caplog) == ["truncated"]
    path.write_bytes(whole)
    assert len(pull(grid, message_id)) == 1


def test_a_forged_answer_takes_nothing_away_from_the_true_one(grid, caplog):
    message_id, order = push(grid)
    path = answer(grid, order)
    forged = bytearray(path.read_bytes())
    forged[-1] ^= 1
    path.with_name("a.answer").write_bytes(forged)
    (grid._in / "b.answer").write_bytes(b"junk")
    (grid._in / "c.answer").mkdir()
    assert len(pull(grid, message_id)) == 1
    assert codes(caplog) == ["altered", "format", "file"]


def test_a_site_can_t_answer_for_another_one(grid, caplog):
    message_id, order = push(grid, 3)
    got = read_order(order, "south", HUB.public_key())
    parcel = AnswerParcel(message_id, "north", "train", got.content)
    write_answer(grid._in / "n.answer", parcel, got.reply_key, SITES["north"])
    parcel = AnswerParcel(message_id, "south", "train", got.content)
    write_answer(grid._in / "s.answer", parcel, got.reply_key, SITES["north"])
    assert pull(grid, message_id) == []
    assert codes(caplog) == ["site", "signature"]


def test_a_failure_is_an_error_reply(grid):
    message_id, order = push(grid)
    answer(grid, order, content=Failure(1053, "site is paused"))
    (reply,) = pull(grid, message_id)
    assert isinstance(reply.error, Error)
    assert (reply.error.code, reply.error.reason) == (1053, "site is paused")


def test_a_restarted_server_gives_its_orders_anew(grid, tmp_path, caplog):
    message_id, order = push(grid)
    answer(grid, order)
    keys = {name: key.public_key() for name, key in SITES.items()}
    restarted = ParcelGrid(tmp_path, HUB, keys)
    assert not order.exists()
    assert pull(restarted, message_id) == []
    assert codes(caplog) == ["replay"]


def test_orders_hold_no_model_in_memory_once_they_are_written(grid):
    message_id, _ = push(grid)
    kept, _ = grid._waiting[message_id]
    assert len(kept.content) == 0


def test_a_site_works_on_an_order_once_and_on_a_failed_one_again(plan_file, tmp_path):
    run = tmp_path / "run"
    simulate(plan_file(), run, threads=1)
    site, answers = run / "sites" / "north", tmp_path / "answers"
    answers.mkdir()
    keys = {"north": read_signing_key(site / SIGN_KEY).public_key()}
    grid = ParcelGrid(tmp_path / "parcels", HUB, keys)
    message_id, path = push(grid)  # no order that the site's app understands
    for _ in range(2):
        brought = work_parcel(site, path, answers, HUB.public_key())
    brought.rename(grid._in / brought.name)
    (reply,) = pull(grid, message_id)
    assert "without its record of facts" in reply.error.reason
    assert not np.any([p.name == message_id for p in (site / PARCELS).iterdir()])
    (site / PARCELS / message_id).touch()
    message = Message(RecordDict(), 2, "query", ttl=60)
    (message_id,) = grid.push_messages([message])
    (site / PARCELS / message_id).touch()
    (path,) = grid._out.iterdir()
    with pytest.raises(ContributionError, match="was answered already"):
        work_parcel(site, path, answers, HUB.public_key())
    with pytest.raises(ContributionError, match="not signed by the key"):
        work_parcel(site, path, answers, SITES["south"].public_key())
