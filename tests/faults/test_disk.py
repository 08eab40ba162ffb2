"""Rows 23 to 25: a disk that is full, read-only, or has changed what it holds."""

import sqlite3
from contextlib import closing

from deploy.hub_runs import resume_run
from deploy.run_state import REQUEST_FILE, RUNS
from server.checkpoint import read_checkpoint
from server.run_files import JOURNAL_FILE
from tests.faults.hosts import until
from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, WITHOUT_NORTH, comes_back, undisturbed
from tests.faults.small_disk import needs_mount, read_only, small_disk

_ROOM = 10 * 4096
"""Enough for a site's notes, not for the optimiser's moments."""


@needs_mount
@row(
    23,
    "disk full at the server, in mid-run: to the last byte; with room for a note",
    "clean stop with the old model intact",
)
def test_the_hub_s_disk_is_full(fed, seen):
    peace = undisturbed(fed)
    with small_disk(fed.hub.folder / RUNS) as disk:
        fed.hub.at("checkpoint", "hold", round=2)
        run = fed.run()
        fed.hub.reached("checkpoint", round=2)
        before = fed.hub.log("runner").count("is tried again in")
        disk.fill()
        fed.hub.go_on()
        until(
            lambda: fed.hub.log("runner").count("is tried again in") > before,
            what="the runner to notice",
        )
        _is_intact(run, 1)
        fed.hub.at("checkpoint", "hold", round=3)
        disk.free()  # and nobody does anything else
        fed.hub.reached("checkpoint", round=3)
        disk.fill(leave_bytes=4 * 4096)
        fed.hub.go_on()
        until(lambda: run.state.state == "failed", what="the run to stop")
        why = run.state.why
        assert "No space left on device" in why
        _is_intact(run, 2)
        disk.free()
        resume_run(run.folder)
        run.finished()
        check_invariants(run)
        assert run.accepted() == [ALL] * 3
        assert run.sha256 == peace
    seen(f"full: goes on by itself when there is room; “{why}”; model bit-equal")


def _is_intact(run, rounds):
    """The journal has so many rounds, and the model of the last is whole."""
    done = run.journal()
    assert len(done) == rounds
    folder = run.folder / "checkpoints"
    read_checkpoint(folder, done[-1].checkpoint, done[-1].sha256)


@needs_mount
@row(
    24,
    "disk full at a site: to the last byte; with room for its notes, not for its state",
    "site reports, round goes on",
)
def test_a_site_s_disk_is_full(fed, seen):
    north = fed.site("north")
    north.stop()
    with small_disk(north.folder, "256m") as disk:
        comes_back(fed, "north")
        north.at("begin", "hold", round=2)
        run = fed.run(rounds=4)
        north.reached("begin", round=2)
        disk.fill()
        north.go_on()
        north.at("begin", "hold", round=3)
        north.reached("begin", round=3)
        disk.free()
        disk.fill(leave_bytes=_ROOM)
        north.go_on()
        north.at("begin", "hold", round=4)
        north.reached("begin", round=4)
        disk.free()
        north.go_on()
        run.finished()
        check_invariants(run)
        north.stop()
    comes_back(fed, "north")
    assert run.accepted() == [ALL, WITHOUT_NORTH, WITHOUT_NORTH, ALL]
    assert [run.outcome("north", n) for n in (2, 3)] == ["failed"] * 2
    why = [run.reason("north", n) for n in (2, 3)]
    assert "can't note the order that it begins" in why[0]
    assert "can't keep or read its training state" in why[1]
    seen("; ".join(f"“{reason}”" for reason in why))


@needs_mount
@row(
    25,
    "the last checkpoint is altered by one bit while the hub is down; the disk of the "
    "checkpoints turns read-only",
    "hash check, one round back",
)
def test_a_checkpoint_is_corrupt_or_can_t_be_written(fed, seen):
    peace = undisturbed(fed)
    fed.hub.at("committed", "hold", round=2)
    run = fed.run()
    fed.hub.reached("committed", round=2)
    path = run.folder / "checkpoints" / "round-000002.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = fed.hub.log("runner").count("going back to round 1")
    fed.hub.kill_runner()
    fed.hub.go_on()
    run.finished()
    assert fed.hub.log("runner").count("going back to round 1") == before + 1
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert run.sha256 == peace
    seen("altered: back to round 1, round 2 done again, model bit-equal")

    fed.hub.at("checkpoint", "hold", round=2)
    run = fed.run()
    fed.hub.reached("checkpoint", round=2)
    with read_only(run.folder / "checkpoints"):
        fed.hub.go_on()
        until(lambda: run.state.state == "failed", what="the run to stop")
        why = run.state.why
        _is_intact(run, 1)
    assert "Read-only file system" in why
    resume_run(run.folder)
    run.finished()
    check_invariants(run)
    assert run.sha256 == peace
    seen(f"read-only: “{why}”, and resumed to the same model")


def test_a_damaged_run_holds_up_no_other(fed):
    peace = undisturbed(fed)
    fed.hub.at("committed", "hold", round=1)
    torn, lost, sound = fed.run(), fed.run(), fed.run()
    fed.hub.reached("committed", round=1)
    fed.hub.kill_runner()
    with closing(sqlite3.connect(torn.folder / JOURNAL_FILE)) as journal, journal:
        journal.execute("UPDATE round SET record = '{}'")
    (lost.folder / REQUEST_FILE).write_bytes(b"\0")
    fed.hub.go_on()
    until(lambda: torn.state.state == lost.state.state == "failed", what="two to fail")
    assert "unforeseen error (ValidationError)" in torn.state.why
    assert "request.json that can't be read" in lost.state.why
    sound.finished()
    assert sound.sha256 == peace
