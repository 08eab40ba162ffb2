"""Evaluation says what counting by hand says, of whom, and how sure it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from client.assess import Assessment, assess
from common.errors import IntakeError
from common.sources import Source
from common.volume import Grid, Volume
from deploy.phantom.formats import nifti_image
from tests.threshold_model import threshold_package, threshold_plan

CPU = torch.device("cpu")
GRID = Grid((6, 12, 14), np.diag([1.0, 1.0, 1.0, 1.0])[[2, 1, 0, 3]])


def case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """HU with a bright block, and a truth that is the block moved by a few voxels."""
    hu = np.full(GRID.shape, -500, dtype=np.int16)
    hu[0, 0, 0] = number - 900
    hu[1:5, 2:9, 3:9] = 300
    truth = np.zeros(GRID.shape, dtype=bool)
    truth[1:5, 2:9, 3 + number % 3 : 9 + number % 3] = True
    return hu, truth


def write(folder: Path, numbers=range(6), named="nodule") -> Path:
    """NIfTI images, a folder each, with a label file that is called by its name."""
    for number in numbers:
        hu, truth = case(number)
        out = folder / f"p{number}"
        out.mkdir(parents=True)
        nifti_image(Volume(hu, GRID)).to_filename(out / "ct.nii.gz")
        mask = Volume(truth.astype(np.uint8), GRID)
        nifti_image(mask).to_filename(out / f"{named}.nii.gz")
    return folder


def run(folder: Path, plan=None) -> Assessment:
    package = threshold_package(plan or threshold_plan(), (100.5,))
    return assess(package, Source(source=str(folder), format="nifti"), CPU)


@pytest.fixture(scope="module")
def six(tmp_path_factory):
    return run(write(tmp_path_factory.mktemp("six") / "data"))


def test_dice_is_the_mean_over_cases_of_what_counting_gives(six):
    by_hand = []
    for number in range(6):
        hu, truth = case(number)
        predicted = hu > 100.5
        both = (truth & predicted).sum()
        by_hand.append(2 * both / (truth.sum() + predicted.sum()))
    assert six.metrics["dice"].value == pytest.approx(np.mean(by_hand))
    assert six.metrics["dice/nodule"] == six.metrics["dice"]


def test_the_interval_holds_the_value_and_says_what_limits_it(six):
    dice = six.metrics["dice"]
    assert dice.low < dice.value < dice.high
    assert six.patients == 6
    assert six.notes == ["only 6 patients: the intervals are likely too narrow"]
    assert (six.resamples, six.confidence) == (2000, 0.95)


def test_it_says_n_of_m_and_by_which_code_the_others_were_refused(tmp_path):
    folder = write(tmp_path / "data", range(3))
    write(tmp_path / "data" / "unnamed", [4], named="liver")
    copied = tmp_path / "data" / "again"
    write(copied, [1])
    said = run(folder)
    assert (said.accepted, said.found) == (3, 5)
    assert said.refused == {"LABEL_MISSING": 1, "DUPLICATE_SAME": 1}
    assert said.patients == 3


def test_the_same_again_gives_the_same(tmp_path, six):
    again = run(write(tmp_path / "data"))
    same = {"seconds"}
    assert again.model_dump(exclude=same) == six.model_dump(exclude=same)


def test_the_json_holds_no_series_or_patient(six):
    text = six.model_dump_json()
    assert Assessment.model_validate_json(text) == six
    for number in range(6):
        assert f'"p{number}"' not in text
        assert f'"s{number}"' not in text
    assert json.loads(text)["use"] == "research use only"


def test_one_patient_gets_no_interval(tmp_path):
    said = run(write(tmp_path / "data", [0]))
    assert said.metrics["dice"].low is None
    assert said.notes == ["one patient: no interval can be given"]


def test_cases_of_one_patient_are_drawn_together(tmp_path, six):
    folder = write(tmp_path / "data")
    rows = [f"p{number}/ct,{'ab'[number % 2]}" for number in range(6)]
    (folder / "patients.csv").write_text("\n".join(["case,patient", *rows]))
    said = run(folder)
    assert (said.accepted, said.patients) == (6, 2)
    assert said.metrics["dice"].value == pytest.approx(six.metrics["dice"].value)
    assert said.metrics["dice"].low != six.metrics["dice"].low


def test_nothing_labelled_is_an_error_with_codes(tmp_path):
    folder = write(tmp_path / "data", [0, 1], named="liver")
    with pytest.raises(IntakeError, match="LABEL_MISSING 2"):
        run(folder)
