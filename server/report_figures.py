"""Which charts a record gives, each drawn twice: for a wide and for a narrow page."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from server.record import ArmRecord, RoundRecord, RunRecord
from server.report_arms import arm_of, best_local, mean_of, value_at
from server.report_charts import Dot, DotRow, dot_chart, takes_part_chart
from server.report_curves import Line, line_chart
from server.report_format import arm_label, finite, metric_label, plural, show
from server.report_svg import Words
from server.report_view import MEAN, mean_loss

NARROW_PX = 350
"""Width of a drawing for a phone."""


@dataclass(frozen=True)
class Figure:
    """One chart in two widths; the style sheet shows one of them."""

    wide: Markup
    """For a page of 720 pixels or more, and for print."""
    narrow: Markup
    """For a phone."""


def figures_of(record: RunRecord) -> dict[str, Figure]:
    """The charts that the record has data for, by name."""
    figures = {}
    if any(mean_of(record, arm) is not None for arm in record.arms):
        figures["results"] = _results(record)
    federated = arm_of(record, "federated")
    if federated is not None and federated.rounds:
        figures["validation"] = _validation(record, federated)
        if any(mean_loss(round_) is not None for round_ in federated.rounds):
            figures["loss"] = _loss(record, federated)
        figures["replies"] = _replies(record, federated)
    return figures


def _twice(
    name: str,
    title: str,
    description: str,
    wide_px: int,
    paint: Callable[[Words, int], Markup],
) -> Figure:
    return Figure(
        paint(Words(f"{name}-wide", title, description), wide_px),
        paint(Words(f"{name}-narrow", title, description), NARROW_PX),
    )


def _results(record: RunRecord) -> Figure:
    rows = [_mean_row(record), *(_site_row(record, s.name) for s in record.sites)]
    metric = metric_label(record.monitor)
    said = ", ".join(
        f"{arm_label(arm.name)} {show(mean_of(record, arm))}" for arm in record.arms
    )
    return _twice(
        "results",
        f"{metric} by hospital and model",
        f"{MEAN}: {said}. The table below has the values of each hospital.",
        1000,
        lambda words, width: dot_chart(words, rows, metric, width),
    )


def _mean_row(record: RunRecord) -> DotRow:
    best = best_local(record)
    dots = []
    for arm in record.arms:
        value = mean_of(record, arm)
        if value is None:
            continue
        if arm.name in ("federated", "pooled"):
            dots.append(_dot(arm, value))
        elif arm is best:
            dots.append(Dot("own", value, f"{arm_label(arm.name)} (best alone)"))
        else:
            dots.append(Dot("other", value, arm_label(arm.name)))
    return DotRow(MEAN, tuple(dots), strong=True)


def _site_row(record: RunRecord, site: str) -> DotRow:
    dots = []
    for arm in record.arms:
        value = value_at(record, arm, site)
        if value is None:
            continue
        if arm.name == f"local-{site}":
            dots.append(Dot("own", value, "its own model"))
        else:
            dots.append(_dot(arm, value))
    return DotRow(site, tuple(dots))


def _dot(arm: ArmRecord, value: float) -> Dot:
    if arm.name == "federated":
        return Dot("federated", value, arm_label(arm.name))
    if arm.name == "pooled":
        return Dot("pooled", value, arm_label(arm.name))
    return Dot("other", value, f"model of {arm_label(arm.name)}")


def _line(
    label: str,
    style: str,
    rounds: list[RoundRecord],
    value: Callable[[RoundRecord], float | None],
) -> Line:
    pairs = [(round_.number, finite(value(round_))) for round_ in rounds]
    return Line(label, style, tuple((n, v) for n, v in pairs if v is not None))


def _validation(record: RunRecord, federated: ArmRecord) -> Figure:
    key = record.monitor

    def at(site: str) -> Callable[[RoundRecord], float | None]:
        return lambda round_: round_.validation.get(site, {}).get(key)

    def mean(round_: RoundRecord) -> float | None:
        return round_.validation_mean.get(key)

    lines = [
        _line(site.name, f"s{number % 8}", federated.rounds, at(site.name))
        for number, site in enumerate(record.sites)
    ]
    pooled = arm_of(record, "pooled")
    if pooled is not None:
        lines.append(_line("pooled", "pooled", pooled.rounds, mean))
    lines.append(_line("mean", "mean", federated.rounds, mean))
    lines = [line for line in lines if line.points]
    title = f"{metric_label(key)} on validation patients"
    return _curves("validation", title, lines, federated)


def _loss(record: RunRecord, federated: ArmRecord) -> Figure:
    def at(site: str) -> Callable[[RoundRecord], float | None]:
        return lambda round_: next(
            (s.loss for s in round_.sites if s.site == site), None
        )

    lines = [
        _line(site.name, f"s{number % 8}", federated.rounds, at(site.name))
        for number, site in enumerate(record.sites)
    ]
    lines.append(_line("mean", "mean", federated.rounds, mean_loss))
    lines = [line for line in lines if line.points]
    return _curves("loss", "Training loss", lines, federated)


def _curves(name: str, title: str, lines: list[Line], arm: ArmRecord) -> Figure:
    void = [round_.number for round_ in arm.rounds if round_.outcome == "void"]
    last = max(
        [round_.number for round_ in arm.rounds]
        + [number for line in lines for number, _ in line.points]
    )
    final = arm.final_round if 1 <= arm.final_round <= last else None
    means = [line for line in lines if line.style == "mean"]
    said = f"{title} over {plural(last, 'round')}."
    if means:
        first, end = means[0].points[0], means[0].points[-1]
        said += (
            f" The mean goes from {show(first[1])} in round {first[0]} to "
            f"{show(end[1])} in round {end[0]}."
        )
    said += (
        f" {plural(len(void), 'void round')}. The values are in the table of rounds."
    )
    return _twice(
        name,
        title,
        said,
        490,
        lambda words, width: line_chart(words, lines, void, final, last, width),
    )


def _replies(record: RunRecord, federated: ArmRecord) -> Figure:
    by_number = {round_.number: round_ for round_ in federated.rounds}
    last = max(by_number)
    outcomes = [
        {site.site: (site.outcome, site.reason) for site in by_number[number].sites}
        if number in by_number
        else {}
        for number in range(1, last + 1)
    ]
    void = [number for number, r in by_number.items() if r.outcome == "void"]
    sites = [site.name for site in record.sites]
    accepted = sum(out == "accepted" for d in outcomes for out, _ in d.values())
    total = sum(len(replies) for replies in outcomes)
    return _twice(
        "replies",
        "Replies of each hospital in each round",
        f"{accepted} of {total} replies were accepted. "
        "The table of rounds has every reply.",
        1000,
        lambda words, width: takes_part_chart(words, sites, outcomes, void, width),
    )
