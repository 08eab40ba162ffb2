"""MetaImages: written by SimpleITK and read back, and nodules in world coordinates."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from client.intake.meta_file import load_metaimage
from client.intake.metaimage import read_metaimage
from client.intake.refusal import RefusedError
from client.intake.verdict import Code
from common.errors import IntakeError

UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1"
HEADER = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"


def image(turned: bool = False, kind: type = np.int16) -> SimpleITK.Image:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 400, (24, 40, 36)).astype(kind)
    made = SimpleITK.GetImageFromArray(array)
    made.SetSpacing((0.7, 0.8, 1.25))
    made.SetOrigin((-195.0, -180.5, -378.25))
    if turned:
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        made.SetDirection(turn.ravel().tolist())
    return made


def write(folder: Path, made: SimpleITK.Image, name: str, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    SimpleITK.WriteImage(made, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("kind", [np.int16, np.float32, np.uint8, np.int32])
@pytest.mark.parametrize("name", ["x.mhd", "x.mha"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_itk_wrote_lies_where_itk_says(
    tmp_path: Path, name: str, packed: bool, kind: type
) -> None:
    made = image(turned=True, kind=kind)
    volume = load_metaimage(write(tmp_path, made, name, packed))
    assert np.array_equal(volume.array, SimpleITK.GetArrayFromImage(made))
    assert volume.array.dtype == kind
    for d, h, w in ((0, 0, 0), (23, 0, 5), (3, 39, 0), (7, 11, 35)):
        want = made.TransformIndexToPhysicalPoint((w, h, d))
        assert np.allclose((volume.grid.affine @ [d, h, w, 1])[:3], want, atol=1e-4)


def test_nodules_lie_at_their_world_coordinates(tmp_path: Path) -> None:
    made = image(turned=True)
    write(tmp_path / "subset0", made, f"{UID}.mhd")
    x, y, z = made.TransformContinuousIndexToPhysicalPoint((18.2, 21.0, 12.4))
    row = f"{UID},{x},{y},{z},12.0\nanother,1,2,3,4\n"
    (tmp_path / "annotations.csv").write_text(HEADER + row)
    ((verdict, case),) = read_metaimage(tmp_path)
    assert case is not None
    assert (verdict.series, verdict.patient, verdict.files) == (UID, UID, 2)
    (segment,) = case.segments
    assert segment.name == "nodule"
    centre = np.argwhere(segment.mask).mean(axis=0)
    assert np.allclose(centre, (12.4, 21.0, 18.2), atol=0.15)
    mm3 = segment.mask.sum() * case.volume.grid.voxel_mm3
    assert mm3 == pytest.approx(np.pi / 6 * 12.0**3, rel=0.02)


def test_an_image_without_a_row_has_an_empty_nodule_segment(tmp_path: Path) -> None:
    write(tmp_path, image(), f"{UID}.mhd")
    (tmp_path / "annotations.csv").write_text(HEADER)
    ((verdict, case),) = read_metaimage(tmp_path)
    assert case is not None
    assert not case.segments[0].mask.any()
    assert [finding.code for finding in verdict.findings] == [Code.LABEL_EMPTY]


def test_without_a_table_the_label_is_missing(tmp_path: Path) -> None:
    write(tmp_path, image(), f"{UID}.mhd")
    ((verdict, case),) = read_metaimage(tmp_path)
    assert case is not None
    assert case.segments == ()
    assert [finding.code for finding in verdict.findings] == [Code.LABEL_MISSING]


def test_lungs_beside_the_nodules_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "subset0", image(), f"{UID}.mhd")
    lungs = SimpleITK.Cast(image() > 0, SimpleITK.sitkUInt8) * 3
    write(tmp_path / "seg-lungs-LUNA16", lungs, f"{UID}.mhd", packed=True)
    row = f"{UID},-180,-165,-360,6,p7\n"
    header = HEADER.replace("\n", ",patient\n")
    (tmp_path / "annotations.csv").write_text(header + row)
    ((_verdict, case),) = read_metaimage(tmp_path)
    assert case is not None
    assert case.patient == "p7"
    assert [segment.name for segment in case.segments] == ["nodule", "3"]
    want = SimpleITK.GetArrayFromImage(lungs) == 3
    assert np.array_equal(case.segments[1].mask, want)


def test_a_table_that_lacks_a_column_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, image(), f"{UID}.mhd")
    (tmp_path / "annotations.csv").write_text("seriesuid,x,y,z\n")
    with pytest.raises(IntakeError, match="coordX"):
        read_metaimage(tmp_path)


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("0,0,0,5", Code.LABEL_GRID_MISMATCH),
        ("-180,here,-360,5", Code.LABEL_UNREADABLE),
        ("-180,-165,-360,-5", Code.LABEL_VALUE),
    ],
)
def test_a_row_that_can_not_be_right_refuses_its_image(
    tmp_path: Path, row: str, code: Code
) -> None:
    write(tmp_path, image(), f"{UID}.mhd")
    (tmp_path / "annotations.csv").write_text(HEADER + f"{UID},{row}\n")
    ((verdict, case),) = read_metaimage(tmp_path)
    assert case is None
    assert [finding.code for finding in verdict.findings] == [code]


# Headers that can't be trusted -------------------------------------------------------


def changed(tmp_path: Path, **fields: str) -> Path:
    path = write(tmp_path, image(), "x.mhd")
    lines = path.read_text().splitlines()
    kept = [line for line in lines if line.split(" = ")[0] not in fields]
    data = [f"{key} = {value}" for key, value in fields.items()]
    if "ElementDataFile" in fields:
        kept = [*kept, *data]
    else:
        kept = [*kept[:-1], *data, kept[-1]]
    path.write_text("\n".join(kept) + "\n")
    return path


def code_of(path: Path) -> Code:
    with pytest.raises(RefusedError) as refusal:
        load_metaimage(path)
    return refusal.value.finding.code


def test_data_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    write(tmp_path, image(), "x.mhd")
    for name in ("../x.raw", str(tmp_path / "x.raw"), "LIST", "absent.raw"):
        want = Code.UNSAFE_LINK if "/" in name else Code.UNREADABLE
        assert code_of(changed(inner, ElementDataFile=name)) is want
    (inner / "link.raw").symlink_to(tmp_path / "x.raw")
    path = changed(inner, ElementDataFile="link.raw")
    assert code_of(path) is Code.UNSAFE_LINK


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"DimSize": "36 40 25"}, Code.UNREADABLE),
        ({"DimSize": "36 40 23"}, Code.UNREADABLE),
        ({"DimSize": "60000 60000 60000"}, Code.DECODE_LIMIT),
        ({"DimSize": "36 40"}, Code.PIXEL_FORMAT),
        ({"DimSize": "36 40 -24"}, Code.PIXEL_FORMAT),
        ({"ElementType": "MET_STRING"}, Code.PIXEL_FORMAT),
        ({"ElementNumberOfChannels": "3"}, Code.PIXEL_FORMAT),
        ({"TransformMatrix": "1 0 0 0 1 0 0 1 1"}, Code.BAD_ORIENTATION),
        ({"TransformMatrix": "1 0 0"}, Code.UNREADABLE),
        ({"ElementSpacing": "0.7 0 1.25"}, Code.UNREADABLE),
        ({"Offset": "1 2 nan"}, Code.UNREADABLE),
    ],
)
def test_a_header_that_can_not_be_right_is_refused(
    tmp_path: Path, fields: dict[str, str], code: Code
) -> None:
    assert code_of(changed(tmp_path, **fields)) is code


def test_no_spacing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, image(), "x.mhd")
    lines = path.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("ElementSpacing")]
    path.write_text("\n".join(kept) + "\n")
    assert code_of(path) is Code.NO_PIXEL_SPACING


def test_a_bomb_unpacks_no_further_than_its_header_says(tmp_path: Path) -> None:
    path = changed(tmp_path, CompressedData="True")
    (tmp_path / "x.raw").write_bytes(zlib.compress(b"\0" * (64 << 20)))
    assert code_of(path) is Code.UNREADABLE


def test_big_endian_values_are_read(tmp_path: Path) -> None:
    path = changed(tmp_path, BinaryDataByteOrderMSB="True")
    raw = tmp_path / "x.raw"
    swapped = np.frombuffer(raw.read_bytes(), "<i2").astype(">i2")
    raw.write_bytes(swapped.tobytes())
    want = SimpleITK.GetArrayFromImage(image())
    assert np.array_equal(load_metaimage(path).array, want)
