"""Which label files belong to which image, in folders of NIfTI or MetaImage files.

Three layouts are known, all by name alone and at any depth:

1. nnU-Net, LUNA16: a folder whose name begins with label, mask, roi or seg holds labels
   only. Its `x` belongs to the image `x` (or `x_0000`) in a folder beside or above it.
2. One case a folder (TotalSegmentator): the folder has one file called `ct`, `image`,
   `img` or `volume`, alone or with one word (`ct_cropped`). Every other file in it, and
   in a label folder below it, is a structure called by its file name.
3. Side by side: `x_seg`, `x_mask`, `x_label` (and the like, with more words behind)
   belong to `x`, `x_ct`, `x_image` or `x_0000` in the same folder.

Every file ends in exactly one case or one verdict: an image without label is a case
with a note, a label without image is refused by itself. Files do not say whose they
are: a table (`client.intake.patients`) in the root keeps several scans of
one patient together, or BIDS names (`sub-...`) do; else each case is its own patient.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from client.intake.patients import PATIENTS, patients_of
from client.intake.verdict import Code, Finding, SeriesVerdict
from common.errors import IntakeError

_LABEL_FOLDER = re.compile(r"(label|mask|roi|seg)", re.IGNORECASE)
_CASE_IMAGE = re.compile(r"(ct|image|img|volume)(_[a-z]+)?", re.IGNORECASE)
_LABEL_STEM = re.compile(
    r"(?P<key>.+?)[_.-](segmentations?|seg|masks?|labels?|roi|gt)(?P<rest>[_.-].+)?",
    re.IGNORECASE,
)
_IMAGE_TAIL = re.compile(r"[_.-](0000|ct|image|img|volume)$", re.IGNORECASE)
_CHANNEL = re.compile(r"(?P<key>.+)_(?!0000)\d{4}")


@dataclass
class Case:
    """One image file and the label files that name it."""

    image: Path
    """The file, absolute."""
    source: str
    """The same, relative to the root."""
    name: str
    """`source` without suffix: the series' local name."""
    patient: str
    """From `patients.csv`, or the path's BIDS part `sub-...`, else `name`, which in
    layout 2 is the folder's."""
    labels: list[Path] = field(default_factory=list)
    """Sorted by path."""
    by_structure: bool = False
    """Each label file is one structure, called by the file's name (layout 2)."""


def find_cases(
    root: Path, suffixes: tuple[str, ...]
) -> tuple[list[Case], list[SeriesVerdict]]:
    """All cases below a folder, and a verdict for each file that is in none.

    Raises:
        IntakeError: The root is no folder, holds no such file, or its `patients.csv`
            can't be followed.
    """
    if not root.is_dir():
        raise IntakeError(
            "intake got a source that is no folder, expected one; check the path"
        )
    root = root.resolve()
    files, strays = _files(root, suffixes)
    if not files and not strays:
        raise IntakeError(
            f"intake found no {' or '.join(suffixes)} file, expected at least one; is "
            f"it the right folder?"
        )
    folders: dict[Path, dict[str, Path]] = defaultdict(dict)
    for path in files:
        if folders[path.parent].setdefault(_stem(path, suffixes), path) != path:
            sentence = (
                "two files differ by their suffix alone, expected one; remove one"
            )
            strays.append(_stray(root, path, Code.DUPLICATE_DIFFERENT, sentence))
    labels: list[tuple[Path, str]] = []
    cases: dict[Path, dict[str, Case]] = {}
    for folder, stems in folders.items():
        if folder != root and _LABEL_FOLDER.match(folder.name):
            labels += [(path, stem) for stem, path in stems.items()]
            continue
        cases[folder], inside, odd = _sort_folder(root, stems)
        labels += inside
        strays += odd
    for path, stem in sorted(labels):
        owner = _owner(root, path, stem, cases)
        if owner is None:
            strays.append(_orphan(root, path))
        else:
            owner.labels.append(path)
    found = [case for folder in cases.values() for case in folder.values()]
    aliases = {case.name: _aliases(case) for case in found}
    patients = patients_of(root / PATIENTS, aliases, suffixes)
    for case in found:
        case.patient = patients.get(case.name, case.patient)
    return sorted(found, key=lambda case: case.source), strays


def _aliases(case: Case) -> set[str]:
    """What people call a case: with or without folder, channel and `_ct`."""
    path = PurePosixPath(case.name)
    if case.by_structure:
        folder = path.parent
        return {case.name} | ({folder.as_posix(), folder.name} - {".", ""})
    short = path.with_name(_IMAGE_TAIL.sub("", path.name))
    return {case.name, path.name, short.as_posix(), short.name}


def _files(
    root: Path, suffixes: tuple[str, ...]
) -> tuple[list[Path], list[SeriesVerdict]]:
    """Regular files by suffix; links and special files become verdicts."""
    files, strays = [], []
    for path in sorted(root.rglob("*")):
        if not path.name.lower().endswith(suffixes) or path.is_dir():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            sentence = "the file is a link out of the source folder; copy the file"
            strays.append(_stray(root, path, Code.UNSAFE_LINK, sentence))
        elif not path.is_file():
            sentence = "this is no regular file, expected one; remove it"
            strays.append(_stray(root, path, Code.SPECIAL_FILE, sentence))
        else:
            files.append(path)
    return files, strays


def _stem(path: Path, suffixes: tuple[str, ...]) -> str:
    longest = max((s for s in suffixes if path.name.lower().endswith(s)), key=len)
    return path.name[: -len(longest)]


def _sort_folder(
    root: Path, stems: dict[str, Path]
) -> tuple[dict[str, Case], list[tuple[Path, str]], list[SeriesVerdict]]:
    """Images by key, labels and odd files of a folder that is no label folder."""
    whole = [stem for stem in stems if _CASE_IMAGE.fullmatch(stem)]
    if len(whole) == 1:
        case = _case(root, stems[whole[0]], whole[0])
        case.by_structure = True
        if case.patient == case.name and "/" in case.name:
            case.patient = case.name.rpartition("/")[0]
        rest = [(path, stem) for stem, path in stems.items() if stem != whole[0]]
        return {"": case}, rest, []
    images, labels, strays = {}, [], []
    for stem, path in stems.items():
        channel = _CHANNEL.fullmatch(stem)
        if _LABEL_STEM.fullmatch(stem):
            labels.append((path, stem))
        elif channel and f"{channel['key']}_0000" in stems:
            sentence = "this is a further channel of a case, expected CT alone"
            strays.append(_stray(root, path, Code.NOT_CT, sentence))
        else:
            key = _IMAGE_TAIL.sub("", stem)
            images[stem if key in images else key] = _case(root, path, stem)
    return images, labels, strays


def _case(root: Path, image: Path, stem: str) -> Case:
    source = image.relative_to(root).as_posix()
    name = (PurePosixPath(source).parent / stem).as_posix()
    subject = [part for part in name.split("/") if part.startswith("sub-")]
    patient = subject[0].split("_")[0] if subject else name
    return Case(image, source, name, patient)


def _owner(
    root: Path, path: Path, stem: str, cases: dict[Path, dict[str, Case]]
) -> Case | None:
    folder = path.parent
    keys = [stem, _IMAGE_TAIL.sub("", stem)]
    if match := _LABEL_STEM.fullmatch(stem):
        keys.append(match["key"])
    for home in (folder, folder.parent):
        if "" in cases.get(home, {}):
            return cases[home][""]
    if folder in cases:
        near = [folder]
    else:
        near = [f for f in cases if f.parent == folder.parent]
        # imagesTr before imagesTs for labelsTr.
        near.sort(key=lambda f: f.name[-2:] != folder.name[-2:])
        near += [f for f in folder.parents if f in cases]
    named = (cases[f][key] for f in near for key in keys if key in cases[f])
    return next(named, None)


def _orphan(root: Path, path: Path) -> SeriesVerdict:
    sentence = "this label belongs to no image by its name; see the known layouts"
    return _stray(root, path, Code.LABEL_UNREFERENCED, sentence)


def _stray(root: Path, path: Path, code: Code, sentence: str) -> SeriesVerdict:
    source = path.relative_to(root).as_posix()
    return SeriesVerdict(
        source, source, source, files=1, findings=(Finding(code, sentence, True),)
    )


def structure_of(path: Path, case: Case, suffixes: tuple[str, ...]) -> str | None:
    """The structure that a label file's name tells, where it tells one.

    `x_seg_liver` tells liver; in layout 2 every file name is one. `x_seg` and a file
    named like its image tell none: their numbers are all there is.
    """
    stem = _stem(path, suffixes)
    match = _LABEL_STEM.fullmatch(stem)
    if match and match["rest"]:
        return match["rest"].strip("_.-")
    if case.by_structure or len(case.labels) > 1:
        return stem
    return None
