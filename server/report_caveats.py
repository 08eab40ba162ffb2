"""What must be known to read a run's verdict rightly, in plain sentences.

Every sentence follows from the record by a fixed rule; none can be switched off, for a
report that is shown around must carry its own doubts.
"""

from server.record import ArmRecord, RunRecord
from server.report_arms import arm_of, mean_of, value_at
from server.report_counts import in_tens, sites_in_tens, span
from server.report_format import join_words, metric_label, plural, show_count
from server.report_plan import plan_of, takes_last

FEW_CASES = 100
"""Below so many test cases, hundredths are a matter of single patients."""
MOST_REASONS = 3
"""Why rounds were void, said at the head of the page."""


def caveats_of(record: RunRecord) -> list[str]:
    """Sentences that belong beside the verdict, the widest first."""
    federated = arm_of(record, "federated")
    found = [_no_model(record), _test_size(record), _told_in_tens(record)]
    if record.engine != "deployment":
        found.append("A rehearsal: all hospitals were played on one machine.")
    if federated is None:
        return [caveat for caveat in found if caveat]
    found += _about_rounds(federated)
    found.append(_began_anew(record, federated))
    found.append(_left_out(record, federated))
    found.append(_not_judged(record, federated))
    found.append(_undefined(record, federated))
    found.append(_unequal_steps(record, federated))
    return [caveat for caveat in found if caveat]


def _test_size(record: RunRecord) -> str:
    counts = [(site.test, in_tens(record, site)) for site in record.sites]
    low, high = span(counts)
    if not high:
        return "No test case at any hospital."
    cases = plural(high, "test case")
    if low < high:
        cases = f"{show_count(low)}–{cases}"
    text = f"One run with one seed, {cases}"
    if len(counts) > 1:
        text += f" (fewest at {_fewest(record)})"
    if low < FEW_CASES:
        return f"{text}: differences of a few hundredths may be chance."
    return f"{text}: repeat with other seeds before relying on small differences."


def _fewest(record: RunRecord) -> str:
    """Where the fewest test cases are; no name where ranges leave it open."""
    ends = [span([(site.test, in_tens(record, site))]) for site in record.sites]
    low, high = min(low for low, _ in ends), min(high for _, high in ends)
    if low < high:
        return f"one hospital: {show_count(low)}–{show_count(high)}"
    name = min(record.sites, key=lambda site: site.test).name
    return f"{name}: {show_count(low)}"


def _no_model(record: RunRecord) -> str:
    why = record.no_model
    return f"{why[:1].upper()}{why[1:]}." if why else ""


def _told_in_tens(record: RunRecord) -> str:
    names = sites_in_tens(record)
    if not names:
        return ""
    whose = "all hospitals" if len(names) == len(record.sites) else join_words(names)
    return (
        f"Numbers of cases and series of {whose} are ranges: they are told to the "
        "nearest ten and never as fewer than ten, unless a hospital's policy says "
        "otherwise."
    )


def _about_rounds(federated: ArmRecord) -> list[str]:
    void: dict[str, list[int]] = {}
    for round_ in federated.rounds:
        if round_.outcome == "void":
            void.setdefault(round_.reason, []).append(round_.number)
    found = []
    for reason, numbers in list(void.items())[:MOST_REASONS]:
        words, verb = _numbered(numbers), "was" if len(numbers) == 1 else "were"
        why = f" ({reason})" if reason else ""
        found.append(
            f"{words[:1].upper()}{words[1:]} {verb} void{why}: the model did not "
            "change there."
        )
    if len(void) > MOST_REASONS:
        found.append("More rounds were void; the table of rounds says why.")
    if federated.stopped == "void rounds":
        found.append("The run was stopped after too many void rounds in a row.")
    return found


def _began_anew(record: RunRecord, federated: ArmRecord) -> str:
    """Where moments were given up for the masks' sake, if the plan keeps any."""
    plan = plan_of(record)
    numbers = [round_.number for round_ in federated.rounds if round_.began_anew][1:]
    if not numbers or (plan and not plan.training.keep_optimizer_state):
        return ""
    return (
        f"In {_numbered(numbers)} all optimisers began without memory: masks require "
        "this where a hospital takes part that was not in the last sum."
    )


def _left_out(record: RunRecord, federated: ArmRecord) -> str:
    """Which hospitals' replies are missing from which rounds, and why."""
    missed = [_missed(federated, site.name) for site in record.sites]
    found = [entry for entry in missed if entry]
    return f"Not in the mean: {'; '.join(found)}." if found else ""


def _not_judged(record: RunRecord, federated: ArmRecord) -> str:
    """Which hospitals' judgements are missing from which measured rounds."""
    judged = [r for r in federated.rounds if r.validation]
    missing = []
    for site in record.sites:
        rounds = [r.number for r in judged if site.name not in r.validation]
        if rounds and len(rounds) < len(judged):  # never: it has nobody to judge on
            missing.append(f"{site.name}, {_numbered(rounds)}")
    if not missing:
        return ""
    text = f"Not judged: {'; '.join(missing)}."
    if takes_last(record):
        return text
    return (
        f"{text} The best round was picked by comparing rounds over the hospitals that "
        "judged both."
    )


def _missed(federated: ArmRecord, name: str) -> str:
    rounds: dict[str, list[int]] = {}
    accepted = 0
    for round_ in federated.rounds:
        reply = next((site for site in round_.sites if site.site == name), None)
        if reply is None:
            continue
        if reply.outcome == "accepted":
            accepted += 1
            continue
        why = f"{reply.outcome}: {reply.reason}" if reply.reason else reply.outcome
        rounds.setdefault(why, []).append(round_.number)
    said = [f"{why}, {_numbered(numbers)}" for why, numbers in rounds.items()]
    shown = "; ".join(said[:2]) + ("; and more" if len(said) > 2 else "")
    if not accepted:
        return f"{name}, in any round ({shown})" if shown else f"{name}, in any round"
    return f"{name} ({shown})" if shown else ""


def _numbered(numbers: list[int]) -> str:
    if len(numbers) > 5:
        return plural(len(numbers), "round")
    words = [str(number) for number in numbers]
    return f"{'round' if len(words) == 1 else 'rounds'} {join_words(words)}"


def _undefined(record: RunRecord, federated: ArmRecord) -> str:
    names = [
        site.name
        for site in record.sites
        if value_at(record, federated, site.name) is None
    ]
    # Where nothing is defined, the headline says so.
    if not names or mean_of(record, federated) is None:
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
