"""Rows 16 to 18: an answer comes twice, from an earlier round, or altered."""

import time

from tests.faults.hosts import until
from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, WITHOUT_NORTH

_IDLE_S = 6.0
"""httpx keeps an idle connection for 5 s."""
REFUSED = "WARNING refused site=north code=signature"
"""What the hub's log says of it."""


def first_clause(run, number):
    """Of the reason why north's answer was refused."""
    return run.reason("north", number).split(", expected it")[0]


@row(
    16,
    "duplicate: an answer pushed three times, once under a new id; each connection "
    "said once more to the hub",
    "idempotent",
    short=True,
)
def test_an_answer_comes_twice(fed, seen):
    north = fed.site("north")
    north.proxy.set(replay=True)
    north.at("message", "tests.faults.answers:twice")
    run = fed.run()
    run.finished()
    north.kill_service()  # ends its connections, so the proxy says them again
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    seen(
        f"all {3 * 3} updates counted once; {north.proxy.counters.replays} connections "
        "were replayed, TLS took none"
    )


@row(
    17,
    "replay of an earlier round's answer, as it was and under this order's words",
    "refused",
)
def test_an_earlier_answer_is_replayed(fed, seen):
    north = fed.site("north")
    north.at("message", "tests.faults.answers:replay", round=2)
    north.at("message", "tests.faults.answers:replay_as_new", round=3)
    run = fed.run()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, WITHOUT_NORTH]
    assert [run.outcome("north", n) for n in (2, 3)] == ["refused"] * 2
    assert "signed an answer for round 1, expected 2" in run.reason("north", 2)
    assert "whose signature does not fit" in run.reason("north", 3)
    seen("; ".join(f"“{first_clause(run, n)}”" for n in (2, 3)))


@row(
    18,
    "altered byte: in a signed answer; and on the wire, in mid-upload",
    "refused, with an audit event",
    short=True,
)
def test_a_byte_is_altered(fed, seen):
    north, south = fed.site("north"), fed.site("south")
    before = fed.hub.log("runner").count(REFUSED)
    north.at("message", "tests.faults.answers:flip", round=2)
    south.at("message", "hold", round=3)
    run = fed.run()
    south.reached("message", round=3)
    south.proxy.set(reset_after=0)  # connections that stand have passed that byte
    until(lambda: south.proxy.counters.resets, what="a heartbeat")
    time.sleep(_IDLE_S)  # the others close by themselves
    south.proxy.set(reset_after=None, flip_up_at=8000)
    south.go_on()
    until(lambda: south.proxy.counters.flipped, what="the upload")
    south.proxy.heal()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    assert run.outcome("north", 2) == "refused"
    assert "whose signature does not fit" in run.reason("north", 2)
    assert fed.hub.log("runner").count(REFUSED) == before + 1
    seen(
        f"“{first_clause(run, 2)}”, in the journal and the hub's log; "
        f"{south.proxy.counters.flipped} bytes altered on the wire broke TLS and were "
        "sent again"
    )


def test_a_site_can_t_say_for_the_superlink_that_its_answer_got_lost(fed):
    fed.site("north").at("message", "tests.faults.answers:pretend_lost", round=2)
    run = fed.run()
    run.finished()
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    assert run.outcome("north", 2) == "failed"
    assert run.reason("north", 2) == "site answered with Flower's own error 3"
