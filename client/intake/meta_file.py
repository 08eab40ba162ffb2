"""One MetaImage (.mhd with .raw or .zraw, or .mha) to a volume, checked before reading.

The header is a few lines of text; it is parsed here because it names a second file and
a size, and neither may be trusted: the data must lie beside the header, must be as long
as the header says, and may not unpack to more. Positions are LPS. Row i of
TransformMatrix is the direction of axis i, as ITK reads it; axes are x y z with x
fastest, so D H W is the file's z y x, without a flip.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Num

from client.intake.nifti_file import VOXELS_LIMIT
from client.intake.refusal import RefusedError, reading
from client.intake.verdict import Code
from common.volume import Grid, Volume

SUFFIXES = (".mhd", ".mha")
HEADER_LIMIT = 65536
"""Most bytes of a header; LUNA16's have under 500."""
ELEMENT_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def load_metaimage(path: Path) -> Volume:
    """A MetaImage's values in their own type, on its own grid.

    Raises:
        RefusedError: Unreadable, not 3-D, too large, or data that is not beside it.
    """
    with reading("the MetaImage"):
        fields, header_bytes = _header(path)
        sizes = _sizes(fields)
        dtype = _dtype(fields)
        content = _content(
            path, fields, header_bytes, int(np.prod(sizes)) * dtype.itemsize
        )
        shape = (sizes[2], sizes[1], sizes[0])
        array = np.frombuffer(content, dtype).reshape(shape)
        return Volume(_native(array), Grid(shape, _affine(fields)))


def _header(path: Path) -> tuple[dict[str, str], int]:
    """Keys and values up to ElementDataFile, which ends a header, and its length."""
    with path.open("rb") as file:
        start = file.read(HEADER_LIMIT)
    fields: dict[str, str] = {}
    length = 0
    for line in start.splitlines(keepends=True):
        length += len(line)
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals:
            raise ValueError("a header line without =")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":
            return fields, length
    raise ValueError("no ElementDataFile")


def _sizes(fields: Mapping[str, str]) -> tuple[int, int, int]:
    """Voxels along x, y, z."""
    sizes = [int(v) for v in fields["DimSize"].split()]
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    if len(sizes) != 3 or min(sizes) < 1 or channels != 1:
        raise RefusedError(
            Code.PIXEL_FORMAT,
            f"the MetaImage has size {sizes} with {channels} channels, expected one "
            f"3-D volume",
        )
    if int(np.prod(sizes, dtype=np.int64)) > VOXELS_LIMIT:
        raise RefusedError(
            Code.DECODE_LIMIT,
            f"the MetaImage has size {sizes}, expected at most {VOXELS_LIMIT} voxels",
        )
    return sizes[0], sizes[1], sizes[2]


def _dtype(fields: Mapping[str, str]) -> np.dtype:
    name = fields["ElementType"]
    if name not in ELEMENT_TYPES:
        raise RefusedError(
            Code.PIXEL_FORMAT,
            f"the MetaImage holds another type of value, expected one of "
            f"{', '.join(ELEMENT_TYPES)}",
        )
    msb = _flag(fields, "BinaryDataByteOrderMSB") or _flag(
        fields, "ElementByteOrderMSB"
    )
    return np.dtype((">" if msb else "<") + ELEMENT_TYPES[name])


def _flag(fields: Mapping[str, str], key: str) -> bool:
    return fields.get(key, "False").lower() in ("true", "1")


def _content(
    path: Path, fields: Mapping[str, str], header_bytes: int, size_bytes: int
) -> bytes:
    """Exactly the voxels' bytes, inflated where the header says so."""
    name = fields["ElementDataFile"]
    local = name.upper() == "LOCAL"
    data = path if local else path.parent / name
    if not local and (Path(name).name != name or data.is_symlink()):
        raise RefusedError(
            Code.UNSAFE_LINK,
            "the MetaImage's data file is a link or lies in another folder, expected a "
            "plain file beside the header",
        )
    if not data.is_file():
        raise RefusedError(
            Code.UNREADABLE, "the MetaImage's data file is absent; copy it beside it"
        )
    with data.open("rb") as file:
        skip = header_bytes if local else max(0, int(fields.get("HeaderSize", "0")))
        file.seek(skip)
        if _flag(fields, "CompressedData"):
            content = zlib.decompressobj().decompress(file.read(), size_bytes + 1)
        else:
            content = file.read(size_bytes + 1)
    if len(content) != size_bytes:
        at_least = "at least " if len(content) > size_bytes else ""
        raise RefusedError(
            Code.UNREADABLE,
            f"the MetaImage has {at_least}{len(content)} bytes of voxels, expected "
            f"{size_bytes}; it is cut off or its header is of another file",
        )
    return content


def _native(array: Num[np.ndarray, "D H W"]) -> Num[np.ndarray, "D H W"]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _affine(fields: Mapping[str, str]) -> Float64[np.ndarray, "4 4"]:
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), 3)
    offset = _numbers(fields, ("Offset", "Position", "Origin"), 3)
    keys = ("TransformMatrix", "Rotation", "Orientation")
    directions = np.eye(3)
    if any(key in fields for key in keys):
        directions = _numbers(fields, keys, 9).reshape(3, 3)
    if not np.allclose(directions @ directions.T, np.eye(3), atol=1e-3):
        raise RefusedError(
            Code.BAD_ORIENTATION,
            "the MetaImage's TransformMatrix is no rotation, expected three unit axes "
            "at right angles",
        )
    affine = np.eye(4)
    affine[:3, :3] = (directions.T * spacing)[:, ::-1]
    affine[:3, 3] = offset
    return affine


def _numbers(
    fields: Mapping[str, str], keys: tuple[str, ...], count: int
) -> Float64[np.ndarray, " N"]:
    """The numbers of the first of some keys that mean the same."""
    for key in keys:
        if key in fields:
            values = np.array(fields[key].split(), dtype=np.float64)
            if values.shape != (count,):
                raise ValueError(f"{key} does not have {count} numbers")
            return values
    raise RefusedError(
        Code.NO_PIXEL_SPACING,
        f"the MetaImage has no {keys[0]}, expected {count} numbers",
    )
