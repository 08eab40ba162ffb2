"""Numbers of cases and series as they may be shown: a range where they came in tens.

A hospital tells them to the nearest ten, and never as fewer than ten, unless its policy
says "exact" (decision 24). The hub is not told which, but one number that is no
multiple of ten shows that a hospital rounds nothing. All others are shown as the range
that the true number lies in, whichever it was: 10 is 1 to 14, and "10 of 10" is no
proof that nothing was refused.
"""

from collections.abc import Iterable

from server.record import ArmRecord, RunRecord, SiteRecord, SiteRound
from server.report_format import show_count
from server.report_plan import plan_of

TEN = 10
"""What numbers are told in."""


def in_tens(record: RunRecord, site: SiteRecord) -> bool:
    """Whether a hospital's numbers may have been rounded before they were told."""
    told = (site.accepted, site.found, site.train, site.validation, site.test)
    return record.engine == "deployment" and not any(n % TEN for n in told)


def sites_in_tens(record: RunRecord) -> list[str]:
    """Names of the hospitals whose numbers are shown as ranges."""
    return [site.name for site in record.sites if in_tens(record, site)]


def show_told(count: int, rounded: bool) -> str:
    """A number as it was told, or the range of what is told so: `1–14`, `15–24`."""
    return show_sum([(count, rounded)])


def show_sum(counts: Iterable[tuple[int, bool]]) -> str:
    """The sum of numbers, each with whether it may be rounded; a range if any is."""
    low, high = span(counts)
    return show_count(low) if low == high else f"{show_count(low)}–{show_count(high)}"


def span(counts: Iterable[tuple[int, bool]]) -> tuple[int, int]:
    """Least and most that numbers add up to, each with whether it may be rounded."""
    ends = [_ends(count) if rounded else (count, count) for count, rounded in counts]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def training_cases(record: RunRecord) -> str:
    """Training cases of all hospitals."""
    return show_sum((site.train, in_tens(record, site)) for site in record.sites)


def steps_of(record: RunRecord, arm: ArmRecord) -> str:
    """Optimiser steps of an arm; a range where they would have told the cases."""
    if not _tells_steps_in_tens(record):
        return show_count(arm.steps)
    rounded = sites_in_tens(record)
    return show_sum(
        (row.steps, row.site in rounded)
        for round_ in arm.rounds
        for row in round_.sites
    )


def steps_of_reply(record: RunRecord, reply: SiteRound, rounded: bool) -> str:
    """Optimiser steps of one reply, in the same way."""
    return show_told(reply.steps, rounded and _tells_steps_in_tens(record))


def _tells_steps_in_tens(record: RunRecord) -> bool:
    """Where the plan counts epochs, steps follow from the cases and are rounded too."""
    plan = plan_of(record)
    return plan is not None and plan.training.epochs is not None


def _ends(count: int) -> tuple[int, int]:
    """Least and most that is told as this multiple of ten."""
    if count <= 0:
        return count, count
    return (1 if count == TEN else count - TEN // 2), count + TEN // 2 - 1
