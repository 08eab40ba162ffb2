"""Real CT down the whole road: verdicts of every series, a 3D U-Net, a checked SEG."""

import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
import torch

from client.intake.run import read_source
from client.predict import predict_series
from common.package import load_package
from common.sources import Source
from deploy.simulate import simulate
from tests.real_ct import ROOT

pytestmark = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"real CT is absent ({ROOT}); set FEDCT_TEST_DATA"
)

# Source file to (accepted, codes): a reader who opens these files agrees with each.
EXPECTED = {
    "rtstruct_lung4": {
        "pat_1/DCM_IMG_00000.dcm": (True, set()),
        "pat_2/DCM_IMG_00000.dcm": (True, set()),
        "README_LICENSE.txt": (False, {"NOT_DICOM"}),
    },
    "totalseg_example": {
        "LICENSE.TotalSegmentator": (False, {"NOT_DICOM"}),
        "": (True, {"EMPTY_UID", "EMPTY_PATIENT_ID", "LABEL_MISSING"}),
    },
    "dicom_seg": {
        "LICENSE.dcmqi": (False, {"NOT_DICOM"}),
        "ct-3slice/01.dcm": (True, {"PIXEL_PADDING", "LABEL_OVERLAP"}),
        "23x38x3/image/IMG0001.dcm": (True, {"RESCALE_INVALID", "HU_RANGE"}),
        # two label objects of this series share one UID and differ
        "24x38x3/image/IMG0001.dcm": (
            False,
            {"DUPLICATE_DIFFERENT", "RESCALE_INVALID", "HU_RANGE"},
        ),
        "23x38x3/multiframe/mf.dcm": (
            True,
            {"RESCALE_INVALID", "HU_RANGE", "LABEL_MISSING"},
        ),
        "24x38x3/multiframe/mf.dcm": (
            True,
            {"RESCALE_INVALID", "HU_RANGE", "LABEL_MISSING"},
        ),
    },
    "dicom_syntaxes": {
        "pydicom/liver_1frame.dcm": (False, {"LABEL_UNREFERENCED"}),
        "pydicom/rtstruct.dcm": (False, {"LABEL_UNREFERENCED"}),
        "pydicom/77654033/CR1/6154": (False, {"NOT_CT"}),
        "pydicom/77654033/CR2/6247": (False, {"NOT_CT"}),
        "pydicom/77654033/CR3/6278": (False, {"NOT_CT"}),
        "pydicom/DICOMDIR": (False, {"DICOMDIR_MISSING_FILE"}),
        "LICENSE.dicom-test-files": (False, {"NOT_DICOM"}),
        # one UID four times: uncompressed, J2K, and lossy with other pixels
        "pydicom/693_J2KI.dcm": (
            False,
            {"DUPLICATE_DIFFERENT", "DUPLICATE_SLICES", "LOSSY"},
        ),
        "pydicom/J2K_pixelrep_mismatch.dcm": (
            False,
            {"GANTRY_TILT", "TOO_FEW_SLICES"},
        ),
        "pydicom/explicit_VR-UN.dcm": (False, {"TOO_FEW_SLICES"}),
        "pydicom/77654033/CT2/17106": (False, {"MISSING_SLICES"}),
        "WG04/CT1_RLE": (False, {"TOO_FEW_SLICES"}),
        "pydicom/CT_small.dcm": (False, {"TOO_FEW_SLICES"}),
        "WG04/CT1_J2KI": (False, {"DUPLICATE_SLICES", "LOSSY"}),
        "pydicom/eCT_Supplemental.dcm": (False, {"RESCALE_INVALID", "TOO_FEW_SLICES"}),
    },
}


@pytest.mark.parametrize("folder", sorted(EXPECTED))
def test_every_series_of_the_real_data_gets_the_right_verdict(folder):
    wanted = dict(EXPECTED[folder])
    for row, case in read_source(Source(source=str(ROOT / folder))):
        key = next((k for k in wanted if k and row.source.endswith(k)), "")
        accepted, codes = wanted.pop(key)
        assert (case is not None) == accepted, (row.source, row.findings)
        assert {finding.code.value for finding in row.findings} == codes, row.source
    assert not wanted


PLAN = """
[plan]
name = "gtv"
[task]
kind = "segmentation"
classes = {{ tumour = ["GTV-1"] }}
[model]
name = "UNet"
dimensions = 3
channels = [4, 8, 16]
residual_units = 0
[preprocessing]
spacing_mm = [3.0, 2.0, 2.0]
[training]
steps = 10
batch_size = 2
patch = [16, 32, 32]
learning_rate = 1e-2
[federation]
rounds = 2
min_sites = 2
[simulation]
data_root = {root!r}
sites = [
  {{ name = "one", source = "rtstruct_lung4/pat_1" }},
  {{ name = "two", source = "rtstruct_lung4/pat_2" }},
]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gtv")
    plan = folder / "plan.toml"
    plan.write_text(PLAN.format(root=str(ROOT)))
    record = simulate(plan, folder / "run", threads=1)
    return record, folder / "run"


def test_two_hospitals_with_rtstruct_train_one_3d_unet(run):
    record, _ = run
    assert [(s.accepted, s.found, s.train) for s in record.sites] == [(1, 1, 1)] * 2
    rounds = record.arms[0].rounds
    assert [r.outcome for r in rounds] == ["closed", "closed"]
    first, last = (sum(row.loss for row in r.sites) for r in rounds)
    assert last < first


def test_its_prediction_is_a_seg_that_others_read(run, tmp_path):
    _, folder = run
    package = load_package(folder)
    source = Source(source=str(ROOT / "rtstruct_lung4" / "pat_2"))
    predict_series(package, source, tmp_path, torch.device("cpu"), lambda *a: None)
    (path,) = tmp_path.rglob("*.dcm")
    seg = highdicom.seg.segread(path)
    images = sorted((ROOT / "rtstruct_lung4" / "pat_2").glob("DCM_IMG_*"))
    first = pydicom.dcmread(images[0], stop_before_pixels=True)
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert (seg.Rows, seg.Columns) == (138, 141)
    assert "research use only" in seg.SeriesDescription.lower()
    uids = {pydicom.dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in images}
    referenced = {uid for _, _, uid in seg.get_source_image_uids()}
    assert referenced <= uids
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is absent (Debian: dicom3tools)")
    said = subprocess.run(
        ["dciodvfy", str(path)], capture_output=True, text=True, check=False
    )
    assert "Error" not in said.stderr


def test_the_tumour_of_the_phantom_patient_has_its_published_volume():
    source = Source(source=str(ROOT / "rtstruct_lung4" / "pat_1"))
    cases = [case for _, case in read_source(source) if case]
    (segment,) = cases[0].segments
    cm3 = segment.mask.sum() * cases[0].volume.grid.voxel_mm3 / 1000
    assert np.isclose(cm3, 358.7, rtol=0.005)
    assert segment.mask.any(axis=(1, 2)).sum() == 26
