"""The stored frames of a SEG, one at a time, with codecs kept in another process.

Uncompressed frames are bytes that numpy looks at. Compressed ones go through codecs,
which are C code that a hostile file could break, so they are decoded by intake's
decoder processes, a few frames at a time, with their limits on time and memory.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Num
from pydicom import Dataset
from pydicom.pixels import iter_pixels

from client.intake.decode import PlaneTask
from client.intake.header import PixelFormat
from client.intake.pool import DecodeLimits, DecoderPool, Lost, shared_memory
from client.intake.verdict import Code
from client.labels.refusal import LabelRefusedError

FRAME_BYTES_LIMIT = 64 << 20
"""Largest frame; a frame is a slice of the image, or a part of one."""
_BATCH = 16


def frames(path: Path, dataset: Dataset) -> Iterator[Num[np.ndarray, "R C"]]:
    """Stored values of each frame, in the file's order.

    Args:
        path: The file that the data set was read from.
        dataset: With pixel data, 1 sample a pixel.
    """
    if int(dataset.Rows) * int(dataset.Columns) * 2 > FRAME_BYTES_LIMIT:
        raise LabelRefusedError(
            Code.LABEL_UNREADABLE,
            f"a label frame has {dataset.Rows}x{dataset.Columns} pixels, expected at "
            f"most {FRAME_BYTES_LIMIT} bytes",
        )
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return _decoded(path, dataset)
    if dataset.BitsAllocated == 1:
        return _bits(dataset)
    return iter_pixels(dataset, raw=True)


def _bits(dataset: Dataset) -> Iterator[Num[np.ndarray, "R C"]]:
    """Frames of packed bits, which follow one another without padding (PS3.5 8.1.1).

    So a frame may begin within a byte, where pydicom 3.0.2 loses its last bits.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    size = rows * columns
    for start in range(0, int(dataset.NumberOfFrames) * size, size):
        first = start // 8
        window = packed[first : (start + size + 7) // 8]
        bits = np.unpackbits(window, bitorder="little")[start - 8 * first :]
        yield bits[:size].reshape(rows, columns)


def _decoded(path: Path, dataset: Dataset) -> Iterator[Num[np.ndarray, "R C"]]:
    """Frames decoded by other processes into shared memory, a batch at a time."""
    pixels = _pixel_format(path, dataset)
    frame_bytes = 4 * pixels.rows * pixels.columns
    with DecoderPool(DecodeLimits()) as pool:
        for first in range(0, pixels.frames, _BATCH):
            batch = range(first, min(first + _BATCH, pixels.frames))
            tasks = [
                PlaneTask(path, frame, pixels, 1.0, 0.0, "<f4", slot * frame_bytes)
                for slot, frame in enumerate(batch)
            ]
            target = shared_memory(frame_bytes * len(tasks))
            try:
                _run(pool, tasks, target)
                memory = mmap.mmap(target, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(target)
            shape = (len(tasks), pixels.rows, pixels.columns)
            # The processes write float32, which holds every 16-bit number.
            yield from np.frombuffer(memory, "<f4").reshape(shape).astype(np.uint16)


def _run(pool: DecoderPool, tasks: list[PlaneTask], target: int) -> None:
    messages = [{"job": "plane", "plane": asdict(task)} for task in tasks]
    for _, reply in pool.run(messages, target):
        if isinstance(reply, Lost) or "problem" in reply:
            raise LabelRefusedError(
                Code.LABEL_UNREADABLE,
                "a compressed frame of the label can't be decoded, expected a whole "
                "one; store the label uncompressed",
            )


def _pixel_format(path: Path, dataset: Dataset) -> PixelFormat:
    return PixelFormat(
        transfer_syntax=str(dataset.file_meta.TransferSyntaxUID),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        frames=int(dataset.NumberOfFrames),
        samples=int(dataset.SamplesPerPixel),
        photometric=str(dataset.PhotometricInterpretation),
        bits_allocated=int(dataset.BitsAllocated),
        bits_stored=int(dataset.BitsStored),
        high_bit=int(dataset.HighBit),
        signed=False,
        padding=None,
        dataset_offset=0,
        data_offset=_value_offset(dataset),
        data_bytes=None,
    )


def _value_offset(dataset: Dataset) -> int:
    """Where PixelData's value begins in the file."""
    element = dataset.get_item("PixelData")
    offset = getattr(element, "value_tell", None) or getattr(element, "file_tell", None)
    if not offset:
        raise ValueError("no pixel data in the file")
    return int(offset)
