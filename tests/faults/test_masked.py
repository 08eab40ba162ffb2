"""Rows 3 and 4 again, under masks: real processes, real keys, what is lost is lost."""

from client.audit import read_audit
from tests.faults.federation import Run
from tests.faults.hosts import Site
from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, SOON, WITHOUT_NORTH, comes_back

MASKED = {
    **SOON,
    "privacy__secure_aggregation": "on",
    "privacy__min_cohort": 2,
}
"""Three hospitals, threshold two: one may be lost."""


def opened(site: Site, run: Run, number: int) -> int:
    """How often a site's audit log has a part in opening a round's sum."""
    return sum(
        (line.kind, line.round, line.what) == ("open", number, "Opening")
        and f"-{run.folder.name}-" in (line.run or "")
        for line in read_audit(site.folder).lines
    )


def left_in_the_clear(run: Run) -> list[str]:
    """Sites whose audit log has an update in the clear."""
    return [
        site.name
        for site in run.fed.sites.values()
        for line in read_audit(site.folder).lines
        if line.what == "Update" and f"-{run.folder.name}-" in (line.run or "")
    ]


@row(
    3,
    "under masks: site killed between its keys and its masked vector",
    "dropout recovery: mean of the survivors exact; it is back in the next round",
    short=True,
)
def test_a_site_is_lost_between_its_keys_and_its_masked_vector(fed, seen):
    north, east = fed.site("north"), fed.site("east")
    north.at("message", "hold", round=2)
    east.at("begin", "hold", round=3, kind="judge")
    run = fed.run(**MASKED, rounds=3)
    north.reached("message", round=2)
    north.kill()
    north.go_on()
    run.rounds(2)
    comes_back(fed, "north")
    east.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted()[:2] == [ALL, WITHOUT_NORTH]
    records = [entry.record for entry in run.journal()]
    assert [(r.outcome, r.updates) for r in records] == [("closed", "under masks")] * 3
    assert left_in_the_clear(run) == []
    turns = [opened(east, run, number) for number in (1, 2, 3)]
    assert turns[:2] == [1, 2]  # with nobody lost, one turn opens the sum
    seen(
        "round 2 closed with the mean of two, equal to integer sums of their "
        f"fixed-point updates to the bit; round 3 with {len(run.accepted()[2])} of 3; "
        "no update left any site in the clear"
    )


@row(
    4,
    "under masks: dropouts below the threshold (two of three sites killed)",
    "round void, model unchanged, nothing unmasked",
)
def test_too_few_survivors_open_nothing(fed, seen):
    dead = [fed.site("north"), fed.site("south")]
    for site in dead:
        site.at("training", "hold", round=2)
    run = fed.run(**MASKED)
    for site in dead:
        site.reached("training", round=2)
        site.kill()
        site.go_on()
    run.rounds(2)
    comes_back(fed, "north", "south")
    run.finished()
    check_invariants(run)
    records = [entry.record for entry in run.journal()]
    assert [r.outcome for r in records[:2]] == ["closed", "void"]
    assert records[0].model_digest == records[1].model_digest
    assert [opened(site, run, 2) for site in fed.sites.values()] == [0, 0, 0]
    assert left_in_the_clear(run) == []
    seen(
        "round 2 void with 1 of 3, its model is round 1's to the bit; no site's audit "
        f"log has a part in opening it; round 3 {records[2].outcome}"
    )


EVERYBODY = {
    "privacy__secure_aggregation": "on",
    "deadline_s": 300.0,
    "rejoin_s": 120.0,
}
"""Three hospitals, and a cohort of three: nobody may be lost."""


@row(
    1,
    "under masks: site's service killed in training, where no sum of fewer may open",
    "it comes back and is set up anew; the round loses nothing",
)
def test_a_round_that_needs_everybody_waits_for_who_comes_back(fed, seen):
    north = fed.site("north")
    north.at("training", "hold", round=2)
    run = fed.run(**EVERYBODY)
    north.reached("training", round=2)
    north.kill_service()
    north.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert left_in_the_clear(run) == []
    seconds = run.journal()[1].record.seconds
    seen(f"round 2 closed with 3 of 3 after {seconds:.0f} s, equal to the bit")


@row(
    5,
    "under masks: hub's runner killed while it collects masked vectors",
    "resume with new keys; the same model to the bit",
)
def test_a_hub_that_dies_in_a_masked_round_goes_on(fed, seen):
    north = fed.site("north")
    north.at("message", "hold", round=2)
    run = fed.run(**EVERYBODY)
    north.reached("message", round=2)
    fed.hub.kill_runner()
    north.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    seen("round 2 was asked again with new keys; all models equal to the bit")
