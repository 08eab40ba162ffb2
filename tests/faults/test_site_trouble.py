"""Rows 29, 31, 32: a site short of memory, with bad images, or sent another model."""

import resource
from pathlib import Path

import pydicom

from client.audit import read_audit
from common.errors import ERROR_BASE, OutOfMemoryError
from tests.faults.federation import Run
from tests.faults.hosts import Site, until
from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, WITHOUT_NORTH, joined, undisturbed

LARGE = {
    "training__batch_size": 512,
    "training__patch": [16, 16, 16],
    "training__steps": 1,
    "rounds": 2,
}
"""One of its first layer's outputs takes 64 MiB."""
_SLACK_BYTES = 48 << 20


ROW_29 = (
    29,
    "out of memory at a site: its process may take 48 MiB more (RLIMIT_AS); the kernel "
    "kills its service (SIGKILL) each time that it trains",
    "restart with a smaller batch, or a refusal",
)


@row(*ROW_29)
def test_a_site_is_out_of_memory(fed, seen):
    undisturbed(fed)  # all that is imported late is there
    north = fed.site("north")
    before = north.log("service").count("ran out of memory")
    north.at("begin", "hold", round=1)  # before it has trained, so it holds no memory
    fed.site("east").at("begin", "hold", round=1)
    run = fed.run(**LARGE)
    north.reached("begin", round=1)
    pid = north.pid("service")
    assert pid is not None
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + _SLACK_BYTES
    unlimited = resource.prlimit(pid, resource.RLIMIT_AS, (limit, -1))
    north.go_on()
    until(
        lambda: north.log("service").count("ran out of memory") > before,
        what="the refusal",
    )
    resource.prlimit(pid, resource.RLIMIT_AS, unlimited)
    fed.site("east").go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [WITHOUT_NORTH, ALL]
    assert north.pid("service") == pid
    assert "ran out of memory for this plan's batches" in run.reason("north", 1)
    assert _codes(north, run, 1) == [ERROR_BASE + OutOfMemoryError.exit_code]
    seen(f"refused: “{run.reason('north', 1)}”; the same process did the next round")


@row(*ROW_29)
def test_a_site_is_killed_for_its_memory(fed, seen):
    north = fed.site("north")
    before = joined(north)
    north.at("training", "die", round=2)
    run = fed.run(rejoin_s=120.0, deadline_s=300.0)
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    assert "died several times in the middle of this order" in run.reason("north", 2)
    assert joined(north) == before + 3
    seen(
        f"killed 3 times, then refused after {run.journal()[1].record.seconds:.0f} s: "
        f"“{run.reason('north', 2)}”"
    )


@row(
    31,
    "corrupt DICOM in the training set: a slice of one patient cut in half",
    "series quarantined, training goes on",
)
def test_a_series_is_corrupt(fed, seen):
    source = fed.folder / "patients" / "north"
    slices = [p for p in sorted(source.rglob("*.dcm")) if "seg" not in p.name]
    path = next(p for p in slices if "0002" in str(p.parent))
    whole = path.read_bytes()
    assert pydicom.dcmread(path).pixel_array.any()
    path.write_bytes(whole[: len(whole) // 2])
    try:
        run = fed.run(training__learning_rate=0.009)  # a new plan is taken in anew
        run.finished()
        check_invariants(run)
    finally:
        path.write_bytes(whole)
    assert run.accepted() == [ALL] * 3
    rows = {site: run.row(site, 3) for site in ALL}
    assert [rows[s].found - rows[s].accepted for s in ALL] == [0, 1, 0]
    seen(
        f"{rows['north'].accepted} of {rows['north'].found} series at this site, "
        f"{rows['north'].cases} cases trained on, all three rounds with all sites"
    )
    again = fed.run(training__learning_rate=0.011)
    again.finished()
    assert again.row("north", 1).accepted == rows["north"].found


@row(
    32,
    "another model sent to one site than announced; another model and digest, so that "
    "only the hub's runner knows better",
    "round fails closed, site notices",
)
def test_one_site_is_sent_another_model(fed, seen):
    north = fed.site("north")
    fed.hub.at("order", "tests.faults.lies:other_model", round=2)
    fed.hub.at("order", "tests.faults.lies:other_model_and_digest", round=3)
    run = fed.run(rounds=4)
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, WITHOUT_NORTH, ALL]
    assert [run.outcome("north", n) for n in (2, 3)] == ["failed", "refused"]
    assert "is not the one announced" in run.reason("north", 2)
    assert _codes(north, run, 2) == [104002]
    assert "is not the one announced for round 2" in north.log("service")
    assert "signed an answer for model" in run.reason("north", 3)
    seen("; ".join(f"“{run.reason('north', n)}”" for n in (2, 3)))


def _codes(site: Site, run: Run, number: int) -> list[int]:
    """What the site's log says that it answered to a round's order."""
    until(lambda: read_audit(site.folder).broken is None)
    return [
        line.code
        for line in read_audit(site.folder).lines
        if (line.kind, line.round) == ("train", number)
        and f"-{run.folder.name}-" in (line.run or "")
    ]
