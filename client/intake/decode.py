"""One plane of a series: stored words to HU, with the facts that checks need.

All checks that need voxels are counted here, in the same pass over a plane that is
still in the processor's cache, and only numbers go back. Judging them is the parent's
work (`client.intake.values`).

Runs in the decoder processes only.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Num
from pydicom.encaps import get_frame

from client.intake.codec import Words, decode_frame
from client.intake.container import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    FileProblemError,
    inflate,
    open_regular,
)
from client.intake.header import PixelFormat

AIR_HU = -1024
"""What padding becomes: the value of air outside the field of view on most scanners."""
LOWEST_HU, HIGHEST_HU = -1100, 4000
"""Air and soft tissue lie between; metal may lie above."""
_NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)


@dataclass(frozen=True)
class PlaneTask:
    """What to decode, and where the HU plane goes."""

    path: Path
    frame: int
    pixels: PixelFormat
    slope: float
    intercept: float
    dtype: str
    """`<i2` or `<f4`."""
    target_offset: int
    """Byte offset of the plane in the shared volume."""
    codestream_sign: bool = False
    """Believe the codestream's sign where it contradicts PixelRepresentation."""


@dataclass(frozen=True)
class PlaneFacts:
    """What was found in one plane, in HU after padding became air."""

    low: float
    high: float
    below: int
    """Voxels under LOWEST_HU."""
    above: int
    """Voxels over HIGHEST_HU."""
    padded: int
    """Voxels that PixelPaddingValue declares and that did not already mean air."""
    padding_hu: float | None
    """What padding would have meant in HU; None where no voxel is padding, or where it
    is a value that BitsStored can't hold, so that no tissue can have it."""
    fits: bool
    """Whether every value fits the wanted dtype exactly."""
    contradicted: bool
    """The codestream's sign is not PixelRepresentation, and a voxel depends on it."""
    stray_bits: bool
    """Bits above BitsStored hold something that is neither zero nor the sign."""
    digest: str
    """`plane_digest` in hexadecimal."""


def decode_plane(task: PlaneTask, target: int) -> PlaneFacts:
    """Decode one plane and write its HU to a file descriptor.

    Raises:
        FileProblemError: The pixel data can't be decoded or contradicts the header.
    """
    words = read_words(task.path, task.pixels, task.frame)
    signed = task.pixels.signed
    contradicted = words.signed is not None and words.signed != signed
    if contradicted:
        contradicted = bool((words.array >> (words.bits - 1) & 1).any())
        signed = not signed if task.codestream_sign else signed
    padding = task.pixels.padding
    values, stray = stored_values(words, signed=signed, padding=padding)
    hu, pad = _rescale(values, task, padding)
    low, high = float(hu.min()), float(hu.max())
    fits = task.dtype == "<f4" or _is_int16(hu, low, high)
    plane = (
        hu.astype(task.dtype, copy=False) if fits else np.zeros(hu.shape, task.dtype)
    )
    _write(target, plane.data, task.target_offset)
    padding_hu = None
    largest = (1 << words.bits - signed) - 1
    if pad is not None and padding is not None and padding[1] <= largest:
        padding_hu = padding[1] * task.slope + task.intercept
    return PlaneFacts(
        low=low,
        high=high,
        below=int((hu < LOWEST_HU).sum()) if low < LOWEST_HU else 0,
        above=int((hu > HIGHEST_HU).sum()) if high > HIGHEST_HU else 0,
        padded=0 if pad is None or padding_hu == AIR_HU else int(pad.sum()),
        padding_hu=padding_hu,
        fits=fits,
        contradicted=contradicted,
        stray_bits=stray,
        digest=plane_digest(plane).hex(),
    )


def plane_digest(plane: Num[np.ndarray, "..."]) -> bytes:
    """BLAKE2b-256 of a plane's values, whatever type they are stored in.

    Values are hashed as int16 where that is exact and as float32 where not. BLAKE2b,
    because in software it is twice as fast as SHA-256, and hashing is most of what an
    uncompressed plane costs.
    """
    exact = plane
    if plane.dtype != np.int16:
        exact = plane.astype("<f4")
        with np.errstate(invalid="ignore"):
            short = exact.astype("<i2")
        exact = short if np.array_equal(short, exact) else exact
    little = np.ascontiguousarray(exact, dtype=exact.dtype.newbyteorder("<"))
    return hashlib.blake2b(little.data, digest_size=32).digest()


def read_words(path: Path, pixels: PixelFormat, frame: int) -> Words:
    """Stored words of one frame, native or encapsulated.

    Raises:
        FileProblemError: They are not there, or not as many as the header says.
    """
    count = pixels.rows * pixels.columns
    if pixels.transfer_syntax not in _NATIVE:
        with open_regular(path) as file:
            file.seek(pixels.data_offset)
            encoded = get_frame(file, frame, number_of_frames=pixels.frames)
        words = decode_frame(encoded, pixels)
        if words.array.size < count:
            raise FileProblemError("DECODE_FAILED")
        return Words(words.array[:count], words.bits, words.signed)
    size = count * pixels.bits_allocated // 8
    if pixels.data_bytes is None or not (
        0 <= pixels.data_bytes - size * pixels.frames <= 1
    ):
        raise FileProblemError("PIXEL_FORMAT")
    start = pixels.data_offset + frame * size
    with open_regular(path) as file:
        if pixels.transfer_syntax == DEFLATED:
            file.seek(pixels.dataset_offset)
            raw = inflate(file, start + size)[start:]
        else:
            raw = os.pread(file.fileno(), size, start)
    if len(raw) != size:
        raise FileProblemError("DECODE_FAILED")
    order = ">" if pixels.transfer_syntax == BIG_ENDIAN else "<"
    array = np.frombuffer(raw, dtype=f"{order}u{pixels.bits_allocated // 8}")
    return Words(array, pixels.bits_stored, signed=None)


def stored_values(
    words: Words, *, signed: bool, padding: tuple[int, int] | None
) -> tuple[Int[np.ndarray, " N"], bool]:
    """Stored values, and whether bits above BitsStored hold something else.

    A word that is padding when its whole container is read stays as it is: some
    scanners pad with a value that needs more bits than they declare.
    """
    array = words.array
    container = 8 * array.dtype.itemsize
    kind = "i" if signed else "u"
    whole = array.view(array.dtype.str.replace("u", kind))
    low, high = (-(1 << words.bits - 1), (1 << words.bits - 1) - 1)
    if not signed:
        low, high = 0, (1 << words.bits) - 1
    if words.bits >= container or (whole.min() >= low and whole.max() <= high):
        return whole, False
    shift = container - words.bits
    values = (whole << shift) >> shift
    zero_above = (array >> words.bits) == 0
    odd = (values != whole) & ~zero_above if signed else ~zero_above
    if padding is not None:
        pad = (whole >= padding[0]) & (whole <= padding[1])
        values = np.where(pad, whole, values)
        odd &= ~pad
    return values, bool(odd.any())


def _rescale(
    values: Int[np.ndarray, " N"], task: PlaneTask, padding: tuple[int, int] | None
) -> tuple[Num[np.ndarray, " N"], Bool[np.ndarray, " N"] | None]:
    """HU with padding set to air, and where padding was; None where there is none."""
    low, high = int(values.min()), int(values.max())
    pad: Bool[np.ndarray, " N"] | None = None
    if padding is not None and padding[0] <= high and padding[1] >= low:
        pad = (values >= padding[0]) & (values <= padding[1])
        pad = pad if pad.any() else None
    slope, intercept = task.slope, task.intercept
    hu: Num[np.ndarray, " N"]
    if slope.is_integer() and intercept.is_integer():
        ends = sorted((low * slope + intercept, high * slope + intercept))
        bounds = (*ends, low, high, slope, intercept)
        small = min(bounds) >= -32768 and max(bounds) <= 32767
        dtype = np.int16 if small else np.int64
        hu = values.astype(dtype)
        if slope != 1.0:
            hu *= dtype(slope)
        if intercept != 0.0:
            hu += dtype(intercept)
    else:
        hu = values * slope + intercept
    if pad is not None:
        hu[pad] = AIR_HU
    return hu, pad


def _is_int16(hu: Num[np.ndarray, " N"], low: float, high: float) -> bool:
    return hu.dtype.kind == "i" and low >= -32768 and high <= 32767


def _write(target: int, data: memoryview, offset: int) -> None:
    view = data.cast("B")
    while view.nbytes:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
