"""From a run's record to what the report's pages show: tiles, tables, chart data.

Everything is read off the record; the templates only lay out. What an arm or a site
lacks comes through as None and is drawn as a dash.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.metrics.names import told_once
from server.record import ArmRecord, Metrics, RoundRecord, RunRecord
from server.report_arms import arm_of, best_local, local_arms, mean_of, value_at
from server.report_counts import training_cases
from server.report_format import (
    metric_label,
    plural,
    show,
    show_bytes,
    show_count,
    show_difference,
)
from server.report_plan import takes_last

MEAN = "Mean over hospitals"
"""Label of the row where each hospital counts the same."""
MEMORY = {
    "in-process": "Peak memory, all hospitals in one process",
    "ray": "Peak memory of the hub's process, hospitals apart",
    "deployment": "Peak memory of the hub's process",
}
"""Whose memory it is, by engine."""


@dataclass(frozen=True)
class Tile:
    """One large number under the headline."""

    label: str
    """Above the number."""
    value: str
    """The number, as written."""
    note: str
    """Below it, small."""


@dataclass(frozen=True)
class GainRow:
    """What one hospital got from federating, in the monitored metric."""

    label: str
    """The hospital, or the mean over all."""
    federated: float | None
    """The shared model."""
    own: float | None
    """The model the hospital trained alone; in the mean, each on its own patients."""
    pooled: float | None
    """The model of all data in one place."""

    @property
    def over_own(self) -> float | None:
        """Federated minus own, of the values as the table writes them."""
        return _difference(self.federated, self.own)

    @property
    def over_pooled(self) -> float | None:
        """Federated minus pooled, of the values as the table writes them."""
        return _difference(self.federated, self.pooled)


@dataclass(frozen=True)
class MetricRow:
    """All metrics of one arm on one set of cases."""

    label: str
    """Which test cases."""
    metrics: Metrics
    """By name."""


@dataclass(frozen=True)
class CostRow:
    """What one arm, or one site in the federated arm, cost."""

    label: str
    """The arm or site."""
    train_s: float
    """Seconds in optimiser steps."""
    bytes_down: int
    """To the sites."""
    bytes_up: int
    """From the sites."""
    wire_down: int | None
    """To the sites, as nginx counted it; unset if there was no wire."""
    wire_up: int | None
    """From the sites, in the same way."""


def tiles_of(record: RunRecord) -> list[Tile]:
    """The large numbers under the headline."""
    federated = arm_of(record, "federated")
    value = mean_of(record, federated)
    metric = metric_label(record.monitor)
    tiles = [Tile("Federated", show(value), f"{metric}, {MEAN.lower()}")]
    alone = best_local(record)
    if alone is not None:
        name = alone.name.removeprefix("local-")
        gain = show_difference(_difference(value, mean_of(record, alone)))
        tiles.append(
            Tile(
                "Best hospital alone",
                show(mean_of(record, alone)),
                f"{name}; federated {gain}",
            )
        )
    pooled = arm_of(record, "pooled")
    if pooled is not None:
        gap = show_difference(_difference(value, mean_of(record, pooled)))
        tiles.append(
            Tile(
                "All data in one place",
                show(mean_of(record, pooled)),
                f"federated {gap}",
            )
        )
    note = f"{training_cases(record)} training cases"
    tiles.append(Tile("Hospitals", show_count(len(record.sites)), note))
    return tiles + _federation_tiles(record, federated)


def _federation_tiles(record: RunRecord, federated: ArmRecord | None) -> list[Tile]:
    if federated is None:
        return []
    closed = sum(round_.outcome == "closed" for round_ in federated.rounds)
    total = len(federated.rounds)
    replies = [site for round_ in federated.rounds for site in round_.sites]
    sent = sum(site.bytes_up for site in replies)
    return [
        Tile(
            "Rounds completed",
            f"{show_count(closed)} of {show_count(total)}",
            _round_note(record, federated),
        ),
        Tile("Sent by hospitals", show_bytes(sent), f"in {plural(total, 'round')}"),
    ]


def _round_note(record: RunRecord, federated: ArmRecord) -> str:
    final = federated.final_round
    note = f"model of round {final}" if final else "no trained model"
    if final and record.no_model:
        note += ", not handed out"
    early = federated.stopped != "all rounds"
    return f"{note}; stopped by {federated.stopped}" if early else note


def gain_rows(record: RunRecord) -> list[GainRow]:
    """Per hospital and on average: federated, alone, pooled; the mean first."""
    federated, pooled = arm_of(record, "federated"), arm_of(record, "pooled")
    rows = [
        GainRow(
            site.name,
            value_at(record, federated, site.name),
            value_at(record, arm_of(record, f"local-{site.name}"), site.name),
            value_at(record, pooled, site.name),
        )
        for site in record.sites
    ]
    # Only a mean over the same hospitals may be compared.
    own = [row.own for row in rows if row.federated is not None]
    known = [value for value in own if value is not None]
    mean_own = sum(known) / len(known) if known and len(known) == len(own) else None
    mean = GainRow(MEAN, mean_of(record, federated), mean_own, mean_of(record, pooled))
    return [mean, *rows]


def metric_names(groups: Sequence[Metrics], record: RunRecord) -> list[str]:
    """Metrics that occur, the monitored one first, then in order of appearance."""
    names = [name for metrics in groups for name in metrics]
    first = [record.monitor] if record.monitor in names else []
    every = list(dict.fromkeys([*first, *names]))
    return told_once(every, record.monitor, len(record.class_names))


def pick_of(record: RunRecord, arm: ArmRecord) -> str:
    """How the final model came to be the final one, in a sentence."""
    if takes_last(record):
        return "It is the last round that counted, as the plan asks."
    if not any(round_.validation_mean for round_ in arm.rounds):
        return "It is the last round that counted: no round was judged."
    return "It was picked on validation patients, never on test patients."


def fate_of(record: RunRecord, arm: ArmRecord) -> str:
    """What became of the model of an arm's final round."""
    if arm.name != "federated":
        return "tested"
    return "not handed out" if record.no_model else "handed out"


def metric_rows(arm: ArmRecord) -> list[MetricRow]:
    """An arm's metrics: means, then every site, then the server's public cases."""
    rows = [
        MetricRow(MEAN, arm.test_mean),
        MetricRow("All test cases together", arm.test_pooled),
    ]
    rows += [MetricRow(name, metrics) for name, metrics in arm.test.items()]
    if arm.public:
        rows.append(MetricRow("Public cases of the server", arm.public))
    return rows


def site_metrics(record: RunRecord, most: int = 3) -> list[str]:
    """The few metrics of the federated model that the table of hospitals shows."""
    federated = arm_of(record, "federated")
    groups = (
        [] if federated is None else [federated.test_mean, *federated.test.values()]
    )
    return metric_names(groups, record)[:most]


def heat(record: RunRecord, value: float | None) -> float:
    """Where a result lies between the worst (0) and best (1) of the run."""
    every = [value_at(record, arm, s.name) for arm in record.arms for s in record.sites]
    known = [other for other in every if other is not None]
    if value is None or not known or max(known) == min(known):
        return 0.0
    share = (value - min(known)) / (max(known) - min(known))
    return min(1.0, max(0.0, share))


def cost_of_arm(arm: ArmRecord) -> CostRow:
    """What an arm cost, summed over its rounds and sites."""
    return _cost(arm.name, arm.rounds, None)


def cost_of_sites(record: RunRecord) -> list[CostRow]:
    """What the federated arm cost at each hospital."""
    federated = arm_of(record, "federated")
    if federated is None:
        return []
    return [_cost(site.name, federated.rounds, site.name) for site in record.sites]


def has_wire(record: RunRecord) -> bool:
    """Whether bytes on the wire were counted."""
    return any(cost.wire_down is not None for cost in cost_of_sites(record))


def mean_loss(round_: RoundRecord) -> float | None:
    """Training loss of a round: unweighted mean over the sites that gave one."""
    losses = [site.loss for site in round_.sites if site.loss is not None]
    return sum(losses) / len(losses) if losses else None


def compares(record: RunRecord) -> bool:
    """Whether there is any arm to hold the federated one against."""
    others = [arm_of(record, "pooled"), *local_arms(record)]
    return arm_of(record, "federated") is not None and any(others)


def _cost(label: str, rounds: Sequence[RoundRecord], site: str | None) -> CostRow:
    replies = [
        reply
        for round_ in rounds
        for reply in round_.sites
        if site is None or reply.site == site
    ]
    return CostRow(
        label,
        sum(reply.train_s for reply in replies),
        sum(reply.bytes_down for reply in replies),
        sum(reply.bytes_up for reply in replies),
        _known_sum(reply.wire_bytes_down for reply in replies),
        _known_sum(reply.wire_bytes_up for reply in replies),
    )


def _known_sum(values: Iterable[int | None]) -> int | None:
    """The sum of what was counted; unset if nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _difference(ours: float | None, theirs: float | None) -> float | None:
    """Difference of the written values, so that a reader's sum comes out."""
    return None if ours is None or theirs is None else round(ours, 3) - round(theirs, 3)
