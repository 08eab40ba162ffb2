"""Pictures, NIfTI and MetaImages say the same of a patient as its DICOM does."""

import csv

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from deploy.phantom.formats import (
    COLUMNS,
    metaimage,
    nifti_image,
    write_images,
    write_metaimage,
    write_nifti,
)
from deploy.phantom.hospital import scan, sized
from deploy.phantom.scanner import HOSPITALS


@pytest.fixture(scope="module")
def phantom():
    return scan(sized(HOSPITALS[0], "tiny"), 0, 3)[0]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    out = tmp_path_factory.mktemp("pictures")
    write_images(out, hospitals=HOSPITALS[:2], patients=2, seed=1)
    with (out / "manifest.csv").open() as file:
        return out, list(csv.DictReader(file))


def _grey(path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.mode == "L"
        return np.asarray(picture)


def _index_to_lps(index, affine_ras) -> np.ndarray:
    return (np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras @ (*index, 1.0))[:3]


def test_nifti_puts_every_voxel_where_the_volume_has_it(phantom):
    image, grid = nifti_image(phantom.volume), phantom.volume.grid
    d, h, w = 3, 20, 11
    place = _index_to_lps((w, h, d), image.affine)
    np.testing.assert_allclose(place, (grid.affine @ (d, h, w, 1.0))[:3], atol=1e-6)
    assert np.asanyarray(image.dataobj)[w, h, d] == phantom.volume.array[d, h, w]


def test_itk_puts_every_voxel_where_the_volume_has_it(phantom):
    image, grid = metaimage(phantom.volume), phantom.volume.grid
    d, h, w = 3, 20, 11
    place = image.TransformIndexToPhysicalPoint((w, h, d))
    np.testing.assert_allclose(place, (grid.affine @ (d, h, w, 1.0))[:3], atol=1e-6)
    assert image[w, h, d] == phantom.volume.array[d, h, w]


def test_metaimage_rows_point_at_bright_nodules(tmp_path):
    write_metaimage(tmp_path, patients=1, seed=2, size="small")
    with (tmp_path / "annotations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    for row in rows:
        image = SimpleITK.ReadImage(str(tmp_path / f"{row['seriesuid']}.mhd"))
        place = [float(row[f"coord{axis}"]) for axis in "XYZ"]
        w, h, d = image.TransformPhysicalPointToIndex(place)
        hu = SimpleITK.GetArrayFromImage(image)
        assert hu[d - 1 : d + 2, h - 1 : h + 2, w - 1 : w + 2].mean() > -700
    assert len(list(tmp_path.glob("*.raw"))) == 1


def test_nifti_labels_lie_on_their_image(tmp_path):
    write_nifti(tmp_path, patients=1, seed=2, size="tiny")
    (image,) = (nibabel.load(p) for p in (tmp_path / "images").iterdir())
    (label,) = (nibabel.load(p) for p in (tmp_path / "labels").iterdir())
    assert image.shape == label.shape
    np.testing.assert_array_equal(image.affine, label.affine)
    values = np.asanyarray(label.dataobj)
    assert set(np.unique(values)) == {0, 1}
    assert np.asanyarray(image.dataobj)[values == 1].mean() > -700


def test_the_manifest_has_the_columns_and_pictures_it_names(pictures):
    out, rows = pictures
    assert tuple(rows[0]) == COLUMNS
    assert {row["vendor"] for row in rows} == {"GE", "Siemens"}
    assert len({row["patient"] for row in rows}) == 4
    for row in rows:
        image, mask = (_grey(out / row[key]) for key in ("image", "mask"))
        assert image.shape == mask.shape == (96, 96)
        assert set(np.unique(mask)) == {0, 255}
    assert len(list((out / "images").iterdir())) == len(rows)


def test_central_pictures_agree_with_the_stated_diameter(pictures):
    out, rows = pictures
    central = [row for row in rows if row["is_central"] == "1"]
    assert len(central) >= 4
    for row in central:
        area = (_grey(out / row["mask"]) > 0).sum() * 0.7**2
        across = 2 * np.sqrt(area / np.pi)
        assert 0.6 < across / float(row["diameter_mm"]) < 1.3
        assert float(row["malignancy"]) != 3.0
        assert 2 <= int(row["n_raters"]) <= 4
