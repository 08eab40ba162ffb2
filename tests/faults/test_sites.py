"""Rows 1, 3, 4, 15: a hospital's process dies or stands still."""

import signal

from tests.faults.hosts import until
from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, SOON, WITHOUT_NORTH, comes_back, trained


@row(
    1,
    "site killed in training (SIGKILL to its service and supervisor)",
    "round closes with quorum; it rejoins",
)
def test_a_site_is_killed_in_training(fed, seen):
    north, east = fed.site("north"), fed.site("east")
    north.at("training", "hold", round=2)
    east.at("begin", "hold", round=3)
    run = fed.run(**SOON)
    north.reached("training", round=2)
    north.kill()
    run.rounds(2)
    north.go_on()
    comes_back(fed, "north")
    east.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    seconds = run.journal()[1].record.seconds
    seen(
        f"round 2 closed with 2 of 3 after {seconds:.0f} s "
        f"(“{run.reason('north', 2)}”), round 3 with 3 of 3"
    )


@row(
    3,
    "site killed between accepting an order and its update (trained and signed, not "
    "sent; without secure aggregation there is no key exchange to recover)",
    "mean of the survivors exact",
)
def test_a_site_drops_out_before_its_update(fed, seen):
    north = fed.site("north")
    north.at("message", "hold", round=2)
    run = fed.run(**SOON)
    north.reached("message", round=2)
    north.kill()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, WITHOUT_NORTH]
    shares = [run.row(site, 2).weight for site in WITHOUT_NORTH]
    cases = [run.row(site, 2).cases for site in WITHOUT_NORTH]
    assert shares == [n / sum(cases) for n in cases]
    seen(
        f"survivors weigh {shares[0]:.3f} and {shares[1]:.3f} ({cases[0]} and "
        f"{cases[1]} cases); the model is their mean to the bit"
    )


@row(
    4,
    "dropouts below the quorum (two of three sites killed, quorum 2)",
    "round void, model unchanged (nothing to unmask without secure aggregation)",
)
def test_dropouts_below_the_quorum(fed, seen):
    dead = [fed.site("north"), fed.site("south")]
    for site in dead:
        site.at("training", "hold", round=2)
    fed.site("east").at("begin", "hold", round=3)
    run = fed.run(**SOON)
    for site in dead:
        site.reached("training", round=2)
        site.kill()
    run.rounds(2)
    for site in dead:
        site.go_on()
    comes_back(fed, "north", "south")
    fed.site("east").go_on()
    run.finished()
    check_invariants(run)
    records = [entry.record for entry in run.journal()]
    assert run.accepted() == [ALL, ("east",), ALL]
    assert [record.outcome for record in records] == ["closed", "void", "closed"]
    assert records[0].model_digest == records[1].model_digest
    seen("round 2 void with 1 of 3, its model is round 1's to the bit; round 3 closed")


@row(
    15,
    "site paused (SIGSTOP) in training, continued a round later",
    "straggler rule; stale result refused",
)
def test_a_site_stands_still(fed, seen):
    north, east = fed.site("north"), fed.site("east")
    north.at("training", "hold", round=2)
    east.at("begin", "hold", round=3)
    run = fed.run(**SOON)
    north.reached("training", round=2)
    north.signal(signal.SIGSTOP)
    run.rounds(2)
    north.go_on()
    north.signal(signal.SIGCONT)
    until(lambda: trained(north, run, 2), what="north to finish round 2")
    until(lambda: trained(north, run, 3), what="north to take round 3")
    east.go_on()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    seconds = run.journal()[1].record.seconds
    seen(
        f"round 2 closed without it after {seconds:.0f} s "
        f"(“{run.reason('north', 2)}”); its answer of round 2 came in round 3 and "
        "counted nowhere; it is in round 3"
    )
