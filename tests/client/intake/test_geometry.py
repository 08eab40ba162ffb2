from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.intake.geometry import check_spacing, series_grid, sort_planes
from client.intake.header import SliceHeader
from client.intake.parse import read_head
from client.intake.verdict import Code


@pytest.fixture(scope="module")
def plane(tmp_path_factory) -> SliceHeader:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, "1.2.3"
    image.Rows, image.Columns, image.BitsAllocated = 4, 5, 16
    image.PixelRepresentation = 0
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.ImagePositionPatient, image.PixelSpacing = [0, 0, 0], [0.5, 0.6]
    image.PixelData = bytes(40)
    path = tmp_path_factory.mktemp("plane") / "x"
    image.save_as(path, enforce_file_format=True)
    return read_head(path).planes[0]


def _at(plane: SliceHeader, offsets) -> tuple[SliceHeader, ...]:
    return tuple(
        replace(plane, path=Path(f"/{n}"), position_mm=(0.0, 0.0, float(z)))
        for n, z in enumerate(offsets)
    )


def _codes(planes) -> set[Code]:
    return {f.code for f in check_spacing(sort_planes(planes)) if f.refuses}


@given(
    spacing=st.floats(0.3, 10.0),
    count=st.integers(3, 40),
    seed=st.integers(0, 99),
)
def test_positions_written_with_two_decimals_are_still_uniform(
    plane, spacing, count, seed
):
    offsets = np.round(np.arange(count) * spacing - 123.4, 2)
    planes = _at(plane, np.random.default_rng(seed).permutation(offsets))
    assert _codes(planes) == set()
    ordered = sort_planes(planes)
    assert [p.position_mm[2] for p in ordered] == sorted(offsets)
    grid = series_grid(ordered)
    assert grid.spacing_mm[0] == pytest.approx(spacing, abs=0.011 / (count - 1) + 1e-9)


@pytest.mark.parametrize("share", [0.005, 0.02])
def test_one_percent_is_the_limit(plane, share):
    offsets = np.arange(6) * 5.0
    offsets[3:] += share * 5.0
    expected = {Code.NON_UNIFORM_SPACING} if share > 0.01 else set()
    assert _codes(_at(plane, offsets)) == expected


@given(
    st.sets(st.integers(1, 18), min_size=1, max_size=5), st.sampled_from([0.6, 1, 5])
)
def test_any_missing_inner_slices_are_counted(plane, absent, spacing):
    present = [n for n in range(20) if n not in absent]
    planes = sort_planes(_at(plane, np.array(present) * spacing))
    [finding] = check_spacing(planes)
    assert finding.code is Code.MISSING_SLICES
    assert finding.sentence.startswith(f"{len(absent)} slices are missing")


def test_repeated_positions_win_over_gaps(plane):
    assert _codes(_at(plane, [0, 1, 1, 2, 3, 7])) == {Code.DUPLICATE_SLICES}
    assert _codes(_at(plane, [2, 2, 2])) == {Code.DUPLICATE_SLICES}


def test_shear_is_refused_whatever_the_tilt_tag_says(plane):
    planes = tuple(
        replace(p, position_mm=(0.0, 0.2 * n, 3.0 * n))
        for n, p in enumerate(_at(plane, range(5)))
    )
    assert _codes(planes) == {Code.GANTRY_TILT}
