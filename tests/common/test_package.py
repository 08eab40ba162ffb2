"""A package comes back bit for bit, or is refused with the name of the check."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from common.errors import ModelError
from common.package import PackageFacts, load_package, save_package
from common.plan import Plan

FACTS = PackageFacts(
    round=7, monitor="dice", monitor_value=0.8125, sites=4, versions={"torch": "2.13"}
)


def plan(**changes) -> Plan:
    return Plan.model_validate(
        {
            "plan": {"name": "nodules", "description": "Lung nodules, two classes."},
            "task": {
                "kind": "segmentation",
                "classes": {"vessel": ["vessel"], "nodule": ["nodule"]},
            },
            "model": {"name": "LinearProbe", "dimensions": 3},
            "training": {"steps": 1, "batch_size": 1, "patch": [4, 8, 8]},
            "federation": {"rounds": 9, "min_sites": 1},
            **changes,
        }
    )


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "weight": torch.randn(3, 1, 3, 3, 3, generator=generator),
        "bias": torch.tensor([0.1, -0.0, 1e-30]),
        "seen": torch.tensor(5, dtype=torch.int64),
        "turned": torch.randn(4, 5, generator=generator).T,
    }


def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save_package(folder, plan(), state(), facts=FACTS)
    return folder


def edit(folder: Path, **changes) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_weights_plan_and_facts_come_back_bit_for_bit(tmp_path):
    package = load_package(saved(tmp_path))
    assert set(package.state) == set(state())
    for name, tensor in state().items():
        assert package.state[name].dtype == tensor.dtype
        assert torch.equal(package.state[name], tensor)
    assert package.plan == plan()
    assert package.facts == FACTS


def test_classes_keep_their_numbers(tmp_path):
    assert load_package(saved(tmp_path)).class_names == ("vessel", "nodule")
    record = json.loads((tmp_path / "model" / "model.json").read_text())
    assert record["class_names"] == ["vessel", "nodule"]


def test_the_folders_of_the_training_machine_stay_behind(tmp_path):
    site = {"name": "a", "source": "/secret/place"}
    rehearsal = plan(simulation={"data_root": "/secret", "sites": [site]})
    save_package(tmp_path / "model", rehearsal, state(), facts=FACTS)
    for path in (tmp_path / "model").iterdir():
        assert b"secret" not in path.read_bytes()
    assert load_package(tmp_path / "model").plan.digest == rehearsal.digest


def test_a_run_folder_stands_for_the_package_in_it(tmp_path):
    saved(tmp_path)
    assert load_package(tmp_path).facts == FACTS


def test_the_card_says_what_it_is_and_is_not(tmp_path):
    card = (saved(tmp_path) / "README.md").read_text()
    for said in ("research use only", "not for diagnosis", "vessel, nodule", "0.8125"):
        assert said in card
    assert plan().digest in card


def test_saving_again_replaces_the_whole_folder_and_leaves_nothing_beside(tmp_path):
    folder = saved(tmp_path)
    (folder / "stale").write_text("x")
    save_package(
        folder,
        plan(),
        {"weight": torch.zeros(2)},
        facts=PackageFacts(round=8, monitor="dice"),
    )
    assert load_package(folder).facts.round == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert not (folder / "stale").exists()


def test_a_failed_save_leaves_the_old_package_whole(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    rename = Path.rename

    def fail_on_the_new_one(self, target):
        if ".new-" in self.name:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(OSError, match="disk gone"):
        save_package(folder, plan(), {"weight": torch.ones(1)}, facts=FACTS)
    assert load_package(folder).facts == FACTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_handed_out(tmp_path, value):
    with pytest.raises(ModelError, match="'weight' that are not finite"):
        save_package(
            tmp_path / "model", plan(), {"weight": torch.tensor([value])}, facts=FACTS
        )
    assert list(tmp_path.iterdir()) == []


def test_one_flipped_bit_of_the_weights_is_found(tmp_path):
    folder = saved(tmp_path)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="weights sha256 check"):
        load_package(folder)


def test_a_changed_plan_is_found(tmp_path):
    folder = saved(tmp_path)
    record = json.loads((folder / "model.json").read_text())
    record["plan"]["preprocessing"]["window_hu"] = [-160, 240]
    edit(folder, plan=record["plan"])
    with pytest.raises(ModelError, match="plan digest check"):
        load_package(folder)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"format": "other"}, "format check"),
        ({"package_version": 2}, "version check: got 2"),
        ({"class_names": ["nodule", "vessel"]}, "class names check"),
        ({"weights_sha256": None}, "facts check: got weights_sha256"),
        ({"surprise": 1}, "facts check: got surprise"),
    ],
)
def test_a_foreign_or_newer_record_is_refused_by_name(tmp_path, changes, check):
    folder = saved(tmp_path)
    edit(folder, **changes)
    with pytest.raises(ModelError, match=check):
        load_package(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_any_other_json_is_refused(tmp_path, text):
    folder = saved(tmp_path)
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match="failed its"):
        load_package(folder)


def test_a_pickle_in_place_of_the_weights_is_not_opened(tmp_path):
    folder = saved(tmp_path)
    torch.save({"weight": torch.ones(1)}, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, weights_sha256=digest)
    with pytest.raises(ModelError, match="weights format check"):
        load_package(folder)


@pytest.mark.parametrize("missing", ["model.json", "model.safetensors"])
def test_an_incomplete_folder_is_refused(tmp_path, missing):
    folder = saved(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=f"content check: got no file {missing}"):
        load_package(folder)


def test_a_huge_record_is_not_read(tmp_path):
    folder = saved(tmp_path)
    with (folder / "model.json").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(ModelError, match="size check"):
        load_package(folder)


def test_a_metric_without_a_value_is_not_measured(tmp_path):
    facts = PackageFacts(round=1, monitor="dice", monitor_value=float("nan"))
    save_package(tmp_path / "model", plan(), state(), facts=facts)
    assert load_package(tmp_path / "model").facts.monitor_value is None
    assert "not measured" in (tmp_path / "model" / "README.md").read_text()
