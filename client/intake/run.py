"""From one site's source to prepared cases, a verdict table and a split.

    source -> reader of its format -> fit for the plan -> store -> table -> split

Readers yield one series at a time, so memory holds one volume however large the source
is. What a reader accepted may still be refused here, because it can't serve the plan at
hand: no label for its classes, smaller than a patch, a copy of another series. The
plan's floor is checked at the end, after the table is written, so that whoever is
refused can read why.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.intake.fitness import fitness, unique, with_findings
from client.intake.group import counts_as_series
from client.intake.seen import fingerprint, recall, remember
from client.intake.table import CSV_FILE, write_tables
from client.intake.verdict import Code, IntakeCount, SeriesVerdict
from client.intake.volume_case import Settled
from client.private_files import make_private_folder
from client.secret import load_secret
from client.split import Part, freeze_split
from client.store import CaseRecord, CaseStore
from common.case import IntakeCase
from common.errors import IntakeError, PlanError, StoreError
from common.plan import Plan
from common.sources import Source
from common.tasks.catalog import task_of

log = logging.getLogger("fedct.intake")

Progress = Callable[[str, int, int], None]
"""Told what is being done ("files" or "series"), how many are done, and of how many;
where a source does not know its length, of how many so far."""
TakenIn = tuple[SeriesVerdict, CaseRecord | None]


@dataclass(frozen=True)
class SiteData:
    """What intake made of one site's source. Local; only `count` may leave."""

    train: tuple[CaseRecord, ...]
    """Cases to train on, in the order of their series UIDs, as are the others."""
    validation: tuple[CaseRecord, ...]
    """Cases that pick the best model."""
    test: tuple[CaseRecord, ...]
    """Cases for the end."""
    count: IntakeCount
    """N of M."""
    verdicts: tuple[SeriesVerdict, ...]
    """A row for each series, in the reader's order."""


def open_store(root: Path) -> CaseStore:
    """The store below a folder, made with its secret where there is none yet."""
    make_private_folder(root)
    return CaseStore(root, load_secret(root))


def take_in(
    source: Source,
    store_root: Path,
    plan: Plan,
    progress: Progress | None = None,
    on_case: Callable[[IntakeCase], object] | None = None,
) -> SiteData:
    """Judge every series of a source, prepare what fits the plan, split by patient.

    A second call on an unchanged source reads no image.

    Args:
        source: Its path is absolute, or relative to the working directory.
        store_root: The site's store; made where absent.
        plan: Task, preprocessing, patch size, split and floor.
        progress: Told how far the work is.
        on_case: Handed each case that the reader accepted (to export it); all images
            are read then.

    Raises:
        IntakeError: The source is absent, empty or unreadable as a whole.
        PlanError: Too few cases were accepted for the plan.
        StoreError: The store is in use, damaged, or can't be written.
    """
    store = open_store(store_root)
    with store.writing():
        mark = fingerprint(source, plan)
        taken = None if on_case else _recalled(store, mark)
        if taken is None:
            settled = read_source(source, progress)
            taken = [_settle(one, store, plan, on_case) for one in unique(settled)]
            keys = [(row, record.key if record else None) for row, record in taken]
            remember(store_root, mark, keys)
        verdicts = tuple(row for row, _ in taken)
        count = count_of(verdicts)
        write_tables(store_root, verdicts, count)
        check_found(source, verdicts, count)
        _check_floor(verdicts, count, plan)
        return _split(taken, store_root, plan)


def read_source(source: Source, progress: Progress | None = None) -> Iterator[Settled]:
    """A verdict, and the case where accepted, for each series of a source.

    Modules of the other formats are not imported.
    """
    path, tell = Path(source.source), progress or (lambda _what, _done, _of: None)
    if source.format == "dicom":
        from client.intake.dicom import read_dicom
        from client.labels.dicom import labels_for_series

        yield from read_dicom(path, labels=labels_for_series, progress=tell)
        return
    for done, settled in enumerate(_read_files(path, source), start=1):
        yield settled
        tell("series", done, done)


def count_of(verdicts: Iterable[SeriesVerdict]) -> IntakeCount:
    """N of M: of the image series that were found, how many were accepted."""
    series = [row for row in verdicts if counts_as_series(row)]
    refused = sum(any(f.refuses for f in row.findings) for row in series)
    return IntakeCount(accepted=len(series) - refused, found=len(series))


def check_found(
    source: Source, verdicts: Sequence[SeriesVerdict], count: IntakeCount
) -> None:
    """See that there was anything to judge.

    Raises:
        IntakeError: The source holds no image series at all.
    """
    if count.found:
        return
    others = f"; {CSV_FILE} in the store says what it holds" if verdicts else ""
    raise IntakeError(
        f"intake found that the source holds no CT series ({source.format}), expected "
        f"at least one; check path and format{others}"
    )


def _read_files(path: Path, source: Source) -> Iterator[Settled]:
    if source.format == "nifti":
        from client.intake.nifti import read_nifti

        return read_nifti(path)
    if source.format == "metaimage":
        from client.intake.metaimage import read_metaimage

        return read_metaimage(path)
    from client.intake.images import read_images

    return read_images(path, where=source.where)


def _settle(
    settled: Settled,
    store: CaseStore,
    plan: Plan,
    on_case: Callable[[IntakeCase], object] | None,
) -> TakenIn:
    """Judge one series by the plan, and keep its case if it fits."""
    row, case = settled
    if case is None:
        return row, None
    if on_case is not None:
        on_case(case)
    target = task_of(plan).target(case)
    row = with_findings(row, fitness(case, target, plan))
    if any(finding.refuses for finding in row.findings):
        return row, None
    _usable(store, store.key_of(case, plan))
    return row, store.put(case, target, plan)


def _recalled(store: CaseStore, mark: str) -> list[TakenIn] | None:
    """Rows and records of an unchanged source whose entries are all still there."""
    taken: list[TakenIn] = []
    for row, key in recall(store.root, mark) or ():
        record = None if key is None else _usable(store, key)
        if key is not None and record is None:
            return None
        taken.append((row, record))
    return taken or None


def _usable(store: CaseStore, key: str) -> CaseRecord | None:
    """The entry's record; a damaged one is removed, to be prepared anew."""
    try:
        return store.find(key)
    except StoreError as error:
        log.warning("remove damaged entry: %s", error)
        store.discard(key)
        return None


def _check_floor(
    verdicts: Sequence[SeriesVerdict], count: IntakeCount, plan: Plan
) -> None:
    small = [
        r.grid for r in verdicts if any(f.code is Code.TOO_SMALL for f in r.findings)
    ]
    if count.accepted == 0 and small:
        largest = max(
            (grid.shape for grid in small if grid), key=lambda s: s[0] * s[1] * s[2]
        )
        raise PlanError(
            f"plan training.patch {plan.patch} (D, H, W) is larger than all "
            f"{len(small)} usable series, the largest has {largest} voxels before "
            "resampling; choose a smaller patch or a finer preprocessing.spacing_mm"
        )
    least = max(plan.data.min_cases, 1)
    wanted = f"expected at least {least} (data.min_cases)"
    if count.accepted >= least:
        if count.accepted >= plan.data.min_accepted * count.found:
            return
        wanted = f"expected a share of {plan.data.min_accepted:g} (data.min_accepted)"
    codes = Counter(f.code.value for row in verdicts for f in row.findings if f.refuses)
    why = ", ".join(f"{code} {times}x" for code, times in codes.most_common())
    raise PlanError(
        f"intake accepted {count.accepted} of {count.found} series, {wanted}; refused "
        f"for {why or 'nothing'}; {CSV_FILE} in the store says why series were refused"
    )


def _split(taken: Sequence[TakenIn], root: Path, plan: Plan) -> SiteData:
    ordered = sorted(
        ((row, record) for row, record in taken if record is not None),
        key=lambda one: one[0].series,
    )
    patients = {row.patient for row, _ in ordered}
    parts = freeze_split(root, load_secret(root), patients, plan)

    def of(part: Part) -> tuple[CaseRecord, ...]:
        return tuple(record for row, record in ordered if parts[row.patient] is part)

    if not of(Part.TRAIN):
        raise PlanError(
            f"split leaves none of {len(patients)} patients to train on, because all "
            "at hand were given to validation or test before; add patients"
        )
    verdicts = tuple(row for row, _ in taken)
    return SiteData(
        train=of(Part.TRAIN),
        validation=of(Part.VALIDATION),
        test=of(Part.TEST),
        count=count_of(verdicts),
        verdicts=verdicts,
    )
