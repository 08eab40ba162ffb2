"""The awkward hospital: an export with every fault that intake must catch.

One small series (or file) for each fault, each in a folder named after it, among a few
sound ones. `expected.json` beside the export says what intake has to find, so a test is
one comparison and a newcomer can look each fault up.

Nothing here is dangerous: programs are two letters of a preamble, the bomb is a file
that inflates to zeros, the link points at an empty folder of our own.
"""

import json
import os
import warnings
import zlib
from collections.abc import Callable
from copy import copy
from pathlib import Path

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
)

from client.intake.verdict import Code
from common.volume import Volume
from deploy.phantom.anatomy import Anatomy, Phantom
from deploy.phantom.dicom import (
    encode,
    file_bytes,
    file_start,
    series_header,
    slice_dataset,
    stored_values,
    write_seg,
)
from deploy.phantom.dicomdir import write_dicomdir
from deploy.phantom.faults import FAULTS, SOUND, Fault, Slices
from deploy.phantom.hospital import scan
from deploy.phantom.scanner import Hospital, Scanner

SCANNER = Scanner(
    noise_hu=15.0, slice_thickness_mm=7.5, pixel_spacing_mm=3.75, matrix=48, slices=14
)
BOMB_ROWS = 11264
"""Rows and columns of the bomb: 254 MB a slice, of which 0.25 MB is stored."""


def write_awkward(out: Path, *, seed: int = 0) -> dict[str, str]:
    """Write the awkward hospital.

    Args:
        out: Gets `export/` (give that to intake), `outside/` (what the link and the
            DICOMDIR lead to) and `expected.json`.
        seed: Decides voxels and UIDs.

    Returns:
        SeriesInstanceUID, or the path relative to the export where a file has none, to
        the `Code` that must be among its findings; "ACCEPT" where there is none to be.
        The same as in `expected.json`.
    """
    root = out / "export"
    root.mkdir(parents=True)
    hospital = Hospital("awkward", SCANNER, 1, Anatomy(scale=0.5, branches=24))
    phantom, _ = scan(hospital, 0, seed)
    expected: dict[str, str] = {}
    with warnings.catch_warnings():
        # pydicom warns of values that are wrong here on purpose.
        warnings.filterwarnings("ignore", "Invalid value for VR", UserWarning)
        for fault in FAULTS:
            expected |= _write_fault(root, fault, phantom, seed)
        for name, write in FILE_FAULTS.items():
            folder = root / name
            folder.mkdir()
            expected |= write(folder, _slices(phantom.volume, name, seed))
    _write_strangers(root, out / "outside", expected)
    text = json.dumps(expected, indent=2, ensure_ascii=False)
    (out / "expected.json").write_text(text, encoding="utf-8")
    return expected


def _slices(volume: Volume, name: str, seed: int) -> Slices:
    patient = f"PHANTOM-AWKWARD-{name.upper()}"
    header = series_header(volume, SCANNER, patient, seed)
    stored = stored_values(volume, SCANNER)
    count = volume.grid.shape[0]
    slices = [slice_dataset(header, volume, stored, d) for d in range(count)]
    for ds in slices:
        # Own elements, because an edit must not reach the header that slices share.
        ds.update({element.tag: copy(element) for element in ds})
    return slices


def _write_fault(
    root: Path, fault: Fault, phantom: Phantom, seed: int
) -> dict[str, str]:
    folder = root / fault.name
    slices = fault.edit(_slices(phantom.volume, fault.name, seed))
    prefix = "Prüfbild-" if fault.expected == Code.NON_ASCII else "I"
    paths = _write(folder, slices, fault.syntax, prefix)
    uid = str(slices[0].SeriesInstanceUID)
    if uid and (fault.noted or fault.expected == SOUND):
        count = phantom.volume.grid.shape[0]
        segments = [(nodule.name, nodule.mask) for nodule in phantom.nodules]
        write_seg(folder / "SEG", paths[:count], segments)
    first = f"{fault.name}/{paths[0].name}"
    return {uid or first: str(fault.expected)}


def _write(folder: Path, slices: Slices, syntax: UID, prefix: str = "I") -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = []
    for index, ds in enumerate(slices):
        encode(ds, syntax)
        path = folder / f"{prefix}{index:03d}"
        path.write_bytes(file_bytes(ds))
        paths.append(path)
    return paths


def _contradicting(folder: Path, slices: Slices) -> dict[str, str]:
    """A signed JPEG 2000 codestream under a tag that says unsigned."""
    for path, ds in zip(_write(folder, slices, JPEG2000Lossless), slices, strict=True):
        ds.PixelRepresentation = 0
        path.write_bytes(file_bytes(ds))
    return {_uid(slices): Code.PIXEL_REPRESENTATION}


def _truncated(folder: Path, slices: Slices) -> dict[str, str]:
    """One slice lost the last third of its pixels."""
    path = _write(folder, slices, ExplicitVRLittleEndian)[4]
    content = path.read_bytes()
    path.write_bytes(content[: -len(slices[4].PixelData) // 3])
    return {_uid(slices): Code.DECODE_FAILED}


def _damaged(folder: Path, slices: Slices) -> dict[str, str]:
    """One codestream lost the marker it has to begin with."""
    path = _write(folder, slices, JPEG2000Lossless)[4]
    start, size_marker = b"\xff\x4f", b"\xff\x51"  # SOC and SIZ: ISO 15444-1 A.4
    damaged = path.read_bytes().replace(start + size_marker, b"\0\0" + size_marker)
    path.write_bytes(damaged)
    return {_uid(slices): Code.DECODE_FAILED}


def _preamble(start: bytes) -> Callable[[Path, Slices], dict[str, str]]:
    def write(folder: Path, slices: Slices) -> dict[str, str]:
        for path in _write(folder, slices, ExplicitVRLittleEndian):
            path.write_bytes(start + path.read_bytes()[len(start) :])
        return {_uid(slices): Code.EXECUTABLE_PREAMBLE}

    return write


def _bomb(folder: Path, slices: Slices) -> dict[str, str]:
    """Three slices of a few hundred kB that inflate to 254 MB each."""
    size = BOMB_ROWS * BOMB_ROWS * 2
    deflate = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    # After a full flush nothing refers back, so one row's bytes can be repeated.
    row = deflate.compress(bytes(BOMB_ROWS * 2)) + deflate.flush(zlib.Z_FULL_FLUSH)
    zeros = row * BOMB_ROWS + deflate.flush()
    for index, ds in enumerate(slices[:3]):
        ds.Rows = ds.Columns = BOMB_ROWS
        ds.PixelData = b""
        encode(ds, ExplicitVRLittleEndian)
        start = len(file_start(ds.file_meta))
        plain = file_bytes(ds)[start:-4] + size.to_bytes(4, "little")
        ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        head = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = head.compress(plain) + head.flush(zlib.Z_FULL_FLUSH)
        meta = file_start(ds.file_meta)
        (folder / f"I{index:03d}").write_bytes(meta + body + zeros)
    return {_uid(slices): Code.DECODE_LIMIT}


def _leading_out(folder: Path, slices: Slices) -> dict[str, str]:
    """A DICOMDIR that names a file above the export."""
    paths = _write(folder, slices, ExplicitVRLittleEndian)
    names = [Path("..", "..", "outside", path.name) for path in paths]
    write_dicomdir(folder, list(zip(paths, names, strict=True)))
    return {f"{folder.name}/DICOMDIR": Code.UNSAFE_LINK}


def _forgetful(folder: Path, slices: Slices) -> dict[str, str]:
    """A DICOMDIR that names a slice which was not copied."""
    paths = _write(folder, slices, ExplicitVRLittleEndian)
    write_dicomdir(folder, [(path, path.relative_to(folder)) for path in paths])
    paths[6].unlink()
    return {_uid(slices): Code.DICOMDIR_MISSING_FILE}


FILE_FAULTS: dict[str, Callable[[Path, Slices], dict[str, str]]] = {
    "contradicting": _contradicting,
    "truncated": _truncated,
    "damaged": _damaged,
    "windows-program": _preamble(b"MZ"),
    "linux-program": _preamble(b"\x7fELF"),
    "bomb": _bomb,
    "leading-out": _leading_out,
    "forgetful": _forgetful,
}
"""Faults of a series that only show in its files."""


def _write_strangers(root: Path, outside: Path, expected: dict[str, str]) -> None:
    """Files that are no DICOM, and things that are no files."""
    outside.mkdir()
    folder = root / "strangers"
    folder.mkdir()
    (folder / "readme.txt").write_text("Synthetic data, made by FedCT.\n")
    (folder / "empty").write_bytes(b"")
    (folder / "link").symlink_to(Path("..", "..", "outside"))
    os.mkfifo(folder / "fifo")
    expected["strangers/readme.txt"] = Code.NOT_DICOM
    expected["strangers/empty"] = Code.EMPTY_FILE
    expected["strangers/link"] = Code.UNSAFE_LINK
    expected["strangers/fifo"] = Code.SPECIAL_FILE


def _uid(slices: Slices) -> str:
    return str(slices[0].SeriesInstanceUID)
