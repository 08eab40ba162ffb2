"""The report's first sentence: what the numbers say about federating, either way.

It is computed from the record alone, by fixed rules, so that a run that did not help
says so in the same large type as one that did. Each hospital counts the same (mean over
sites), and the best single hospital is picked after the fact, which favours it.

Not covered here: statistical significance. One run has one seed; the caveats say how
many test cases stand behind the sentence.
"""

from dataclasses import dataclass
from typing import Literal

from server.record import RunRecord
from server.report_arms import arm_of, best_local, mean_of, value_at
from server.report_caveats import caveats_of
from server.report_format import join_words, metric_label, plural, show

SAME = 0.005
"""Differences up to this count as none: half of the last decimal of the headline."""


@dataclass(frozen=True)
class Verdict:
    """What the head of the report says."""

    tone: Literal["helped", "same", "worse", "open", "failed"]
    """Whether federating beat the best hospital alone; open: this run can't tell;
    failed: no federated model came about."""
    headline: str
    """The result in one sentence."""
    answer: str
    """Whether federating helped, in one or two sentences."""
    caveats: tuple[str, ...]
    """What must be known to read it rightly."""


def verdict_of(record: RunRecord) -> Verdict:
    """The head of the report, from the numbers of the record."""
    federated = arm_of(record, "federated")
    caveats = tuple(caveats_of(record))
    if federated is None:
        return Verdict(
            "open",
            "No federated model was trained in this run.",
            "There is nothing to compare the other arms with.",
            caveats,
        )
    if not any(round_.outcome == "closed" for round_ in federated.rounds):
        return Verdict(
            "failed",
            "Federated training failed: no round counted.",
            "The model was never updated and is no better than its start.",
            caveats,
        )
    value = mean_of(record, federated)
    if value is None:
        return Verdict("open", _no_value(record), _NO_ANSWER, caveats)
    if len(record.sites) < 2:
        return _single_site(record, value, caveats)
    tone, answer = _answer(record, value)
    return Verdict(tone, _headline(record, value), answer, caveats)


_NO_ANSWER = "Whether federating helped can't be answered from this run."


def _no_value(record: RunRecord) -> str:
    if not any(site.test for site in record.sites):
        return (
            "No patient was kept for testing, so this run does not show how good the "
            "federated model is."
        )
    return (
        f"{metric_label(record.monitor)} of the federated model is not defined on the "
        "test patients, so this run does not show how good it is."
    )


def _single_site(record: RunRecord, value: float, caveats: tuple[str, ...]) -> Verdict:
    return Verdict(
        "open",
        f"One hospital trained by itself and reached {metric_label(record.monitor)} "
        f"{show(value, _digits([value]))} on patients never seen.",
        "With a single hospital nothing was federated, so this run can't say whether "
        "federating helps.",
        caveats,
    )


def _digits(values: list[float]) -> int:
    """Two decimals, or three where two would hide a difference, also from zero."""
    told = len({show(v, 2) for v in {0.0, *values}}) == len({0.0, *values})
    return 2 if told else 3


def _headline(record: RunRecord, value: float) -> str:
    pooled = mean_of(record, arm_of(record, "pooled"))
    alone = mean_of(record, best_local(record))
    digits = _digits([v for v in (value, pooled, alone) if v is not None])
    others = []
    if pooled is not None:
        others.append(f"{show(pooled, digits)} with all data in one place")
    if alone is not None:
        others.append(f"{show(alone, digits)} for the best hospital alone")
    sentence = (
        f"Federated training reached {metric_label(record.monitor)} "
        f"{show(value, digits)} on patients never seen"
    )
    return f"{sentence}, against {' and '.join(others)}." if others else f"{sentence}."


def _answer(
    record: RunRecord, value: float
) -> tuple[Literal["helped", "same", "worse", "open"], str]:
    arm = best_local(record)
    alone = mean_of(record, arm)
    pooled = mean_of(record, arm_of(record, "pooled"))
    if arm is None or alone is None:
        return "open", _without_local(record, value, pooled)
    name = arm.name.removeprefix("local-")
    tail = _against_pooled(value, pooled) + _who_gains(record)
    if value > alone + SAME:
        return "helped", (
            "Federating helped: the shared model does better than the best model that "
            f"one hospital ({name}) trained alone.{tail}"
        )
    if value < alone - SAME:
        return "worse", (
            f"Federating did not help here: the model that {name} trained alone does "
            f"better by {show(alone - value)}.{tail}"
        )
    return "same", (
        "Federating made no clear difference: the shared model is level with the best "
        f"model that one hospital ({name}) trained alone.{tail}"
    )


def _without_local(record: RunRecord, value: float, pooled: float | None) -> str:
    if record.engine == "deployment":
        return (
            "No hospital trained alone in this run, so it can't say whether federating "
            "helped. A real federation has no baselines. A hospital can find out for "
            "itself: train on its own images (fedct simulate), and measure both models "
            "(fedct evaluate) on cases that neither was trained on."
        )
    if pooled is None:
        return (
            "No baseline was trained, so this run can't say whether federating helped; "
            "run it again with the pooled and local baselines."
        )
    return (
        f"{_against_pooled(value, pooled).strip()} What each hospital reaches alone "
        "was not measured, so whether federating helped is open; run it again with "
        "the local baseline."
    )


def _against_pooled(value: float, pooled: float | None) -> str:
    if pooled is None:
        return ""
    if abs(value - pooled) <= SAME:
        return " It is level with training on all data in one place."
    word = "below" if value < pooled else "above"
    return (
        f" It is {show(abs(value - pooled))} {word} training on all data in one place."
    )


def _who_gains(record: RunRecord) -> str:
    """How many hospitals do better with the shared model than with their own."""
    federated = arm_of(record, "federated")
    better, worse, compared = 0, [], 0
    for site in record.sites:
        ours = value_at(record, federated, site.name)
        own = value_at(record, arm_of(record, f"local-{site.name}"), site.name)
        if ours is None or own is None:
            continue
        compared += 1
        better += ours > own + SAME
        if ours < own - SAME:
            worse.append(f"{site.name} ({show(ours)} against {show(own)})")
    if not compared:
        return ""
    text = (
        f" On their own patients, {better} of {plural(compared, 'hospital')} "
        f"{'does' if better == 1 else 'do'} better with it than with their own model"
    )
    return f"{text}; better off alone: {join_words(worse)}." if worse else f"{text}."
