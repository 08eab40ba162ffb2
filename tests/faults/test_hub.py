"""Rows 5 to 8: the hub dies, at the instants that matter, or its power fails."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deploy.run_state import REQUEST_FILE
from server.checkpoint import prune, read_checkpoint
from server.journal import entries, open_journal
from server.run_files import ARMS_FILE, JOURNAL_FILE, PLAN_FILE
from tests.faults.federation import Run
from tests.faults.hosts import REPOSITORY, until
from tests.faults.invariants import check_invariants
from tests.faults.points import PRELOAD
from tests.faults.powerloss import (
    COMPILER,
    SYNCS,
    Sync,
    after,
    compile_shim,
    read_syncs,
)
from tests.faults.rows import row
from tests.faults.scenes import ALL, trained, undisturbed
from tests.faults.writer import write_round

CHECKPOINT_FLOATS = 2_000_000
"""8 MB: long enough to be met in the middle."""
KILLS = 12


def in_peace_and_disturbed(fed, run: Run) -> None:
    """Nothing is lost, nothing counted twice, and the model is the one of peace."""
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert run.sha256 == undisturbed(fed)


@row(
    5,
    "hub killed (SIGKILL to all of it) while collecting, one answer of two folded",
    "resume, no double count",
)
def test_the_hub_is_killed_while_collecting(fed, seen):
    undisturbed(fed)
    north = fed.site("north")
    north.at("message", "hold", round=2)
    run = fed.run()
    north.reached("message", round=2)
    until(lambda: trained(fed.site("east"), run, 2), what="east's answer")
    time.sleep(1.0)  # east's answer is pulled and folded
    fed.hub.kill()
    assert run.state.rounds_done == 1
    fed.hub.start()
    north.go_on()
    run.finished()
    in_peace_and_disturbed(fed, run)
    times = trained(fed.site("east"), run, 2)
    assert times == 2
    seen(
        f"round 2 asked anew (east trained it {times} times, counted once); the model "
        "is that of the undisturbed run to the bit"
    )


@row(
    6,
    "hub's runner killed in mid-checkpoint, at chance instants",
    "old or new, never torn",
)
def test_the_hub_is_killed_in_mid_checkpoint(fed, seen, seed):
    undisturbed(fed)
    found = kill_a_writer(random.Random(seed))
    fed.hub.at("checkpoint", "tests.faults.deaths:within_20_ms", round=2)
    run = fed.run()
    fed.hub.reached("checkpoint", round=2)
    until(lambda: fed.hub.pid("runner") is None, what="the runner to die")
    fed.hub.go_on()
    run.finished()
    in_peace_and_disturbed(fed, run)
    seen(
        f"of {KILLS} kills in 8 MB checkpoints {found['old']} left the old one, "
        f"{found['new']} the new one, 0 a torn one ({found['leftovers']} temporary "
        "files left over); the run goes on to the undisturbed model"
    )


def kill_a_writer(chance: random.Random) -> dict[str, int]:
    """Kill processes that write checkpoints and rows; read back what they left."""
    found = {"old": 0, "new": 0, "leftovers": 0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(KILLS):
            before = last_round(folder)
            pid = os.fork()
            if pid == 0:
                write_rounds(folder, before)
            until(lambda: len([*folder.rglob("*.tmp")]) > 0, 30, "a checkpoint")
            time.sleep(chance.uniform(0.0, 0.05))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            found["leftovers"] += len([*folder.rglob("*.tmp")])
            found["old" if last_round(folder) == before else "new"] += 1
            prune(folder / "checkpoints", {last_round(folder)})
    return found


def write_rounds(folder: Path, number: int) -> None:
    """In a child, until it is killed."""
    while True:
        number += 1
        write_round(folder, number, CHECKPOINT_FLOATS)


def last_round(folder: Path) -> int:
    """The journal's last round, whose checkpoint must be the one written then."""
    number = rounds_on(folder)
    if number:
        path = folder / "checkpoints" / f"round-{number:06d}.safetensors"
        assert (load_file(path)["model"] == number).all()
    return number


def rounds_on(folder: Path) -> int:
    """How many rounds a run folder holds; the last one's checkpoint must be whole."""
    if not (folder / JOURNAL_FILE).exists():
        return 0
    with open_journal(folder / JOURNAL_FILE, {}) as journal:
        done = entries(journal)
    if done:
        read_checkpoint(folder / "checkpoints", done[-1].checkpoint, done[-1].sha256)
    return len(done)


@row(
    7,
    "hub's runner killed after the commit of a round, before anything else",
    "deduplicated",
)
def test_the_hub_is_killed_after_the_commit(fed, seen):
    fed.hub.at("committed", "die", round=2)
    run = fed.run()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    times = [trained(site, run, 2) for site in fed.sites.values()]
    assert times == [1, 1, 1]
    seen("round 2 stands once and was asked of each site once; round 3 went on from it")


def check_every_instant(
    syncs: list[Sync],
    commits: list[int],
    run: Path,
    first: dict[str, bytes],
    scratch: Path,
) -> list[int]:
    """How many rounds the disk holds after each sync; never fewer than committed."""
    kept = []
    for count in range(len(syncs) + 1):
        image = scratch / f"image-{count}"
        after(syncs[:count], run, first, image)
        kept.append(rounds_on(image))
        acknowledged = sum(commit <= count for commit in commits)
        assert kept[-1] >= acknowledged, f"lost round {acknowledged} after sync {count}"
    return kept


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_no_round_that_was_committed_is_lost_with_the_power(tmp_path):
    run, syncs_at = tmp_path / "run", tmp_path / "syncs"
    run.mkdir()
    syncs_at.mkdir()
    shim = compile_shim(tmp_path / "powerloss.so")
    written = subprocess.run(
        [sys.executable, "-m", "tests.faults.writer", run, "4"],
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "LD_PRELOAD": str(shim),
            SYNCS: str(syncs_at),
        },
        capture_output=True,
        check=True,
    )
    commits = [int(line) for line in written.stdout.split()]
    syncs = read_syncs(syncs_at)
    kept = check_every_instant(syncs, commits, run, {}, tmp_path)
    assert len(commits) == 4
    assert len(syncs) > 16
    assert kept == sorted(kept)
    assert kept[-1] == 4


@row(
    8,
    "power loss: every write dropped that was not synced (fsync and fdatasync of the "
    "runner and its SQLite recorded), after each sync of a run; resumed from one",
    "last acknowledged round kept",
)
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_the_power_fails(fed, seen, tmp_path):
    undisturbed(fed)
    syncs_at = tmp_path / "syncs"
    syncs_at.mkdir()
    fed.hub.stop()
    shim = compile_shim(tmp_path / "powerloss.so")
    fed.hub.env = {PRELOAD: str(shim), SYNCS: str(syncs_at)}
    fed.hub.start()
    fed.hub.at("committed", "hold", round=3)
    run = fed.run()
    fed.hub.reached("committed", round=3)
    fed.hub.kill()
    fed.hub.env = {}
    fed.hub.go_on()
    syncs = read_syncs(syncs_at)
    names = (REQUEST_FILE, PLAN_FILE, ARMS_FILE)
    first = {name: (run.folder / name).read_bytes() for name in names}
    commits = [
        int(path.read_text()) for path in sorted(fed.hub.control.glob("committed-*"))
    ]
    kept = check_every_instant(syncs, commits, run.folder, first, tmp_path)
    assert kept[-1] == 3
    chosen = max(n for n, rounds in enumerate(kept) if rounds == 2)
    shutil.rmtree(run.folder)
    after(syncs[:chosen], run.folder, first, tmp_path / "resumed")
    shutil.move(tmp_path / "resumed", run.folder)
    fed.hub.start()
    run.finished()
    in_peace_and_disturbed(fed, run)
    seen(
        f"{len(syncs)} instants: the rounds acknowledged by then are on the disk, each "
        f"with its checkpoint; resumed after sync {chosen} (2 rounds), same model"
    )
