"""`fedct evaluate`: how good a handed-out model is on labelled cases at hand.

    source -> intake -> truth of the plan's task -> judge -> metrics with intervals

Cases are taken in, prepared and judged just as in a federation, in memory: nothing is
stored, and one volume is held at a time. All accepted cases count, so don't point it at
cases that the model was trained on.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from client.bootstrap import CONFIDENCE, FEW_PATIENTS, RESAMPLES, estimate
from client.intake.fitness import fitness, unique, with_findings
from client.intake.group import counts_as_series
from client.intake.run import count_of, read_source
from client.intake.verdict import SeriesVerdict
from client.intake.volume_case import Settled
from client.predictor import network_of
from common.case import PreparedCase
from common.errors import IntakeError
from common.package import RESEARCH_ONLY, ModelPackage
from common.plan import Plan
from common.preprocess import prepare_case
from common.sources import Source
from common.task import Sums, add_sums
from common.tasks.catalog import task_of

ASSESSMENT_VERSION: Final = 1
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""


class Record(BaseModel):
    """A frozen part of an assessment's JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(Record):
    """One metric over all cases, with its interval."""

    value: float
    low: float | None
    """Lower end of the 95 % interval; unset where there is none."""
    high: float | None
    """Upper end of the 95 % interval; unset where there is none."""


class Assessment(Record):
    """What `fedct evaluate` found: numbers only, no patient and no UID."""

    format: Literal["fedct-assessment"] = "fedct-assessment"
    assessment_version: Literal[1] = ASSESSMENT_VERSION
    use: Literal["research use only"] = RESEARCH_ONLY
    plan_name: str
    plan_digest: str
    weights_sha256: str
    """Of the package."""
    accepted: int
    """N: cases that were judged."""
    found: int
    """M: image series that were found."""
    refused: dict[str, int]
    """Verdict code to number of refused series; a series may have several."""
    patients: int
    """Patients of the judged cases; what the intervals are drawn over."""
    monitor: str
    """The metric that picked the model."""
    metrics: dict[str, Metric]
    confidence: float = CONFIDENCE
    resamples: int = RESAMPLES
    seed: int
    """Decides resamples and, where the plan asks for windows, their places."""
    notes: list[str]
    """What limits the numbers."""
    seconds: float


def assess(
    package: ModelPackage,
    source: Source,
    device: torch.device,
    progress: Progress | None = None,
) -> Assessment:
    """Measure a package on every accepted, labelled case of a source.

    Args:
        package: Of `load_package`.
        source: Images with the truth that the plan's task needs.
        device: Where to compute.
        progress: Told how far the work is.

    Raises:
        IntakeError: The source can't be read, or has no case to judge; the message
            has the codes.
        ModelError: The weights do not fit the plan.
    """
    started = time.monotonic()
    tell = progress or (lambda _what, _done, _of: None)
    plan = package.plan
    task, network = task_of(plan), network_of(package, device)
    rows: list[SeriesVerdict] = []
    patients: dict[str, Sums] = {}
    judged = 0
    for row, case in _fit(unique(read_source(source, tell)), plan):
        rows.append(row)
        if case is None:
            continue
        seed = int(
            np.random.SeedSequence([plan.plan.seed, judged]).generate_state(1)[0]
        )
        sums = task.judge(network, case, seed, device)
        patients[row.patient] = add_sums(patients.get(row.patient, {}), sums)
        judged += 1
        tell("cases", judged, judged)
    if not judged:
        raise IntakeError(_nothing_to_judge(rows))
    count = count_of(rows)
    found = estimate(list(patients.values()), task.summarise, seed=plan.plan.seed)
    return Assessment(
        plan_name=plan.plan.name,
        plan_digest=plan.digest,
        weights_sha256=package.weights_sha256,
        accepted=count.accepted,
        found=count.found,
        refused=_codes(rows),
        patients=len(patients),
        monitor=task.monitor,
        metrics={
            name: Metric(value=e.value, low=e.low, high=e.high)
            for name, e in found.items()
        },
        seed=plan.plan.seed,
        notes=_notes(len(patients), plan),
        seconds=round(time.monotonic() - started, 3),
    )


def _fit(
    settled: Iterable[Settled], plan: Plan
) -> Iterator[tuple[SeriesVerdict, PreparedCase | None]]:
    """Cases that have what the plan needs, in model space."""
    task = task_of(plan)
    for row, case in settled:
        if case is None:
            yield row, None
            continue
        target = task.target(case)
        findings = fitness(case, target, plan)
        if any(finding.refuses for finding in findings):
            yield with_findings(row, findings), None
        else:
            named = {"case_id": case.series, "patient_id": case.patient}
            yield row, prepare_case(case, target, plan, **named)


def _codes(rows: Iterable[SeriesVerdict]) -> dict[str, int]:
    """How many image series each refusing code was given to, most frequent first."""
    codes = Counter(
        str(code)
        for row in rows
        if counts_as_series(row)
        for code in {finding.code for finding in row.findings if finding.refuses}
    )
    return dict(codes.most_common())


def _notes(patients: int, plan: Plan) -> list[str]:
    notes = []
    if patients == 1:
        notes.append("one patient: no interval can be given")
    elif patients < FEW_PATIENTS:
        notes.append(f"only {patients} patients: the intervals are likely too narrow")
    if plan.evaluation.region == "window":
        notes.append("judged on one window per slice or case, not on whole images")
    return notes


def _nothing_to_judge(rows: list[SeriesVerdict]) -> str:
    codes = ", ".join(f"{code} {n}" for code, n in _codes(rows).items())
    return (
        f"evaluation found no case to judge among {len(rows)} rows "
        f"({codes or 'nothing there'}), expected labelled images; `fedct intake` on "
        "the same folder says why each was refused"
    )
