"""Which runs a hub takes on: those whose rounds could close."""

import re
from importlib.resources import files

import pytest

from common.errors import PlanError
from deploy.hub_runs import submit

SITES = ("a", "b", "c")


def plan(tmp_path, *lines: str):
    path = tmp_path / "plan.toml"
    text = files("deploy").joinpath("plans/rehearsal.toml").read_text()
    path.write_text(text + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "count", "named"),
    [
        ((), 2, "needs 3 sites in every round, got 2; enrol more, or lower privacy"),
        (("min_cohort = 4",), 3, "needs 4 sites in every round, got 3"),
        (("colluders = 3",), 3, "needs 4 sites in every round, got 3"),
        ((), 258, "got 258 sites, expected at most 257"),
        ((), 1, "got 1"),
    ],
)
def test_masks_that_could_never_be_opened_are_refused_when_they_are_asked_for(
    tmp_path, lines, count, named
):
    sites = [f"s{number}" for number in range(count)]
    with pytest.raises(PlanError, match=re.escape(named)):
        submit(tmp_path / "runs", plan(tmp_path, *lines), "lung", sites)
    assert not (tmp_path / "runs").exists()


def test_a_site_that_is_reached_by_files_has_no_masks(tmp_path):
    path = plan(tmp_path)
    with pytest.raises(PlanError, match="give all sites a line"):
        submit(tmp_path / "runs", path, "lung", SITES, parcels=("c",))
    path.write_text(
        path.read_text().replace('aggregation = "on"', 'aggregation = "off"')
    )
    assert submit(tmp_path / "runs", path, "lung", SITES, parcels=("c",)).is_dir()


def test_enough_sites_are_taken(tmp_path):
    path = plan(tmp_path, "colluders = 2")
    assert submit(tmp_path / "runs", path, "lung", SITES).is_dir()
