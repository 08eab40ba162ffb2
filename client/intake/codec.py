"""One encoded frame to stored words, after its own header has been believed or refused.

The size in a codestream is compared with Rows x Columns before a codec sees it, so that
a few kilobytes can't make it allocate gigabytes. Of the installed codecs, each transfer
syntax has the fastest that gives the exact values of an uncompressed twin.

Runs in the decoder processes only: codecs are C and C++ that parse untrusted bytes.
"""

import struct
from dataclasses import dataclass
from typing import Any

import jpeg_ls  # type: ignore[import-untyped]
import numpy as np
import openjpeg.utils
import rle.utils
from jaxtyping import UInt
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from client.intake.container import FileProblemError
from client.intake.header import PixelFormat

RLE = "1.2.840.10008.1.2.5"
JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
JPEG_2000 = (
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
JPEG = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
)
_START_OF_FRAME = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7)


@dataclass(frozen=True)
class Words:
    """Stored words of one frame, not yet read as signed or unsigned."""

    array: UInt[np.ndarray, " N"]
    """uint8 or uint16, row by row."""
    bits: int
    """How many low bits of a word carry the value."""
    signed: bool | None
    """What the codestream says of the sign; None where its format can't say."""


def decode_frame(frame: bytes, pixels: PixelFormat) -> Words:
    """Decode one encapsulated frame.

    Raises:
        FileProblemError: The syntax has no codec, or the frame contradicts the header.
    """
    syntax = pixels.transfer_syntax
    if syntax in JPEG_2000:
        return _decode_jpeg_2000(frame, pixels)
    if syntax == RLE:
        options: dict[str, Any] = {
            "rows": pixels.rows,
            "columns": pixels.columns,
            "bits_allocated": pixels.bits_allocated,
        }
        raw = bytes(rle.utils.decode_pixel_data(frame, version=2, **options))
        return _words(raw, pixels.bits_allocated, pixels.bits_stored)
    if syntax in JPEG_LS:
        precision = _expect_size(_jpeg_size(frame), pixels)
        raw, _ = jpeg_ls.decode_pixel_data(frame)
        return _words(raw, precision, min(precision, pixels.bits_stored))
    if syntax in JPEG:
        return _decode_jpeg(frame, pixels)
    raise FileProblemError("PIXEL_FORMAT")


def _decode_jpeg_2000(frame: bytes, pixels: PixelFormat) -> Words:
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    size = frame[start + 4 : start + 43]
    if start < 0 or len(size) < 39:
        raise FileProblemError("DECODE_FAILED")
    x1, y1, x0, y0 = struct.unpack(">4I", size[4:20])
    (components,) = struct.unpack(">H", size[36:38])
    precision = (size[38] & 0x7F) + 1
    _expect_size((precision, y1 - y0, x1 - x0, components), pixels)
    raw = bytes(openjpeg.utils.decode_pixel_data(frame, version=2))
    words = _words(raw, precision, precision)
    return Words(words.array, precision, signed=bool(size[38] & 0x80))


def _decode_jpeg(frame: bytes, pixels: PixelFormat) -> Words:
    """Baseline and lossless JPEG through GDCM."""
    precision = _expect_size(_jpeg_size(frame), pixels)
    array, _ = get_decoder(pixels.transfer_syntax).as_array(
        encapsulate([frame], has_bot=False),
        index=0,
        raw=True,
        decoding_plugin="gdcm",
        transfer_syntax_uid=UID(pixels.transfer_syntax),
        rows=pixels.rows,
        columns=pixels.columns,
        number_of_frames=1,
        samples_per_pixel=1,
        photometric_interpretation=pixels.photometric,
        bits_allocated=8 if precision <= 8 else 16,
        bits_stored=precision,
        pixel_representation=int(pixels.signed),
        pixel_keyword="PixelData",
    )
    return _words(array.tobytes(), precision, min(precision, pixels.bits_stored))


def _words(raw: bytes | bytearray, container_bits: int, bits: int) -> Words:
    dtype = np.dtype("u1" if container_bits <= 8 else "<u2")
    array = np.frombuffer(raw, dtype=dtype)
    return Words(array, min(bits, 8 * dtype.itemsize), signed=None)


def _expect_size(found: tuple[int, int, int, int], pixels: PixelFormat) -> int:
    """The precision in bits, once the codestream's size is that of the header."""
    precision, rows, columns, components = found
    if (rows, columns, components) != (pixels.rows, pixels.columns, 1):
        raise FileProblemError("PIXEL_FORMAT")
    if not 1 <= precision <= 16:
        raise FileProblemError("PIXEL_FORMAT")
    return precision


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int]:
    """Precision, rows, columns, components of a JPEG or JPEG-LS frame header."""
    position = 2
    while position + 10 <= len(frame):
        if frame[position] != 0xFF:
            break
        marker = frame[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _START_OF_FRAME:
            return struct.unpack(">BHHB", frame[position + 4 : position + 10])
        (length,) = struct.unpack(">H", frame[position + 2 : position + 4])
        position += 2 + length
    raise FileProblemError("DECODE_FAILED")
