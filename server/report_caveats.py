"""What must be known to read a run's verdict rightly, in plain sentences.

Every sentence follows from the record by a fixed rule; none can be switched off, for a
report that is shown around must carry its own doubts.
"""

from server.record import ArmRecord, RunRecord
from server.report_arms import arm_of, value_at
from server.report_format import join_words, metric_label, plural, show_count

FEW_CASES = 100
"""Below so many test cases, hundredths are a matter of single patients."""


def caveats_of(record: RunRecord) -> list[str]:
    """Sentences that belong beside the verdict, the widest first."""
    federated = arm_of(record, "federated")
    found = [_test_size(record)]
    if record.engine != "deployment":
        found.append("A rehearsal: all hospitals were played on one machine.")
    if federated is None:
        return found
    found += _about_rounds(federated)
    found += [_about_site(federated, site.name) for site in record.sites]
    found.append(_undefined(record, federated))
    found.append(_unequal_steps(record, federated))
    return [caveat for caveat in found if caveat]


def _test_size(record: RunRecord) -> str:
    counts = {site.name: site.test for site in record.sites}
    total = sum(counts.values())
    if not total:
        return "No test case at any hospital."
    smallest = min(counts, key=lambda name: counts[name])
    text = f"One run with one seed, {plural(total, 'test case')}"
    if len(counts) > 1:
        text += f" (fewest at {smallest}: {show_count(counts[smallest])})"
    if total < FEW_CASES:
        return f"{text}: differences of a few hundredths may be chance."
    return f"{text}: repeat with other seeds before relying on small differences."


def _about_rounds(federated: ArmRecord) -> list[str]:
    void = [r.number for r in federated.rounds if r.outcome == "void"]
    found = []
    if void:
        found.append(
            f"{_rounds(void)} void (fewer accepted replies than the quorum): "
            "the model did not change there."
        )
    if federated.stopped == "void rounds":
        found.append("The run was stopped after too many void rounds in a row.")
    return found


def _about_site(federated: ArmRecord, name: str) -> str:
    replies = [
        (round_.number, site)
        for round_ in federated.rounds
        for site in round_.sites
        if site.site == name
    ]
    if not any(site.outcome == "accepted" for _, site in replies):
        return f"{name} contributed to no round."
    missed = [
        f"{site.outcome} in round {number}" + (f" ({site.reason})" * bool(site.reason))
        for number, site in replies
        if site.outcome != "accepted"
    ]
    if len(missed) > 3:
        return f"{name} was left out of {len(missed)} rounds; see the table of rounds."
    return f"{name}: {'; '.join(missed)}." if missed else ""


def _undefined(record: RunRecord, federated: ArmRecord) -> str:
    names = [
        site.name
        for site in record.sites
        if value_at(record, federated, site.name) is None
    ]
    if not names:
        return ""
    return (
        f"{metric_label(record.monitor)} is not defined on the test patients of "
        f"{join_words(names)}; the mean leaves {'it' if len(names) == 1 else 'them'} "
        "out."
    )


def _unequal_steps(record: RunRecord, federated: ArmRecord) -> str:
    pooled = arm_of(record, "pooled")
    if pooled is None or not pooled.steps or not federated.steps:
        return ""
    if abs(pooled.steps - federated.steps) <= 0.05 * federated.steps:
        return ""
    return (
        f"Federated took {show_count(federated.steps)} optimiser steps in all, pooled "
        f"{show_count(pooled.steps)}: the comparison is not step for step."
    )


def _rounds(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    if len(words) == 1:
        return f"Round {words[0]} was"
    return f"Rounds {join_words(words)} were"
