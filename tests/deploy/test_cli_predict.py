"""The verbs predict and evaluate, as a shell meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from common.errors import ModelError, UsageError
from common.package import save_package
from common.volume import Grid, Volume
from deploy.cli_predict import evaluate, predict
from deploy.phantom.formats import nifti_image
from tests.threshold_model import threshold_package, threshold_plan

GRID = Grid((6, 12, 14), np.eye(4)[[2, 1, 0, 3]])

app = typer.Typer()
app.command()(predict)
app.command()(evaluate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that knows HU above 100.5, and two patients whose truth is just that."""
    root = tmp_path_factory.mktemp("cli")
    package = threshold_package(threshold_plan(), (100.5,))
    save_package(root / "model", package.plan, package.state, facts=package.facts)
    for number in range(2):
        case = root / "data" / f"p{number}"
        case.mkdir(parents=True)
        hu = np.full(GRID.shape, -500, dtype=np.int16)
        hu[1:4, 2:9, 3 : 9 + number] = 300
        nifti_image(Volume(hu, GRID)).to_filename(case / "ct.nii.gz")
        mask = Volume((hu > 100).astype(np.uint8), GRID)
        nifti_image(mask).to_filename(case / "nodule.nii.gz")
    return root


def run(*words: str | Path):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_predict_prints_what_was_found_and_where_it_is(folder, tmp_path):
    ct = folder / "data" / "p0" / "ct.nii.gz"
    done = run("predict", folder / "model", ct, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "nodule: 126 voxels, 0.126 ml" in done.output
    assert "research use only" in done.output
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".json":
            assert str(path) in done.output


def test_predict_prints_json_alone_on_standard_output(folder, tmp_path):
    data = folder / "data"
    words = ("--source-format", "nifti", "--format", "json", "--out", tmp_path / "out")
    done = run("predict", folder / "model", data, *words)
    said = json.loads(done.stdout)
    found = [one["findings"][0]["voxels"] for one in said["predictions"]]
    assert sorted(found) == [126, 147]
    assert said["refused"] == []


def test_evaluate_prints_a_table_and_writes_the_same_as_json(folder, tmp_path):
    words = ("--source-format", "nifti", "--out", tmp_path / "said.json")
    done = run("evaluate", folder / "model", folder / "data", *words)
    assert done.exit_code == 0, done.output
    assert "2 of 2 series judged, 2 patients" in done.output
    assert "1.0000 to 1.0000" in done.output
    # One class: "dice/..." would say the same again. The file has both.
    assert "dice" in done.output
    assert "dice/" not in done.output
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["metrics"]["dice"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert any(name.startswith("dice/") for name in said["metrics"])


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_a_folder_that_is_no_model_is_a_model_error(verb, folder, tmp_path):
    done = run(verb, tmp_path, folder / "data")
    assert isinstance(done.exception, ModelError)


def test_where_without_a_value_is_a_usage_error(folder):
    done = run("evaluate", folder / "model", folder / "data", "--where", "vendor")
    assert isinstance(done.exception, UsageError)


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_help_has_an_example(verb):
    assert f"fedct {verb} " in run(verb, "--help").output
