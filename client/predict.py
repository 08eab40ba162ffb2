"""`fedct predict`: a handed-out model on every usable series of a folder.

    series -> intake -> `client.predictor` -> SEG (or NIfTI) + preview + JSON

The series goes through the same intake as training cases and is refused for the same
reasons. Results are patient data: files have mode 0600, names are derived from a hash
of the series, and the JSON says which series it was.

A mask is written as DICOM SEG where the source is DICOM and can be referred to, and as
NIfTI on the same grid otherwise; the JSON says why.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from client.intake.dicom import read_series
from client.intake.group import counts_as_series
from client.intake.images import read_images
from client.intake.meta_file import SUFFIXES as METAIMAGE
from client.intake.meta_file import load_metaimage
from client.intake.nifti_file import SUFFIXES as NIFTI
from client.intake.nifti_file import load_nifti, nifti_bytes
from client.intake.pairs import find_cases
from client.intake.series import DicomSeries
from client.intake.verdict import Code, Finding, SeriesVerdict
from client.intake.volume_case import Settled, settle
from client.prediction import ClassFinding, Prediction
from client.predictor import classify, network_of, segment
from client.preview import classification_preview, segmentation_preview, write_png
from client.private_files import write_private
from client.seg_export import Algorithm, missing_identity, write_seg
from common.case import IntakeCase
from common.errors import IntakeError, UsageError
from common.package import ModelPackage
from common.sources import Source
from common.volume import Volume

log = logging.getLogger("fedct.predict")

Progress = Callable[[str, int, int], None]
"""Told what is being done, how many are done, and of how many."""


_NO_MILLIMETRES = Finding(
    Code.NO_SPACING,
    "the source knows no millimetres, but the model's plan resamples to its own "
    "spacing; use a model that was trained on such pictures",
    refuses=True,
)


@dataclass(frozen=True)
class Predictions:
    """All that was asked for, and what could not be done."""

    done: tuple[Prediction, ...]
    """One for each accepted series."""
    refused: tuple[SeriesVerdict, ...]
    """Image series that intake refused."""


@dataclass(frozen=True, eq=False)
class Job:
    """One accepted series on its way through the model."""

    verdict: SeriesVerdict
    case: IntakeCase
    series: DicomSeries | None
    """Its planes, where it is DICOM."""


@dataclass(frozen=True)
class Said:
    """What the model said of one series; the fields are those of `Prediction`."""

    files: dict[str, str]
    findings: list[ClassFinding] | None = None
    probabilities: dict[str, float] | None = None
    why_nifti: str | None = None


def predict_series(
    package: ModelPackage,
    source: Source,
    out: Path,
    device: torch.device,
    progress: Progress | None = None,
) -> Predictions:
    """Predict every accepted series of a source and write what was found.

    Args:
        package: Of `load_package`.
        source: A folder in any format, or one NIfTI or MetaImage file.
        out: Made with mode 0700 where absent; files of the same series are replaced.
        device: Where to compute.
        progress: Told how far the work is.

    Raises:
        IntakeError: The source can't be read, or no series was accepted; the message
            has the codes.
        ModelError: The weights do not fit the plan.
        UsageError: The output folder can't be made.
    """
    tell = progress or (lambda _what, _done, _of: None)
    network = network_of(package, device)
    _make_folder(out)
    done: list[Prediction] = []
    refused: list[SeriesVerdict] = []
    for verdict, case, series in _read(source, tell):
        if case is not None and _has_millimetres(case, package):
            tell("predictions", len(done), len(done) + 1)
            job = Job(verdict, case, series)
            done.append(_predict(job, package, network, out, device))
        elif case is not None:
            refused.append(replace(verdict, findings=(_NO_MILLIMETRES,)))
        elif counts_as_series(verdict):
            refused.append(verdict)
    if not done:
        raise IntakeError(_nothing_usable(refused))
    return Predictions(tuple(done), tuple(refused))


def format_of(path: Path) -> Literal["dicom", "nifti", "metaimage", "images"]:
    """What a source is made of, by the names at its top; DICOM if they do not say."""
    files = path.iterdir() if path.is_dir() else [path]
    names = [file.name.lower() for file in files]
    if any(name == "manifest.csv" or name.endswith(".zip") for name in names):
        return "images"
    if any(name.endswith(NIFTI) for name in names):
        return "nifti"
    return "metaimage" if any(name.endswith(METAIMAGE) for name in names) else "dicom"


def _read(
    source: Source, tell: Progress
) -> Iterator[tuple[SeriesVerdict, IntakeCase | None, DicomSeries | None]]:
    """Each series without its labels, which no prediction needs."""
    path = Path(source.source)
    if source.format == "dicom":
        yield from read_series(path, progress=tell)
    elif source.format == "images":
        pictures = read_images(path, where=source.where, labels=False)
        for done, (verdict, case) in enumerate(pictures, start=1):
            tell("series", done, done)
            yield verdict, case, None
    else:
        suffixes = NIFTI if source.format == "nifti" else METAIMAGE
        for verdict, case in _read_volumes(path, suffixes, tell):
            yield verdict, case, None


def _read_volumes(
    path: Path, suffixes: tuple[str, ...], tell: Progress
) -> Iterator[Settled]:
    """One file, or all images of a folder; labels are not read."""
    if path.is_file():
        row = SeriesVerdict(path.name, path.name, path.name, 1)
        yield _settle(row, path)
        return
    cases, strays = find_cases(path, suffixes)
    yield from ((stray, None) for stray in strays)
    for done, case in enumerate(cases):
        tell("series", done, len(cases))
        row = SeriesVerdict(case.name, case.patient, case.source, 1)
        yield _settle(row, case.image)


def _settle(row: SeriesVerdict, path: Path) -> Settled:
    load = load_nifti if path.name.lower().endswith(NIFTI) else load_metaimage
    return settle(row, lambda: load(path), lambda _grid: ((), ()))


def _has_millimetres(case: IntakeCase, package: ModelPackage) -> bool:
    """Whether the plan's resampling, if any, can be done."""
    return case.has_spacing or package.plan.preprocessing.spacing_mm is None


def _predict(
    job: Job,
    package: ModelPackage,
    network: nn.Module,
    out: Path,
    device: torch.device,
) -> Prediction:
    """Run the model on one series and write its files."""
    started = time.monotonic()
    stem = hashlib.sha256(job.case.series.encode()).hexdigest()[:12]
    work = _segment if package.plan.task.kind == "segmentation" else _classify
    said = work(job, package, network, out / stem, device)
    prediction = Prediction(
        plan_name=package.plan.plan.name,
        plan_digest=package.plan.digest,
        weights_sha256=package.weights_sha256,
        series=job.case.series,
        source=job.verdict.source,
        notes=[
            f"{finding.code}: {finding.sentence}" for finding in job.verdict.findings
        ],
        findings=said.findings,
        probabilities=said.probabilities,
        files=said.files,
        why_nifti=said.why_nifti,
        seconds=round(time.monotonic() - started, 3),
    )
    text = prediction.model_dump_json(indent=2, exclude_none=True) + "\n"
    write_private(out / f"{stem}.json", text.encode())
    log.info("predicted", extra={"seconds": prediction.seconds})
    return prediction


def _segment(
    job: Job,
    package: ModelPackage,
    network: nn.Module,
    stem: Path,
    device: torch.device,
) -> Said:
    case, names = job.case, package.class_names
    mask = segment(network, case.volume, package.plan, device)
    file, why = _write_mask(job, mask, package, stem)
    preview = stem.with_name(f"{stem.name}_preview.png")
    picture = segmentation_preview(
        case.volume,
        mask,
        names,
        package.plan.preprocessing.window_hu,
        has_spacing=case.has_spacing,
    )
    write_png(preview, picture)
    counts = np.bincount(mask.array.ravel(), minlength=len(names) + 1)[1:]
    voxel_ml = mask.grid.voxel_mm3 / 1000.0
    findings = [
        ClassFinding(
            name=name,
            voxels=int(count),
            volume_ml=float(count) * voxel_ml if case.has_spacing else None,
        )
        for name, count in zip(names, counts, strict=True)
    ]
    files = {"mask": file.name, "preview": preview.name}
    return Said(files, findings=findings, why_nifti=why)


def _write_mask(
    job: Job, mask: Volume, package: ModelPackage, stem: Path
) -> tuple[Path, str | None]:
    """SEG where something can refer to the series, else NIfTI and why."""
    absent = missing_identity(job.series) if job.series else None
    if job.series is None or absent is not None:
        path = stem.with_name(f"{stem.name}_mask.nii.gz")
        write_private(path, nifti_bytes(mask))
        return path, None if absent is None else f"the series has no {absent}"
    path = stem.with_name(f"{stem.name}_seg.dcm")
    write_seg(
        path,
        mask,
        job.series,
        class_names=package.class_names,
        algorithm=Algorithm(
            package.plan.plan.name,
            package.weights_sha256,
            version("fedct"),
        ),
    )
    return path, None


def _classify(
    job: Job,
    package: ModelPackage,
    network: nn.Module,
    stem: Path,
    device: torch.device,
) -> Said:
    said = classify(network, job.case.volume, package.plan, device)
    named = dict(zip(package.class_names, said.probabilities, strict=True))
    preview = stem.with_name(f"{stem.name}_preview.png")
    picture = classification_preview(said.grey, said.warmth, said.spacing_mm, named)
    write_png(preview, picture)
    return Said({"preview": preview.name}, probabilities=named)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"prediction got an --out that can't be made ({error.strerror}), expected "
            "a folder this user may write to"
        ) from error


def _nothing_usable(refused: list[SeriesVerdict]) -> str:
    """Why there is no prediction, by code; without a UID or name."""
    if not refused:
        return (
            "prediction found no CT series in the source, expected at least one; check "
            "the folder and --source-format"
        )
    reasons = {
        finding.code: finding.sentence
        for verdict in refused
        for finding in verdict.findings
        if finding.refuses
    }
    said = "\n".join(f"  {code}: {sentence}" for code, sentence in reasons.items())
    return (
        f"prediction found no usable series, {len(refused)} were refused, expected at "
        f"least one accepted:\n{said}"
    )
