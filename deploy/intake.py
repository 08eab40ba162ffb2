"""`fedct intake`: one source, outside any federation."""

from collections.abc import Sequence
from pathlib import Path

from client.intake.export import export_case
from client.intake.run import (
    check_found,
    count_of,
    open_store,
    read_source,
    take_in,
)
from client.intake.table import write_tables
from client.intake.verdict import IntakeCount, SeriesVerdict
from common.plan_file import load_plan
from common.sources import Source
from deploy.progress import tell_work


def take_in_verdicts(
    source: Source, store: Path, plan: Path | None, export: Path | None
) -> tuple[Sequence[SeriesVerdict], IntakeCount]:
    """Judge a source; prepare cases if there is a plan to prepare them for.

    Args:
        source: What to read.
        store: Gets the verdict tables, and the cases.
        plan: The plan to prepare for; unset: verdicts only.
        export: Gets each accepted volume and its labels as NIfTI; unset: no export.

    Raises:
        IntakeError: The source is absent, unreadable, or holds no CT series.
    """
    if plan is not None:
        data = take_in(
            source,
            store,
            load_plan(plan),
            tell_work,
            None if export is None else lambda case: export_case(case, export),
        )
        return data.verdicts, data.count
    open_store(store)
    verdicts = []
    for verdict, case in read_source(source, tell_work):
        verdicts.append(verdict)
        if export is not None and case is not None:
            export_case(case, export)
    count = count_of(verdicts)
    write_tables(store, verdicts, count)
    check_found(source, verdicts, count)
    return verdicts, count
