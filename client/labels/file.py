"""Opens a DICOM label file with a bound on what it may unpack to.

pydicom inflates a deflated transfer syntax without any limit (0.5 MB gave 537 MB), so
that one syntax is inflated here, up to a limit, and handed on as explicit little
endian.

Not covered here: compressed frames, which `client.labels.seg` bounds by their number
and size before it decodes them one at a time.
"""

import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_file_meta_info
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from client.intake.verdict import Code
from client.labels.refusal import LabelRefusedError

FILE_BYTES_LIMIT = 2 * 2**30
"""Largest label file, and largest content of a deflated one."""


def read_dicom(path: Path) -> Dataset:
    """The whole data set of a label file.

    Raises:
        LabelRefusedError: Too large; other damage is left to the caller's `reading`.
    """
    if path.stat().st_size > FILE_BYTES_LIMIT:
        raise _too_large()
    with path.open("rb") as file:
        with_meta = file.read(132).endswith(b"DICM")
        meta = read_file_meta_info(path) if with_meta else FileMetaDataset()
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            return _read_deflated(file, meta)
        file.seek(0)
        # Planning systems write RTSTRUCT without preamble and meta group: hence force.
        return pydicom.dcmread(file, force=not with_meta)


def _read_deflated(file: BinaryIO, meta: FileMetaDataset) -> Dataset:
    file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(file.read(), FILE_BYTES_LIMIT)
    if inflater.unconsumed_tail:
        raise _too_large()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = BytesIO()
    plain.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(plain, meta)
    plain.write(content)
    plain.seek(0)
    return pydicom.dcmread(plain)


def _too_large() -> LabelRefusedError:
    return LabelRefusedError(
        Code.LABEL_UNREADABLE,
        f"the label file holds more than {FILE_BYTES_LIMIT} bytes, expected less; "
        f"split it by structure",
    )
