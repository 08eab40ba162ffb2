"""Whether an accepted series can serve the plan at hand.

A reader judges the series; this judges the pair of series and plan, and the series
beside its fellows. The same series may be fit for one plan and not for another, so
nothing of it is written into the case.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from client.intake.verdict import Code, Finding, SeriesVerdict
from client.intake.volume_case import Settled
from common.case import IntakeCase, Target
from common.plan import Plan
from common.preprocess import model_grid


def fitness(case: IntakeCase, target: Target, plan: Plan) -> list[Finding]:
    """What speaks against a case, or should be known of it; refusals first.

    Args:
        case: Accepted by its reader.
        target: What the plan's task makes of it.
        plan: Gives spacing, patch and task.
    """
    findings = [
        finding
        for finding in (
            _spacing(case, plan),
            _truth(case, target, plan),
            _size(case, plan),
            _overlap(target),
            _emptiness(target),
        )
        if finding is not None
    ]
    return sorted(findings, key=lambda finding: not finding.refuses)


def unique(settled: Iterable[Settled]) -> Iterator[Settled]:
    """Refuse copies: they would count twice, and under two patients be in two parts."""
    seen: set[str] = set()
    for row, case in settled:
        if case is not None and case.digest in seen:
            finding = Finding(
                Code.DUPLICATE_SAME,
                "voxels and labels are those of a series before it, expected each scan "
                "once; remove the copy",
                refuses=True,
            )
            yield with_findings(row, [finding]), None
            continue
        if case is not None:
            seen.add(case.digest)
        yield row, case


def with_findings(row: SeriesVerdict, more: Sequence[Finding]) -> SeriesVerdict:
    """The row with more findings, refusing ones first; a note is not said twice."""
    refused = {f.code for f in more if f.refuses}
    known = [f for f in row.findings if f.refuses or f.code not in refused]
    codes = {f.code for f in known}
    new = [f for f in more if f.refuses or f.code not in codes]
    findings = sorted([*known, *new], key=lambda f: not f.refuses)
    return replace(row, findings=tuple(findings))


def _spacing(case: IntakeCase, plan: Plan) -> Finding | None:
    if plan.preprocessing.spacing_mm is None or case.has_spacing:
        return None
    return Finding(
        Code.NO_SPACING,
        "the source knows no millimetres, but the plan resamples to "
        f"{plan.preprocessing.spacing_mm} mm; unset preprocessing.spacing_mm",
        refuses=True,
    )


def _truth(case: IntakeCase, target: Target, plan: Plan) -> Finding | None:
    """The task can't learn from it: it has no truth, or one that is no class."""
    if target.left_out is None:
        return None
    attribute = getattr(plan.task, "attribute", None)
    has_value = attribute is not None and bool(case.attributes.get(attribute))
    return Finding(
        Code.LABEL_VALUE if has_value else Code.LABEL_MISSING,
        f"left out of this plan: {target.left_out}",
        refuses=True,
    )


def _size(case: IntakeCase, plan: Plan) -> Finding | None:
    shape = model_grid(case.volume.grid, plan.preprocessing).shape
    if all(n >= p for n, p in zip(shape, plan.patch, strict=True)):
        return None
    return Finding(
        Code.TOO_SMALL,
        f"has {shape} voxels (D, H, W) in model space, expected at least the plan's "
        f"training.patch {plan.patch}",
        refuses=True,
    )


def _overlap(target: Target) -> Finding | None:
    if not target.overlap_voxels:
        return None
    return Finding(
        Code.LABEL_OVERLAP,
        f"{target.overlap_voxels} voxels are in two classes, given to the later one",
        refuses=False,
    )


def _emptiness(target: Target) -> Finding | None:
    if target.mask is None or target.mask.any():
        return None
    return Finding(
        Code.LABEL_EMPTY,
        "no voxel is in a class of the plan; counts as all background",
        refuses=False,
    )
