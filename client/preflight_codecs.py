"""Whether every decoder of DICOM pixels really decodes, here and now.

A decoder that is installed may still not load (a library is missing, the processor is
too old) or give wrong values. So each transfer syntax decodes one frame of 8 x 8 pixels
whose values are known. Native code may also crash: it runs in a process of its own,
which says each result as soon as it has it.

The frames were encoded by other software than decodes them here (OpenJPEG, OpenJPH,
CharLS, liblj92 and libjpeg-turbo, of imagecodecs 2026.3.6; RLE: pylibjpeg-rle 2.2).
Uncompressed and deflated pixels need no decoder but Python's own.
"""

import json
from base64 import b64decode

import numpy as np

from client.intake.codec import JPEG, JPEG_2000, JPEG_LS, RLE, decode_frame
from client.intake.header import PixelFormat

_RLE = """
AgAAAEAAAABqAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAPwA/gEAAf0C/gP/A/0E/wX/Bf0G/wf+B/0IAAn+Cf0KAAv9C/0M/Q39DgcAPHi08CxopAfgHFiU
0AxIhAfA/Dh0sOwoZAeg3BhUkMwIRAeAvPg0cKzoJAdgnNgUUIzIBAdAfLj0MGyo5AcgXJjUEEyIxA==
"""
"""RLE Lossless (PS3.5 annex G)."""
_JPEG = """
/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAEBAQEBAQEBAQEBAQEBAQIBAQEBAQIBAQECAgICAgICAgID
AwQDAwMDAwICAwQDAwQEBAQEAgMFBQQEBQQEBAT/wAALCAAIAAgBAREA/8QAHwAAAQUBAQEBAQEAAAAA
AAAAAAECAwQFBgcICQoL/8QAtRAAAgEDAwIEAwUFBAQAAAF9AQIDAAQRBRIhMUEGE1FhByJxFDKBkaEI
I0KxwRVS0fAkM2JyggkKFhcYGRolJicoKSo0NTY3ODk6Q0RFRkdISUpTVFVWV1hZWmNkZWZnaGlqc3R1
dnd4eXqDhIWGh4iJipKTlJWWl5iZmqKjpKWmp6ipqrKztLW2t7i5usLDxMXGx8jJytLT1NXW19jZ2uHi
4+Tl5ufo6erx8vP09fb3+Pn6/9oACAEBAAA/APzz8Ef8ESv9T/xSPp/y4/8A1q//2Q==
"""
"""Baseline JPEG, 8 bits."""
_JPEG_LOSSLESS = """
/9j/xAAXAAEBAQEAAAAAAAAAAAAAAAAICQYM/8MACwwACAAIAQARAP/aAAgBAAAGAADn/wDebzebzebz
eXgeDweDweDweF4Hg8Hg8Hg8HheB4PB4PB4PB4XgeDweDweDweF4Hg8Hg8Hg8HheB4PB4PB4PB4XgeDw
eDweDweA/9k=
"""
"""Lossless JPEG, first-order prediction."""
_JPEG_LS = """
/9j/6AAgU1BJRkYAAgAAAQAAAAgAAAAIChAGAQAAASwAAAEs/+gACAAAAAH/2P/3AAsQAAgACAEBEQD/
+AANAf//ABIAQwEUAED/2gAIAQEAAAAAo7x3jvHWc47x1+BHiO06TlcLdHj4FstVos1ksUdvfWDe3NrY
1p095qaWhnZmVOXusjGxMLAvrh7i8uri2tLK3e2srCurqzZbAP/Z
"""
"""JPEG-LS, lossless."""
_JPEG_2000 = """
/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/
XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABdAAH/k9/h
MBIrBN0xlS53Wu3zXxue3Y44/ZpXvXU0WbO/Bq1dY98LnSLzR9I07mL6aAAAX3OcJff5FtTqbJK6Mg6D
3OljWl1bG3zfN84jw4bEem//2Q==
"""
"""JPEG 2000, reversible."""
_HTJ2K = """
/0//UQApQAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwA
AgABAAUEBEAB/1wAEyCIkJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoA
AAAAAFoAAf+TwAAmX/YFB3QAAADAABNAABMAIv4CB3QAGvEDh3QAwAATQAATgAwMAYJ0AG7ohgDDVADA
ACogABVgtm3bqnCCdQC++/bt+8BCAey2AP/Z
"""
"""High-throughput JPEG 2000, reversible."""

FRAMES: dict[str, tuple[str, int, int]] = {
    RLE: (_RLE, 60, 12),
    **dict.fromkeys(JPEG[:2], (_JPEG, 3, 8)),
    **dict.fromkeys(JPEG[2:], (_JPEG_LOSSLESS, 60, 12)),
    **dict.fromkeys(JPEG_LS, (_JPEG_LS, 60, 16)),
    **dict.fromkeys(JPEG_2000[:2], (_JPEG_2000, 60, 12)),
    **dict.fromkeys(JPEG_2000[2:], (_HTJ2K, 60, 16)),
}
"""Transfer syntax to a frame in base64, the step between its pixels (0, 1 step, 2 steps
... row by row), and bits."""


def decodes(syntax: str) -> str | None:
    """What is wrong with the decoder of a transfer syntax, in a word; or nothing."""
    frame, step, bits = FRAMES[syntax]
    pixels = PixelFormat(
        transfer_syntax=syntax,
        rows=8,
        columns=8,
        frames=1,
        samples=1,
        photometric="MONOCHROME2",
        bits_allocated=8 if bits <= 8 else 16,
        bits_stored=bits,
        high_bit=bits - 1,
        signed=False,
        padding=None,
        data_offset=0,
        data_bytes=None,
        dataset_offset=0,
    )
    try:
        found = decode_frame(b64decode(frame), pixels).array
    except Exception as error:  # whatever a codec raises is the answer
        return type(error).__name__
    if not np.array_equal(found, step * np.arange(64)):
        return "wrong values"
    return None


def main() -> None:
    """Print one JSON object a line: the transfer syntax, and what is wrong with it."""
    for syntax in FRAMES:
        print(json.dumps({"syntax": syntax, "wrong": decodes(syntax)}), flush=True)


if __name__ == "__main__":
    main()
