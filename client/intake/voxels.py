"""The voxels of one series: decoded in other processes, judged here.

All planes of a series are decoded at once into shared memory. A volume is kept as int16
where that holds every value, which is nearly always and half of float32.
"""

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Num
from pydantic import TypeAdapter, ValidationError

from client.intake.decode import AIR_HU, PlaneFacts, PlaneTask, plane_digest
from client.intake.geometry import Planes
from client.intake.pool import DecoderPool, Lost, shared_memory
from client.intake.values import (
    check_facts,
    is_integral,
    plausible,
    undeclared_padding,
)
from client.intake.verdict import Code, Finding, note, refusal
from common.volume import Grid

_FACTS = TypeAdapter(PlaneFacts)


@dataclass(frozen=True)
class Voxels:
    """A decoded volume with the facts of each plane along D."""

    array: Num[np.ndarray, "D H W"]
    facts: tuple[PlaneFacts, ...]
    note: Finding | None = None


def decode_series(planes: Planes, grid: Grid, pool: DecoderPool) -> Voxels | Finding:
    """All planes as HU, or the finding that refuses the series."""
    voxels = _decode_exactly(planes, grid, pool)
    if isinstance(voxels, Finding) or not any(p.contradicted for p in voxels.facts):
        return voxels
    # The JPEG 2000 stream and PixelRepresentation disagree on the sign, and it matters.
    # One reading must give HU and the other must not, or nothing is proven.
    other = _decode_exactly(planes, grid, pool, codestream_sign=True)
    if isinstance(other, Finding):
        return other
    by_tag = plausible(voxels.facts, voxels.array.size)
    by_stream = plausible(other.facts, other.array.size)
    if by_tag == by_stream:
        sentence = (
            "PixelRepresentation contradicts the JPEG 2000 stream, and the values"
        )
        sentence += " do not show which is right; export the original images"
        return refusal(Code.PIXEL_REPRESENTATION, sentence)
    right = voxels if by_tag else other
    sentence = "PixelRepresentation contradicts the JPEG 2000 stream; "
    sentence += "the attribute" if by_tag else "the stream"
    return replace(
        right,
        note=note(Code.PIXEL_REPRESENTATION, f"{sentence} alone gives HU and was used"),
    )


def _decode_exactly(
    planes: Planes, grid: Grid, pool: DecoderPool, *, codestream_sign: bool = False
) -> Voxels | Finding:
    """As int16 where that holds every value, else as float32."""
    sign = codestream_sign
    if is_integral(planes):
        voxels = _decode_as(planes, grid, pool, "<i2", codestream_sign=sign)
        if isinstance(voxels, Finding) or all(p.fits for p in voxels.facts):
            return voxels
    return _decode_as(planes, grid, pool, "<f4", codestream_sign=sign)


def _decode_as(
    planes: Planes,
    grid: Grid,
    pool: DecoderPool,
    dtype: str,
    *,
    codestream_sign: bool,
) -> Voxels | Finding:
    plane_bytes = grid.shape[1] * grid.shape[2] * np.dtype(dtype).itemsize
    tasks = []
    for number, plane in enumerate(planes):
        assert plane.pixels is not None
        assert plane.slope is not None
        assert plane.intercept is not None
        task = PlaneTask(
            path=plane.path,
            frame=plane.frame,
            pixels=plane.pixels,
            slope=plane.slope,
            intercept=plane.intercept,
            dtype=dtype,
            target_offset=number * plane_bytes,
            codestream_sign=codestream_sign,
        )
        tasks.append(
            {"job": "plane", "plane": {**vars(task), "pixels": vars(plane.pixels)}}
        )
    target = shared_memory(plane_bytes * len(planes))
    try:
        facts: dict[int, PlaneFacts] = {}
        for index, reply in pool.run(tasks, target):
            try:
                if isinstance(reply, Lost) or "problem" in reply:
                    return _decode_finding(reply)
                facts[index] = _FACTS.validate_python(reply)
            except (ValidationError, ValueError):
                return _decode_finding(Lost(late=False))
        memory = mmap.mmap(target, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(target)
    array = np.frombuffer(memory, dtype=dtype).reshape(grid.shape)
    return Voxels(array, tuple(facts[i] for i in range(len(planes))))


def _decode_finding(reply: Lost | dict[str, object]) -> Finding:
    if isinstance(reply, Lost):
        code = Code.DECODE_LIMIT if reply.late else Code.DECODE_FAILED
    else:
        code = Code(str(reply["problem"]))
    sentences = {
        Code.DECODE_LIMIT: "decoding a slice ran out of time or memory",
        Code.DECODE_FAILED: "the pixel data of a slice can't be decoded",
        Code.PIXEL_FORMAT: "the pixel data of a slice contradict Rows, Columns or bits",
    }
    sentence = sentences.get(code, "a slice can't be read any more")
    return refusal(code, f"{sentence}, expected a whole CT image; export it again")


def judge_voxels(voxels: Voxels) -> tuple[Voxels, list[Finding]]:
    """Findings on the values, after padding that no tag declares became air."""
    padding = undeclared_padding(voxels.array, voxels.facts)
    found = [] if voxels.note is None else [voxels.note]
    if padding is not None:
        same = voxels.array == padding
        array = np.where(same, voxels.array.dtype.type(AIR_HU), voxels.array)
        sentence = f"{int(same.sum())} voxels outside the field of view held "
        sentence += f"{padding:.0f} HU, which no tag declares; set to {AIR_HU} HU"
        found.append(note(Code.PIXEL_PADDING, sentence))
        voxels = Voxels(array, _recounted(array, same, voxels.facts))
    voxels.array.setflags(write=False)
    return voxels, [*found, *check_facts(voxels.facts, voxels.array.size)]


def _recounted(
    array: Num[np.ndarray, "D H W"],
    changed: Num[np.ndarray, "D H W"],
    facts: Sequence[PlaneFacts],
) -> tuple[PlaneFacts, ...]:
    return tuple(
        replace(
            fact,
            low=float(plane.min()),
            high=float(plane.max()),
            below=fact.below - int(gone.sum()),
            digest=plane_digest(plane).hex(),
        )
        for plane, gone, fact in zip(array, changed, facts, strict=True)
    )
