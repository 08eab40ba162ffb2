"""Rows 2 and 9 to 14: what a line does to a federation.

While the fault lasts, north stands between its training and its upload, so that the
upload is what meets the fault.
"""

import random
import time

import pytest

from tests.faults.federation import Federation, Run
from tests.faults.hosts import FULL, Site, until
from tests.faults.invariants import check_invariants
from tests.faults.line import IN_HANDSHAKE
from tests.faults.rows import row
from tests.faults.scenes import ALL, WITHOUT_NORTH, calm, deadline_s, trained

LONG_S = 60.0 if FULL else 25.0
"""Above the time after which the hub calls a site lost (30 s; shortened 20 s)."""
PATIENT = {"deadline_s": 600.0, "rejoin_s": 300.0}
BIG = {"model__channels": [16, 32, 64]}


def before_upload(fed: Federation, **changes: object) -> tuple[Run, Site]:
    """A run whose north stands before its upload of round 2."""
    north = fed.site("north")
    north.at("message", "hold", round=2)
    run = fed.run(**changes)
    north.reached("message", round=2)
    return run, north


def disturb(run: Run, north: Site, for_s: float, **faults: object) -> float:
    """Put a fault on north's line, let north go on into it, heal the line.

    Returns:
        Seconds from the healing to the end of the round.
    """
    north.proxy.set(**faults)
    north.go_on()
    time.sleep(for_s)
    north.proxy.heal()
    healed = time.monotonic()
    run.rounds(2)
    return time.monotonic() - healed


@row(
    2,
    "line cut after k bytes of upload (k by chance), again and again until the round "
    "is over",
    "no trace in the mean",
)
def test_an_upload_is_cut(fed, seen, seed):
    # Another seed, other updates: the SuperLink takes no object twice, not even in a
    # later run that comes to the very same one.
    fresh = {"plan__seed": 100 + seed, "deadline_s": deadline_s(fed)}
    run, north = before_upload(fed, **fresh, **BIG)
    size = run.row("north", 1).bytes_up
    after = random.Random(seed).randrange(10_000, size)
    north.proxy.set(cut_up_after=after)
    north.go_on()
    run.rounds(2)
    cuts = north.proxy.counters.cuts
    north.proxy.heal()
    run.finished()
    check_invariants(run)
    assert run.accepted()[:2] == [ALL, WITHOUT_NORTH]
    assert cuts >= 1
    seen(
        f"cut {cuts} times after {after} of {size} bytes: “{run.reason('north', 2)}”, "
        "mean of the others to the bit"
    )


@row(
    9,
    f"one-way partition of {LONG_S:.0f} s: what the site says vanishes; what it is "
    "told vanishes",
    "retry with backoff, reconnect by itself, bounded",
)
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_line_works_one_way_only(fed, seen, way):
    run, north = before_upload(fed, **PATIENT)
    before = north.proxy.counters.connections
    late_s = disturb(run, north, LONG_S, **{f"drop_{way}": True})
    tries = north.proxy.counters.connections - before
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert tries < LONG_S
    seen(f"{way}: {tries} connections, round closed {late_s:.1f} s after it was over")


@row(
    10,
    f"partition of {LONG_S:.0f} s: connections stand still, new ones are refused",
    "retry with backoff, reconnect by itself, bounded",
)
def test_a_line_is_cut_for_a_minute(fed, seen):
    run, north = before_upload(fed, **PATIENT)
    tries = north.log("service").count("trying again")
    late_s = disturb(run, north, LONG_S, frozen=True)
    tries = north.log("service").count("trying again") - tries
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert tries < LONG_S
    seen(f"{tries} tries, round closed {late_s:.1f} s after it was over")


@row(
    11,
    "line that comes and goes at 1 Hz during a whole run",
    "retry with backoff, reconnect by itself, bounded",
)
def test_a_line_comes_and_goes(fed, seen):
    north = fed.site("north")
    before = north.proxy.counters.connections
    north.proxy.set(toggle_hz=1.0)
    began = time.monotonic()
    run = fed.run(**PATIENT, **BIG)
    run.finished()
    seconds = time.monotonic() - began
    north.proxy.heal()
    tries = north.proxy.counters.connections - before
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert tries < 4 * seconds
    seen(f"3 rounds of 3 sites in {seconds:.0f} s, {tries} connections")


@row(12, "500 ms of latency (250 ms each way) at every site", "completes")
def test_every_line_is_slow_to_answer(fed, seen):
    peace = calm(fed)
    for site in fed.sites.values():
        site.proxy.set(delay_up_s=0.25, delay_down_s=0.25)
    run = fed.run()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert run.sha256 == peace.sha256
    rounds = [[e.record.seconds for e in r.journal()][1] for r in (peace, run)]
    seen(f"a round takes {rounds[1]:.1f} s in place of {rounds[0]:.1f} s, same model")


@row(
    13,
    "line of 1 Mbit/s at one site; then one so slow that it misses the deadline",
    "completes; deadline, late update excluded and logged",
)
def test_one_line_is_narrow(fed, seen):
    north = fed.site("north")
    north.proxy.set(rate_up=125_000, rate_down=125_000)
    run = fed.run(**BIG)
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    seconds, size = run.journal()[1].record.seconds, run.row("north", 2).bytes_up
    seen(f"1 Mbit/s: {size / 1e6:.2f} MB each way, {seconds:.1f} s a round")
    allowed_s = deadline_s(fed)
    late, north = before_upload(fed, deadline_s=allowed_s, **BIG)
    fed.site("east").at("begin", "hold", round=3)
    north.proxy.set(rate_up=size / allowed_s / 4)
    north.go_on()
    late.rounds(2)
    north.proxy.heal()
    until(lambda: trained(north, late, 3), what="north to be in round 3")
    fed.site("east").go_on()
    late.finished()
    check_invariants(late)
    assert late.accepted() == [ALL, WITHOUT_NORTH, ALL]
    assert late.outcome("north", 2) == "late"
    seen(f"slower: “{late.reason('north', 2)}” ({allowed_s:.0f} s), in round 3 again")


@row(14, "reset in the TLS handshake, every time for 5 s", "retry")
def test_the_handshake_is_reset(fed, seen):
    run, north = before_upload(fed)
    late_s = disturb(run, north, 5.0, reset_after=IN_HANDSHAKE)
    resets = north.proxy.counters.resets
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL] * 3
    assert 2 <= resets < 50
    seen(f"{resets} resets, round closed {late_s:.1f} s after the last")
