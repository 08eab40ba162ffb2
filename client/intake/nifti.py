"""A folder of NIfTI images and label maps to cases.

Which label belongs to which image is told by names (`client.intake.pairs` has the three
layouts). Names of numbers come from nnU-Net's `dataset.json` where one lies beside the
label folder; else a structure is called by its number or its file.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from client.intake.nifti_file import SUFFIXES, load_nifti
from client.intake.pairs import Case, find_cases, structure_of
from client.intake.verdict import Code, Finding, SeriesVerdict
from client.intake.volume_case import Labels, Settled, settle
from client.labels.label_map import read_label_map
from client.labels.refusal import notes_on
from common.case import Segment
from common.volume import Grid

_JSON_BYTES_LIMIT = 2**20


def read_nifti(root: Path) -> Iterator[Settled]:
    """One verdict, and the case where accepted, for each image below a folder.

    Volumes are read one at a time, as the caller asks for them.

    Raises:
        IntakeError: The root is no folder, or holds no NIfTI file.
    """
    cases, strays = find_cases(root, SUFFIXES)
    refused: Iterator[Settled] = ((stray, None) for stray in strays)
    return chain(refused, (_settle(case) for case in cases))


def _settle(case: Case) -> Settled:
    files = 1 + len(case.labels)
    row = SeriesVerdict(case.name, case.patient, case.source, files)
    return settle(
        row,
        lambda: load_nifti(case.image),
        lambda grid: label_maps(case, grid, SUFFIXES),
    )


def label_maps(case: Case, grid: Grid, suffixes: tuple[str, ...]) -> Labels:
    """Segments of all label files of a case; the first that refuses ends it."""
    segments: list[Segment] = []
    for path in case.labels:
        names = _names(path.parent)
        if isinstance(names, Finding):
            return (), (names,)
        more, found = read_label_map(
            path,
            grid,
            names=names,
            structure=structure_of(path, case, suffixes),
        )
        if any(finding.refuses for finding in found):
            return (), found
        segments += more
    if not case.labels:
        return (), (Finding(Code.LABEL_MISSING, "the image has no label", False),)
    one = len(case.labels) == 1
    return tuple(segments), notes_on("the label", segments, disjoint=one)


def _names(folder: Path) -> dict[int, str] | Finding:
    """Names by number from nnU-Net's dataset.json, in either of its two forms.

    A file that is there and can't be followed refuses: without its names the numbers
    would be taken for other classes, or for none. Without `labels` it is none of ours.
    """
    file = folder.parent / "dataset.json"
    if not file.is_file():
        return {}
    try:
        with file.open("rb") as opened:
            content = opened.read(_JSON_BYTES_LIMIT + 1)
        if len(content) > _JSON_BYTES_LIMIT:
            raise ValueError("too long")
        labels = json.loads(content).get("labels", {}).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        sentence = (
            "dataset.json beside the labels can't be read, expected nnU-Net's JSON "
            f"with `labels`, at most {_JSON_BYTES_LIMIT} bytes; correct or remove it"
        )
        return Finding(Code.LABEL_UNREADABLE, sentence, refuses=True)
    names = {}
    for key, value in labels:
        if isinstance(value, int):  # version 2: name to number
            names[value] = str(key)
        elif isinstance(value, str) and str(key).isdigit():  # version 1
            names[int(key)] = value
    return {number: name for number, name in names.items() if number > 0}
