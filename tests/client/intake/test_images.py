"""Picture folders: the real collection by vendor, and manifests that can't be right."""

import csv
import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.intake.images import read_images
from client.intake.verdict import Code, Verdict
from common.errors import IntakeError
from tests import real_ct


@pytest.fixture(scope="module")
def lidc() -> Path:
    return real_ct.data("lidc_nodules/lidc_nodules.zip")


def test_the_collection_has_its_patients_slices_and_vendors(lidc: Path) -> None:
    slices: Counter[str] = Counter()
    patients, nodules, marked = set(), 0, 0
    for verdict, case in read_images(lidc):
        assert verdict.verdict is Verdict.ACCEPT
        assert case is not None
        assert case.volume.array.dtype == np.uint8
        assert case.volume.array.shape[1:] == (96, 96)
        assert (case.has_hu, case.has_spacing) == (False, False)
        slices[case.attributes["vendor"]] += case.volume.array.shape[0]
        patients.add(case.patient)
        nodules += 1
        marked += bool(case.segments[0].mask.any(axis=(1, 2)).all())
    assert slices == {"GE": 2197, "Siemens": 927, "Philips": 418, "Toshiba": 269}
    assert sum(slices.values()) == 3811
    assert len(patients) == 589
    assert marked == nodules == 1362


def test_where_picks_one_vendor_and_slices_are_in_order(lidc: Path) -> None:
    with zipfile.ZipFile(lidc) as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("manifest.csv"))))
        toshiba = [row for row in rows if row["vendor"] == "Toshiba"]
        cases = [case for _, case in read_images(lidc, where={"vendor": "Toshiba"})]
        assert sum(case.volume.array.shape[0] for case in cases if case) == 269
        case = cases[0]
        assert case is not None
        own = [
            row
            for row in toshiba
            if row["patient"] == case.patient
            and row["nodule"] == case.attributes["nodule"]
        ]
        own.sort(key=lambda row: int(row["slice"]))
        for d, row in enumerate(own):
            grey = np.asarray(Image.open(archive.open(row["image"])))
            drawn = np.asarray(Image.open(archive.open(row["mask"])))
            assert np.array_equal(case.volume.array[d], grey)
            assert np.array_equal(case.segments[0].mask[d], drawn == 255)
    constant = {"nodule", "vendor", "scanner_model", "n_raters", "diameter_mm"}
    assert constant <= set(case.attributes)
    assert not {"image", "mask", "slice", "patient"} & set(case.attributes)


# Small folders -----------------------------------------------------------------------


def picture(value: int, size: tuple[int, int] = (8, 6), mode: str = "L") -> bytes:
    array = np.full((size[1], size[0]), value, np.uint8)
    array[0, 0] = 0
    out = io.BytesIO()
    Image.fromarray(array).convert(mode).save(out, "PNG")
    return out.getvalue()


def folder(root: Path, rows: list[dict[str, Any]], **files: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / f"{name}.png").write_bytes(content)
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def row(number: int, **more: Any) -> dict[str, Any]:
    return {
        "image": f"i{number}.png",
        "mask": f"m{number}.png",
        "patient": "p",
        "nodule": "0",
        "slice": number,
        **more,
    }


def test_rows_out_of_order_are_stacked_by_slice_number(tmp_path: Path) -> None:
    rows = [row(10), row(9), row(30, site="b")]
    files = {f"i{n}": picture(n) for n in (9, 10, 30)}
    files |= {f"m{n}": picture(255) for n in (9, 10, 30)}
    rows = [{"site": "a", **r} for r in rows]
    root = folder(tmp_path, rows, **files)
    ((_, case),) = read_images(root)
    assert case is not None
    assert case.volume.array[:, 1, 1].tolist() == [9, 10, 30]
    assert "site" not in case.attributes  # it differs inside the case
    assert case.volume.grid.spacing_mm == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("place", ["IMG_9", "", "nan"])
def test_a_slice_without_a_number_refuses_its_case(tmp_path: Path, place: str) -> None:
    rows = [row(10), row(9, slice=place), row(30, slice=place, nodule="1")]
    files = {f"{kind}{n}": picture(255) for kind in "im" for n in (9, 10, 30)}
    (bad, nothing), (_, alone) = read_images(folder(tmp_path, rows, **files))
    assert nothing is None
    assert [finding.code for finding in bad.findings] == [Code.UNREADABLE]
    assert alone is not None  # one picture has nothing to be put in order


def test_a_manifest_of_images_alone_gives_a_case_a_row(tmp_path: Path) -> None:
    rows = [{"image": "i1.png", "kind": "x"}, {"image": "i2.png", "kind": "y"}]
    root = folder(tmp_path, rows, i1=picture(3), i2=picture(4))
    found = list(read_images(root))
    assert [case.attributes["kind"] for _, case in found if case] == ["x", "y"]
    assert len({case.patient for _, case in found if case}) == 2
    codes = [[finding.code for finding in verdict.findings] for verdict, _ in found]
    assert codes == [[Code.LABEL_MISSING], [Code.LABEL_MISSING]]


def test_a_zip_gives_what_its_folder_gives(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", [row(1)], i1=picture(3), m1=picture(255))
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in root.iterdir():
            archive.write(path, path.name)
    ((verdict_a, a),) = read_images(root)
    ((verdict_b, b),) = read_images(packed)
    assert a is not None
    assert b is not None
    assert a.digest == b.digest
    assert verdict_a.series == verdict_b.series


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"i1": picture(3)}, Code.UNREADABLE),  # the mask is absent
        ({"i1": picture(3), "m1": picture(255)[:40]}, Code.UNREADABLE),
        ({"i1": picture(3), "m1": picture(255, (8, 7))}, Code.LABEL_GRID_MISMATCH),
        ({"i1": picture(3, mode="RGB"), "m1": picture(255)}, Code.PIXEL_FORMAT),
        ({"i1": picture(3, (4097, 4097)), "m1": picture(255)}, Code.DECODE_LIMIT),
        ({"i1": b"GIF89a", "m1": picture(255)}, Code.UNREADABLE),
    ],
)
def test_a_bad_picture_refuses_its_case_alone(
    tmp_path: Path, files: dict[str, bytes], code: Code
) -> None:
    good = {"i2": picture(5), "m2": picture(255)}
    root = folder(tmp_path, [row(1), row(2, nodule="1")], **files, **good)
    (bad, nothing), (fine, case) = read_images(root)
    assert nothing is None
    assert [finding.code for finding in bad.findings] == [code]
    assert case is not None
    assert fine.verdict is Verdict.ACCEPT


def test_a_mask_of_greys_and_a_half_drawn_case_are_refused(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    files = {"i1": picture(3), "i2": picture(4), "m1": out.getvalue()}
    root = folder(tmp_path, [row(1), row(2, nodule="1", mask="")], **files)
    (first, _), (second, case) = read_images(root)
    assert first.findings[0].code is Code.LABEL_VALUE
    assert case is not None
    assert second.findings[0].code is Code.LABEL_MISSING
    root = folder(tmp_path, [row(1, mask="i1.png"), row(2, mask="")], **files)
    ((half, case),) = read_images(root)
    assert case is None
    assert half.findings[0].code is Code.LABEL_MISSING


def test_pictures_of_two_sizes_are_no_stack(tmp_path: Path) -> None:
    files = {"i1": picture(3), "i2": picture(4, (9, 9))}
    files |= {"m1": picture(255), "m2": picture(255, (9, 9))}
    ((verdict, case),) = read_images(folder(tmp_path, [row(1), row(2)], **files))
    assert case is None
    assert verdict.findings[0].code is Code.MIXED_MATRIX


def test_the_manifest_can_not_name_a_file_outside(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(9))
    rows = [row(1, image="../secret.png"), row(2, image="link.png", nodule="1")]
    root = folder(tmp_path / "in", rows, m1=picture(255), m2=picture(255))
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    for verdict, case in read_images(root):
        assert case is None
        assert verdict.findings[0].code is Code.UNSAFE_LINK
    packed = tmp_path / "in.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(root / "manifest.csv", "manifest.csv")
        archive.writestr("m1.png", picture(255))
    assert all(case is None for _, case in read_images(packed))


def test_a_zip_bomb_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "a", [row(1)])
    packed = tmp_path / "a.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(root / "manifest.csv", "manifest.csv")
        archive.writestr("i1.png", b"\0" * (8 << 20))
    monkeypatch.setattr("client.intake.images.PICTURE_BYTES_LIMIT", 1 << 20)
    ((verdict, case),) = read_images(packed)
    assert case is None
    assert verdict.findings[0].code is Code.DECODE_LIMIT


def test_a_wrong_question_is_an_error_at_once(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", [row(1)], i1=picture(3), m1=picture(255))
    with pytest.raises(IntakeError, match="no column 'vendor'"):
        read_images(root, where={"vendor": "GE"})
    with pytest.raises(IntakeError, match="no row with patient = 'q'"):
        read_images(root, where={"patient": "q"})
    (root / "manifest.csv").unlink()
    with pytest.raises(IntakeError, match="manifest"):
        read_images(root)
    with pytest.raises(IntakeError, match="folder or a zip"):
        read_images(tmp_path / "absent.zip")
