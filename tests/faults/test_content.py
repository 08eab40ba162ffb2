"""Rows 19 to 22: a hospital that is let in, signs, and lies."""

from tests.faults.invariants import check_invariants
from tests.faults.rows import row
from tests.faults.scenes import ALL, WITHOUT_NORTH

LIES = "tests.faults.lies:"


def lied_in(fed, lies, **changes):
    """A run in which north tells one lie a round, each refused by name.

    Args:
        fed: The federation.
        lies: Round by round, where it is told, which, and what the refusal must name.
        changes: To the plan.

    Returns:
        The reasons, in the order of the rounds.
    """
    for number, (place, lie, _) in enumerate(lies, start=1):
        fed.site("north").at(place, LIES + lie, round=number)
    run = fed.run(rounds=len(lies) + 1, **changes)
    run.finished()
    check_invariants(run)
    assert run.accepted() == [WITHOUT_NORTH] * len(lies) + [ALL]
    for number, (_, _, named) in enumerate(lies, start=1):
        assert run.outcome("north", number) == "refused"
        reason = run.reason("north", number)
        assert named in reason
        assert run.row("north", number).weight == 0
    return [run.reason("north", n) for n in range(1, len(lies) + 1)]


def quoted(reasons):
    return "; ".join(f"“{reason}”" for reason in reasons)


@row(
    19,
    "an update with one NaN, one with one infinity",
    "refused by name, round goes on",
)
def test_an_update_is_not_finite(fed, seen):
    lies = [("answer", "nan", "norm nan"), ("answer", "infinite", "norm inf")]
    seen(quoted(lied_in(fed, lies)))


@row(
    20,
    "an update a parameter short; of one number; double precision; half precision "
    "called single; two axes; under another key; with a key more",
    "refused by name, round goes on",
    short=True,
)
def test_an_update_is_malformed(fed, seen):
    lies = [
        ("answer", "short", "expected float32["),
        ("answer", "single", "sent float32[1]"),
        ("message", "float64", "came as <f8["),
        ("message", "half", "expected one flat array of <f4"),
        ("message", "square", ", 1] in"),
        ("message", "other_key", "without its delta"),
        ("message", "more_keys", "unknown fields ['gradient']"),
    ]
    reasons = lied_in(fed, lies)
    assert all("north" in reason for reason in reasons[:2])
    seen(f"{len(reasons)} of {len(reasons)} refused, as {quoted(reasons[:1])}")


@row(21, "an update of 1000 times its norm", "refused by name, round goes on")
def test_an_update_is_huge(fed, seen):
    """In its first round the model's own norm is all there is to compare with."""
    north = fed.site("north")
    north.at("answer", LIES + "huge", round=2)
    run = fed.run()
    run.finished()
    check_invariants(run)
    assert run.accepted() == [ALL, WITHOUT_NORTH, ALL]
    assert run.outcome("north", 2) == "refused"
    assert "sent an update of norm" in run.reason("north", 2)
    seen(quoted([run.reason("north", 2)]))


@row(
    22,
    "case count 1e12, -1, NaN in a round; 1e12 and -1 from the roll call on",
    "refused by name, round goes on",
)
def test_a_case_count_is_a_lie(fed, seen):
    lies = [
        ("answer", "many_cases", "1000000000000 cases; expected"),
        ("answer", "negative_cases", "-1 cases; expected"),
        ("answer", "nan_cases", "Update.cases came as float, expected int"),
    ]
    said = lied_in(fed, lies)
    for count in ("many", "negative"):
        north = fed.site("north")
        north.go_on()
        north.at("answer", f"{LIES}{count}_at_roll_call", kind="hello")
        north.at("answer", f"{LIES}{count}_cases")
        run = fed.run()
        run.finished()
        check_invariants(run)
        assert run.accepted() == [WITHOUT_NORTH] * 3
        assert "claims a weight of" in run.reason("north", 3)
        said.append(run.reason("north", 3))
    seen(quoted(said))
