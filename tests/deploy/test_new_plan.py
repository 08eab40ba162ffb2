import re
from dataclasses import replace

import pytest

from client.open_site import open_cases
from client.site import SiteConfig, write_site
from common.errors import PlanError, UsageError
from common.plan_file import load_plan
from common.sources import Source
from deploy.new_plan import write_plan
from deploy.phantom.formats import write_nifti
from deploy.phantom.hospital import write_hospital
from deploy.phantom.scanner import HOSPITALS

SMALLER = (
    (r"rounds = \d+", "rounds = 2"),
    (r"steps = \d+", "steps = 2"),
    (r"batch_size = \d+", "batch_size = 2"),
    (r"channels = \[.*\]", "channels = [4, 8]"),
    (r"spacing_mm = \[.*\]", "spacing_mm = [5.0, 5.0, 5.0]"),
    (r"patch = \[64, 64, 64\]", "patch = [16, 16, 16]"),
    (r"patch = \[64, 64\]", "patch = [32, 32]"),
    (r"ResNet18\"", 'ResNet10"'),
)
"""A plan's cost, not its meaning."""


@pytest.fixture
def folders(tmp_path):
    made = [tmp_path / "nord klinik", tmp_path / "süd"]
    for folder in made:
        folder.mkdir()
    return made


def sites(folders) -> list[str]:
    return [f"{name}={folder}" for name, folder in zip("ab", folders, strict=True)]


def shrink(path) -> None:
    text = path.read_text()
    for pattern, smaller in SMALLER:
        text = re.sub(pattern, smaller, text)
    path.write_text(text)


@pytest.fixture(scope="session")
def sources(tmp_path_factory, pictures):
    """Two hospitals in each format."""
    root = tmp_path_factory.mktemp("own folders")
    made = {}
    for number, hospital in enumerate(HOSPITALS[:2]):
        folder = root / "dicom" / hospital.name
        some = replace(hospital, patients=3)
        write_hospital(folder, some, seed=number, size="tiny")
        made.setdefault("dicom", []).append(folder)
        folder = root / "nifti" / hospital.name
        write_nifti(folder, patients=3, seed=number, size="tiny")
        made.setdefault("nifti", []).append(folder)
    made["images"] = [pictures / "data" / "pictures"] * 2
    return made


@pytest.mark.parametrize(
    ("form", "task"),
    [
        ("dicom", "segmentation"),
        ("nifti", "segmentation"),
        ("images", "segmentation"),
        ("images", "classification"),
    ],
)
def test_a_new_plan_runs_on_the_folders_it_was_made_for(
    fedct, sources, tmp_path, form, task
):
    plan, run = tmp_path / "new.toml", tmp_path / "run"
    words = [word for site in sites(sources[form]) for word in ("--site", site)]
    made = fedct("plan", "new", plan, *words, "--task", task, "--source-format", form)
    assert made.code == 0, made.err
    assert made.out.endswith(f"fedct simulate {plan}\n")
    assert fedct("plan", "check", plan).code == 0
    shrink(plan)
    said = fedct("simulate", plan, "--out", run, "--threads", 1)
    assert said.code == 0, said.err
    assert "round 2/2 closed: 2/2 sites" in said.err
    assert "trained on 0 of" not in said.out


def test_the_patch_of_a_new_plan_fits_a_whole_chest(tmp_path):
    """Unshrunk: 64 voxels of 2 mm against what a scanner sees of a chest."""
    write_hospital(tmp_path / "a", replace(HOSPITALS[0], patients=1), seed=1)
    plan = tmp_path / "new.toml"
    both = [f"a={tmp_path / 'a'}", f"b={tmp_path}"]
    write_plan(plan, both, "segmentation", ["*"], "dicom")
    source = Source(source=str(tmp_path / "a"), format="dicom")
    site = SiteConfig(name="a", source=source)
    write_site(tmp_path / "site", site, plan.read_text(), 1)
    data = open_cases(tmp_path / "site", load_plan(plan)).data
    assert (data.count.accepted, data.count.found) == (1, 1)


def test_names_and_labels_come_through_whatever_stands_in_them(tmp_path, folders):
    plan = tmp_path / "Mein Plan Ü 😀.toml"
    labels = ['GTV "1"', "Röntgen\\n", "😀", "{curly}"]
    write_plan(plan, sites(folders), "segmentation", labels, "nifti")
    loaded = load_plan(plan)
    assert loaded.plan.name == "mein-plan-u"
    assert loaded.task.classes == {"target": labels}
    assert [site.source for site in loaded.simulation.sites] == list(map(str, folders))
    write_plan(tmp_path / "计划.toml", sites(folders), "segmentation", ["*"], "dicom")
    assert load_plan(tmp_path / "计划.toml").plan.name == "plan"


def test_a_relative_folder_is_meant_from_here(tmp_path, folders, monkeypatch):
    monkeypatch.chdir(folders[0].parent)
    both = ["a=nord klinik", "b=./süd"]
    write_plan(tmp_path / "deep" / "new.toml", both, "segmentation", ["*"], "dicom")
    loaded = load_plan(tmp_path / "deep" / "new.toml")
    assert [site.source for site in loaded.simulation.sites] == list(map(str, folders))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sites": ["a=."]}, "expected at least two"),
        ({"sites": ["a=.", "b"]}, "got 'b', expected NAME=FOLDER"),
        ({"sites": ["a=.", "b="]}, "got 'b=', expected NAME=FOLDER"),
        ({"sites": ["a=.", "=."]}, "got the name ''"),
        ({"sites": ["a=.", "B 2=."]}, "got the name 'B 2', expected lower case"),
        ({"sites": ["a=.", "b=/nowhere"]}, "a folder that exists"),
        ({"task": "regression"}, "'regression'"),
        ({"task": "classification"}, "expected images"),
    ],
)
def test_what_can_t_be_a_plan_is_refused_and_nothing_is_written(
    tmp_path, changes, words
):
    given = {"sites": ["a=.", "b=."], "task": "segmentation", **changes}
    out = tmp_path / "new" / "plan.toml"
    with pytest.raises(UsageError, match=re.escape(words)):
        write_plan(out, given["sites"], given["task"], ["*"], "dicom")
    assert not out.parent.exists()


def test_a_plan_is_never_overwritten(tmp_path, folders):
    (tmp_path / "mine.toml").write_text("mine")
    with pytest.raises(UsageError, match="exists, expected a new name"):
        write_plan(
            tmp_path / "mine.toml", sites(folders), "segmentation", ["*"], "dicom"
        )
    assert (tmp_path / "mine.toml").read_text() == "mine"


def test_two_sites_need_two_names(tmp_path):
    with pytest.raises(PlanError, match="'a' is used twice"):
        write_plan(tmp_path / "x.toml", ["a=.", "a=."], "segmentation", ["*"], "dicom")


def test_a_folder_whose_name_is_no_text_is_refused(tmp_path):
    folder = tmp_path / "b\udcff"
    folder.mkdir()
    both = [f"a={tmp_path}", f"b={folder}"]
    with pytest.raises(UsageError, match="no text in UTF-8"):
        write_plan(tmp_path / "x.toml", both, "segmentation", ["*"], "dicom")
