"""Synthetic studies in which every text of every tag is a canary, and every name too.

Noise with a bright ball and a SEG of it, as `tests.faults.patients` has them. Each
element that can hold text holds one of its own; in a slice and the SEG of each site's
first patient the whole data dictionary of DICOM does, private elements too, and an item
in every sequence that was not there. UIDs, dates and numbers written as text
can't spell a word; theirs are canaries of digits. Folders and files are called so too.
What a file needs to be read as CT stays as it is (`NEEDED`), but for its UIDs.

Not covered here: elements that hold binary numbers, and ages, which have four letters.
"""

import datetime
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
from pydicom.config import disable_value_validation
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag

from common.volume import Volume
from deploy.phantom.dicom import write_seg, write_series
from deploy.phantom.scanner import Scanner, axial_grid

WORD = "CANARY0"
"""What every canary begins with that can hold letters; in names, in small letters."""
UID_ROOT, DECIMAL, WHOLE = "2.25.314159265358979323", "3141592653", "1618033"
TIME, MOMENT, DAY = "031415.", "27180314031415.", "16180"
"""What those begin with that can't."""
_FIRST_DAY, _DAYS = datetime.date(1618, 1, 1), 270
NEEDED = frozenset(
    {
        *("SpecificCharacterSet", "SOPClassUID", "Modality", "ImageType"),
        *("PhotometricInterpretation", "PatientPosition", "RescaleType"),
        *("SegmentationType", "SegmentsOverlap", "SegmentAlgorithmType"),
        *("MaximumFractionalValue", "SegmentationFractionalType"),
        *("LossyImageCompression", "NumberOfFrames", "SegmentSequence"),
        *("GantryDetectorTilt", "PixelPaddingValue", "PresentationLUTShape"),
        *("ModalityLUTSequence", "PixelDataProviderURL", "DetectorTiltAngle"),
        *("ReferencedSOPClassUID", "ExtendedOffsetTable"),
        *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
        *("RealWorldValueMappingSequence", "DimensionIndexSequence"),
        *("DimensionOrganizationSequence", "PixelMeasuresSequence"),
    }
)
"""Elements that say how to read the pixels; set or left out as in the phantom."""
_SHAPE, _SPACING_MM = (8, 32, 32), (4.0, 4.0, 4.0)
_LETTERS = {
    "AE": 16,
    "CS": 16,
    "SH": 16,
    "LO": 64,
    "LT": 80,
    "PN": 64,
    "ST": 80,
    "UC": 80,
    "UR": 80,
    "UT": 80,
}


class Nest:
    """Hatches canaries, and remembers them; no two texts are alike."""

    def __init__(self, first: int) -> None:
        """Number them from here."""
        self._numbers = itertools.count(first)
        self.hatched: set[str] = set()

    def text(self, vr: str, keyword: str = "") -> str | None:
        """A canary that fits an element; none for what can't hold one."""
        number = next(self._numbers)
        canary = self._of(vr, number, keyword)
        if canary is not None:
            self.hatched.add(canary)
        return canary

    def name(self) -> str:
        """A canary for a file or folder."""
        canary = f"{WORD.lower()}{next(self._numbers):07d}"
        self.hatched.add(canary)
        return canary

    def _of(self, vr: str, number: int, keyword: str) -> str | None:
        if vr in _LETTERS:
            return f"{WORD}{number:07d} {keyword}".strip()[: _LETTERS[vr]].strip()
        day = _FIRST_DAY + datetime.timedelta(days=number % _DAYS)
        return {
            "UI": f"{UID_ROOT}{number}",
            "DS": f"{DECIMAL}{number % 10**5:05d}",
            "IS": f"{WHOLE}{number % 10**3:03d}",
            "DA": f"{day:%Y%m%d}",
            "TM": f"{TIME}{number % 10**6:06d}",
            "DT": f"{MOMENT}{number % 10**6:06d}",
        }.get(vr)


def write_canaries(nest: Nest) -> Callable[[Path, str, int], None]:
    """A writer of patients for `tests.faults.federation`, out of one nest."""

    def write(folder: Path, site: str, count: int) -> None:
        scanner = Scanner(matrix=_SHAPE[1], slices=_SHAPE[0], slice_thickness_mm=4.0)
        for number in range(count):
            where = folder / nest.name()
            volume, ball = _phantom(site, number)
            names = [f"{nest.name()}.dcm" for _ in range(_SHAPE[0])]
            patient = nest.text("LO", "PatientID")
            paths = write_series(
                where,
                volume,
                scanner=scanner,
                patient=patient,
                seed=number,
                names=names,
            )
            seg = write_seg(where / nest.name(), paths, [("nodule", ball)])
            _fill(paths, seg, nest, everything=number == 0)

    return write


def _phantom(site: str, number: int) -> tuple[Volume, np.ndarray]:
    """Noise with a ball in it, and the ball."""
    d, h, w = np.ogrid[: _SHAPE[0], : _SHAPE[1], : _SHAPE[2]]
    rng = np.random.default_rng([number, *site.encode()])
    centre = rng.integers((3, 10, 10), (5, 22, 22))
    away = (d - centre[0]) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2
    ball = away < 16
    hu = rng.normal(-800.0, 20.0, _SHAPE) + 850.0 * ball
    return Volume(hu.astype(np.float32), axial_grid(_SHAPE, _SPACING_MM)), ball


def _fill(slices: list[Path], seg: Path, nest: Nest, *, everything: bool) -> None:
    """Put a canary into every element of a patient's files that can hold one.

    Elements of patient, study and series have one value in all slices, as they must;
    each file has its own identity, and all keep what they say of one another.
    """
    images = [pydicom.dcmread(path) for path in slices]
    mask = pydicom.dcmread(seg)
    nest.hatched |= {
        str(element.value)
        for dataset in (*images, mask)
        for element in dataset.iterall()
        if element.VR == "UI" and str(element.value).startswith("2.25.")
    }
    common = _canaries(images[0], nest, everything=everything)
    own = _canaries(mask, nest, everything=everything)
    with disable_value_validation():
        _put(images[0], common, slices[0])
        for image, path in zip(images[1:], slices[1:], strict=True):
            _put(image, [one for one in common if one.tag in image], path)
        _put(mask, own, seg)


def _canaries(like: Dataset, nest: Nest, *, everything: bool) -> list[DataElement]:
    """An element with a canary for every one that there is, or may be, with a text."""
    found = []
    with disable_value_validation():
        for tag, vr, keyword in _entries():
            is_set = tag in like
            if keyword in NEEDED or (is_set and vr in ("UI", "DS", "IS", "SQ")):
                continue
            if not is_set and not everything:
                continue
            if vr == "SQ":
                item = Dataset()
                item.CodeMeaning = nest.text("LO", keyword)
                found.append(DataElement(tag, "SQ", Sequence([item])))
            elif canary := nest.text(vr, keyword):
                found.append(DataElement(tag, vr, canary))
        creator = Tag(0x0099, 0x0010)
        found.append(DataElement(creator, "LO", nest.text("LO", "creator")))
        for offset, vr in enumerate((*_LETTERS, "UI", "DS", "IS", "DA", "TM", "DT")):
            tag = Tag(0x0099, 0x1000 + offset)
            found.append(DataElement(tag, vr, nest.text(vr, "private")))
        binary = str(nest.text("LO", "bytes")).encode()
        padded = binary + bytes(len(binary) % 2)
        found.append(DataElement(Tag(0x0099, 0x1050), "OB", padded))
    return found


def _entries() -> Iterator[tuple[Tag, str, str]]:
    """Tag, VR and keyword of every element that a data set may have (PS3.6)."""
    for number, (vr, _, _, _, keyword) in DicomDictionary.items():
        tag = Tag(number)
        if tag.group > 0x0007 and keyword and tag.element != 0x0000:
            yield tag, vr, keyword


def _put(dataset: Dataset, elements: list[DataElement], path: Path) -> None:
    for element in elements:
        dataset[element.tag] = element
    dataset.save_as(path, enforce_file_format=True)
