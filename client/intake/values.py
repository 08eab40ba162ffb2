"""Whether the stored values of a series are HU, before and after decoding.

A CT value means something only through RescaleSlope and RescaleIntercept, so nothing is
guessed there. What can be shown to be right from the values themselves (padding, the
sign of a JPEG 2000 stream) is put right with a note; what can't is refused.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from client.intake.decode import AIR_HU, HIGHEST_HU, LOWEST_HU, PlaneFacts
from client.intake.geometry import Planes
from client.intake.header import PixelFormat
from client.intake.pool import DecodeLimits
from client.intake.verdict import Code, Finding, note, refusal

BELOW_SHARE = 0.005
"""Noise and ringing at metal go below -1100 HU; more than this share is no noise."""
ABOVE_SHARE = 0.01
"""Metal and dense contrast go above 4000 HU; more than this share is no metal."""
PADDING_SHARE = 0.95
"""Of the voxels below -1100 HU, how many must share one value to be padding."""
TISSUE_HU = -500
"""Padding above this could be tissue; below it is air whichever way it is read."""
_ALWAYS_LOSSY = (
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.81",
)


def check_pixels(planes: Planes, limits: DecodeLimits) -> tuple[Finding, ...]:
    """Pixel format, rescale and size, from the headers alone."""
    formats = [plane.pixels for plane in planes]
    known = [pixels for pixels in formats if pixels is not None]
    if len(known) < len(formats) or any(not _is_readable(p) for p in known):
        return (
            refusal(
                Code.PIXEL_FORMAT,
                "pixel data are absent or not one grey channel of 8 or 16 bits with "
                "HighBit = BitsStored - 1; export the original images",
            ),
        )
    frames = {plane.path: plane.pixels.frames for plane in planes if plane.pixels}
    if sum(frames.values()) > len(planes):
        return (
            refusal(
                Code.ENHANCED_MULTIFRAME,
                "a multi-frame file does not say where each frame lies, expected "
                "functional groups; export single-frame CT images",
            ),
        )
    found = list(_check_rescale(planes))
    first = known[0]
    plane_bytes = first.rows * first.columns * 4
    if plane_bytes > limits.plane_bytes * 2 or (
        plane_bytes * len(planes) > limits.volume_bytes
    ):
        found.append(
            refusal(
                Code.DECODE_LIMIT,
                f"{len(planes)} slices of {first.rows} x {first.columns} take more "
                f"than {limits.volume_bytes} bytes as a volume, or one of them more "
                f"than {limits.plane_bytes} bytes as stored, expected less; "
                "reconstruct fewer or smaller slices",
            )
        )
    declared = any(plane.lossy for plane in planes)
    if declared or any(p.transfer_syntax in _ALWAYS_LOSSY for p in known):
        found.append(
            note(Code.LOSSY, "compressed with loss; small differences in HU are likely")
        )
    return tuple(found)


def is_integral(planes: Planes) -> bool:
    """Whether all HU are whole numbers by their rescale."""
    return all(
        float(value).is_integer()
        for plane in planes
        for value in (plane.slope, plane.intercept)
        if value is not None
    )


def check_facts(facts: Sequence[PlaneFacts], voxels: int) -> tuple[Finding, ...]:
    """What the decoded values say: bits, sign, padding and range of HU."""
    found: list[Finding] = []
    if any(plane.stray_bits for plane in facts):
        found.append(
            refusal(
                Code.PIXEL_FORMAT,
                "bits above BitsStored are in use, expected zero or the sign; "
                "export the original images",
            )
        )
    padded = sum(plane.padded for plane in facts)
    padding = [plane.padding_hu for plane in facts if plane.padding_hu is not None]
    if padded and max(padding, default=-np.inf) > TISSUE_HU:
        found.append(
            refusal(
                Code.PIXEL_PADDING,
                f"{padded} voxels equal PixelPaddingValue, which here means "
                f"{max(padding):.0f} HU, expected a value below air; "
                "tissue and padding can't be told apart",
            )
        )
    elif padded:
        found.append(
            note(Code.PIXEL_PADDING, f"{padded} padding voxels were set to {AIR_HU} HU")
        )
    return (*found, *_check_range(facts, voxels))


def plausible(facts: Sequence[PlaneFacts], voxels: int) -> bool:
    """Whether the values may be HU of a body."""
    return not any(finding.refuses for finding in _check_range(facts, voxels))


def undeclared_padding(
    array: Num[np.ndarray, "D H W"], facts: Sequence[PlaneFacts]
) -> float | None:
    """The one value that fills the volume outside the field of view, if there is one.

    Many scanners fill the corners with a value that no tag declares. It must be the
    lowest value, lie below air, and make up nearly all voxels below air.
    """
    below = sum(plane.below for plane in facts)
    if below <= BELOW_SHARE * array.size:
        return None
    low = min(plane.low for plane in facts)
    same = int((array == low).sum())
    return low if same >= PADDING_SHARE * below else None


def _check_range(facts: Sequence[PlaneFacts], voxels: int) -> list[Finding]:
    below = sum(plane.below for plane in facts)
    above = sum(plane.above for plane in facts)
    low = min(plane.low for plane in facts)
    high = max(plane.high for plane in facts)
    span = f"values run from {low:.0f} to {high:.0f}"
    if below > BELOW_SHARE * voxels or above > ABOVE_SHARE * voxels:
        sentence = (
            f"{span} HU with {below} voxels below {LOWEST_HU} and {above} above "
            f"{HIGHEST_HU}, expected air and soft tissue between; check the rescale"
        )
        return [refusal(Code.HU_RANGE, sentence)]
    if high < TISSUE_HU:
        sentence = f"{span} HU: nothing but air, expected a body; check the rescale"
        return [refusal(Code.HU_RANGE, sentence)]
    if low >= 0:
        sentence = f"{span}, expected air or fat below 0 HU; check the rescale"
        return [note(Code.HU_RANGE, sentence)]
    return []


def _check_rescale(planes: Planes) -> list[Finding]:
    if any(plane.slope is None or plane.intercept is None for plane in planes):
        return [
            refusal(
                Code.RESCALE_MISSING,
                "RescaleSlope or RescaleIntercept is absent, expected both; "
                "stored values can't be turned into HU",
            )
        ]
    slopes = np.array([plane.slope for plane in planes], dtype=np.float64)
    shifts = np.array([plane.intercept for plane in planes], dtype=np.float64)
    if not np.isfinite([slopes, shifts]).all() or slopes.min() <= 0:
        return [
            refusal(
                Code.RESCALE_INVALID,
                "RescaleSlope or RescaleIntercept is not finite, or the slope is not "
                "positive; stored values can't be turned into HU",
            )
        ]
    units = {plane.rescale_type for plane in planes} - {None, "HU"}
    if not units:
        return []
    # An original CT image is in HU by definition of the CT Image IOD (PS3.3 C.8.2.1);
    # a derived one (perfusion, material density) may be in anything.
    original = all(plane.image_type[:1] == ("ORIGINAL",) for plane in planes)
    sentence = "RescaleType is not HU"
    if units == {"US"} and original:
        sentence += " but unspecified; the images are original, so HU were assumed"
        return [note(Code.RESCALE_INVALID, sentence)]
    sentence += ", expected HU; use a series that is not a derived map"
    return [refusal(Code.RESCALE_INVALID, sentence)]


def _is_readable(pixels: PixelFormat) -> bool:
    return (
        pixels.samples == 1
        and pixels.photometric in ("MONOCHROME1", "MONOCHROME2")
        and pixels.bits_allocated in (8, 16)
        and 1 <= pixels.bits_stored <= pixels.bits_allocated
        and pixels.high_bit == pixels.bits_stored - 1
    )
