"""Whose scans a folder of volume files holds, where a table says so.

`patients.csv` in the root has the columns `case` and `patient`. A case is named as
people name it: by its path without suffix (`imagesTr/p1_0000`), or without the channel
or `_ct` behind (`imagesTr/p1`), or by the file name alone (`p1_0000`, `p1`,
`p1.nii.gz`); where a folder is a case, by that folder. A row that names nothing, or two
cases, ends intake: scans of one patient that were meant to be kept together would else
be split over training and test without a word.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from common.errors import IntakeError

PATIENTS = "patients.csv"


def patients_of(
    table: Path, aliases: Mapping[str, Iterable[str]], suffixes: tuple[str, ...]
) -> dict[str, str]:
    """Patient by case, for the cases that the table names; empty without a table.

    Args:
        table: The file, which may be absent.
        aliases: Names by which each case may be called. Its own name goes before the
            others', so that a path names one case also where file names repeat.
        suffixes: What may stand behind a name, as in `p1.nii.gz`.

    Raises:
        IntakeError: A row is incomplete, names no case or several, or contradicts
            another row.
    """
    if not table.is_file():
        return {}
    with table.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.DictReader(file))
    called: dict[str, set[str]] = defaultdict(set)
    for case, names in aliases.items():
        for name in names:
            called[name].add(case)
    patients: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if not row.get("case") or not row.get("patient"):
            raise _error(number, "without case or patient", "both columns in every row")
        name = _plain(row["case"], suffixes)
        cases = {name} if name in aliases else called.get(name, set())
        if len(cases) != 1:
            raise _error(
                number,
                f"whose case names {len(cases) or 'no'} images",
                "one; write its path below the folder, without suffix",
            )
        (case,) = cases
        if patients.setdefault(case, row["patient"]) != row["patient"]:
            raise _error(number, "that gives a case a second patient", "one for each")
    return patients


def _plain(name: str, suffixes: tuple[str, ...]) -> str:
    """The name as a path with `/`, without a suffix of its format."""
    path = PurePosixPath(name.strip().replace("\\", "/")).as_posix()
    found = [suffix for suffix in suffixes if path.lower().endswith(suffix)]
    return path[: -len(max(found, key=len))] if found else path


def _error(number: int, what: str, wanted: str) -> IntakeError:
    return IntakeError(f"{PATIENTS} has a row ({number}) {what}, expected {wanted}")
