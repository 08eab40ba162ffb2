"""Cases as NIfTI files, so that any other reader can check what intake made of them.

Each volume is written on its own grid, nothing resampled: HU as int16 where all are
whole, else float32. The file's axes i j k are W H D, and its affine is RAS, as NIfTI
has it; no axis is flipped. Labels lie beside it, a file of 0 and 1 each, because
segments may overlap. `client.intake.nifti` reads the files back to the same digest.

File names are derived from a hash of the series, so they hold no patient data; the
table `index.csv`, which does, says which is which and stays at the hospital.
"""

import csv
import hashlib
import io
import os
import re
import tempfile
from pathlib import Path

import numpy as np

from client.intake.nifti_file import compact, nifti_bytes
from common.case import IntakeCase
from common.volume import Volume

INDEX = "index.csv"
COLUMNS = ("file", "kind", "segment", "series", "patient")


def export_case(case: IntakeCase, out: Path) -> list[Path]:
    """Write a case's volume and labels into a folder, and note them in its index.

    Args:
        case: Any accepted case.
        out: Folder, made with mode 0700 where absent. Files of the same series from an
            earlier export are removed.

    Returns:
        The volume's file, then each label's, in the order of the segments.
    """
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = hashlib.sha256(case.series.encode()).hexdigest()[:16]
    files = [(f"{stem}_ct.nii.gz", "image", "", compact(case.volume.array))]
    for number, segment in enumerate(case.segments, start=1):
        slug = re.sub(r"[^a-z0-9]+", "-", segment.name.lower()).strip("-")[:40]
        name = f"{stem}_seg_{number:03d}-{slug or 'x'}.nii.gz"
        files.append((name, "label", segment.name, segment.mask.astype(np.uint8)))
    paths: list[Path] = []
    for name, _, _, array in files:
        paths.append(out / name)
        _write(paths[-1], nifti_bytes(Volume(array, case.volume.grid)))
    rows = [(n, kind, label, case.series, case.patient) for n, kind, label, _ in files]
    _index(out / INDEX, rows)
    for stale in set(out.glob(f"{stem}_*.nii.gz")) - set(paths):
        stale.unlink()
    return paths


def _index(path: Path, rows: list[tuple[str, str, str, str, str]]) -> None:
    """Replace the rows of these files in the table, and keep the others."""
    known = {}
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            known = {row[0]: tuple(row) for row in list(csv.reader(file))[1:]}
    stale = {name for name in known if name[:16] == rows[0][0][:16]}
    kept = [row for name, row in known.items() if name not in stale]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *kept, *rows])
    _write(path, text.getvalue().encode())


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all: written beside, flushed, then renamed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
