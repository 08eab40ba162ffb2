"""Classification: attributes to classes, AUC over sites, Grad-CAM pictures."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import nn

from common.case import IntakeCase
from common.drawing import BLUE, ORANGE
from common.errors import PlanError
from common.networks import build_network
from common.task import Batch, add_sums
from common.tasks.classification import Classification
from common.volume import Grid, Volume

CPU = torch.device("cpu")
TWO = {
    "kind": "classification",
    "attribute": "score",
    "baseline_attribute": "diameter",
    "classes": [{"name": "benign", "below": 3.0}, {"name": "malignant", "above": 3.0}],
}
KERNELS = {
    "kind": "classification",
    "attribute": "kernel",
    "classes": [
        {"name": "soft", "equals": ["B30f", "STANDARD"]},
        {"name": "sharp", "equals": ["B70f"]},
        {"name": "other", "equals": ["B50f"]},
    ],
}
NET = {"name": "LinearProbe"}


class _Mean(nn.Module):
    """Log odds of the second class are the image's mean."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.flatten(1).mean(dim=1)
        return torch.stack([torch.zeros_like(mean), mean], dim=1)


def _intake(**attributes: str) -> IntakeCase:
    volume = Volume(np.zeros((1, 2, 2)), Grid((1, 2, 2), np.eye(4)))
    return IntakeCase("1.2", "p", volume, attributes=attributes)


def _flat_case(make_case, value: float, label: int, **attributes: float):
    case = make_case((1, 16, 16), label=label, attributes=attributes)
    image = np.full(case.image.shape, value, dtype=np.float16)
    return type(case)(**{**vars(case), "image": image})


@pytest.mark.parametrize(
    ("text", "label"), [("1", 0), ("2.99", 0), (" 3.5 ", 1), ("5", 1)]
)
def test_numbers_are_sorted_by_the_rules(make_plan, text, label):
    task = Classification(make_plan(task=TWO, model=NET))
    assert task.target(_intake(score=text)).label == label


def test_the_version_goes_up_when_the_rules_of_the_target_change(make_plan):
    """A store keeps targets by this number: change both lines below together."""
    task = Classification(make_plan(task=TWO, model=NET))
    found = [
        task.target(_intake(score=text, diameter="7")) for text in ("2", "3", " 4", "x")
    ]
    assert task.target_version == 1
    assert [(t.label, dict(t.attributes)) for t in found] == [
        (0, {"diameter": 7.0}),
        (None, {}),
        (1, {"diameter": 7.0}),
        (None, {}),
    ]


@pytest.mark.parametrize("text", ["3", "3.0", "nan", "unsure", "", "inf "])
def test_what_fits_no_class_is_left_out_without_its_value(make_plan, text):
    target = Classification(make_plan(task=TWO, model=NET)).target(_intake(score=text))
    assert target.label is None
    assert "score" in str(target.left_out)
    assert not text or text not in str(target.left_out)


def test_an_absent_attribute_is_left_out_by_name(make_plan):
    task = Classification(make_plan(task=TWO, model=NET))
    assert "no attribute 'score'" in str(task.target(_intake()).left_out)


def test_texts_are_sorted_by_equality(make_plan):
    task = Classification(make_plan(task=KERNELS, model=NET))
    found = [task.target(_intake(kernel=k)).label for k in ("B70f", "standard", "b50F")]
    assert found == [1, 0, 2]
    assert task.class_names == ("soft", "sharp", "other")
    assert task.out_channels == 3


def test_the_baseline_travels_when_it_is_a_number(make_plan):
    task = Classification(make_plan(task=TWO, model=NET))
    with_it = task.target(_intake(score="5", diameter="12.5"))
    assert with_it.attributes == {"diameter": 12.5}
    assert task.target(_intake(score="5", diameter="?")).attributes == {}
    assert task.target(_intake(score="5")).label == 1


def _judged(make_plan, make_case, count: int = 40):
    rng = np.random.default_rng(4)
    task = Classification(make_plan(task=TWO, model=NET))
    labels = rng.integers(0, 2, count)
    values = rng.normal(size=count).astype(np.float16) + labels.astype(np.float16)
    sizes = 10 + 3 * labels + 4 * rng.normal(size=count)
    judged = [
        task.judge(_Mean(), _flat_case(make_case, v, int(t), diameter=s), 0, CPU)
        for v, t, s in zip(values, labels, sizes, strict=True)
    ]
    return task, labels, values.astype(float), sizes, judged


def test_metrics_agree_with_scikit_learn(make_plan, make_case):
    task, labels, values, sizes, judged = _judged(make_plan, make_case)
    total = judged[0]
    for sums in judged[1:]:
        total = add_sums(total, sums)
    metrics = task.summarise(total)
    called = values > 0
    assert metrics["accuracy"] == pytest.approx((called == labels).mean())
    expected = balanced_accuracy_score(labels, called)
    assert metrics["balanced_accuracy"] == pytest.approx(expected)
    for name, measure in (
        ("precision", precision_score),
        ("recall", recall_score),
        ("f1", f1_score),
    ):
        expected = measure(labels, called)
        assert metrics[f"{name}/malignant"] == pytest.approx(expected)
        assert metrics[name] == pytest.approx(measure(labels, called, average="macro"))
    assert metrics["auc"] == pytest.approx(roc_auc_score(labels, values), abs=0.01)
    expected = roc_auc_score(labels, sizes)
    assert metrics["baseline_auc"] == pytest.approx(expected, abs=0.02)
    assert metrics["auc"] == metrics["auc/malignant"]
    odds = torch.stack([torch.zeros(len(values)), torch.tensor(values)], dim=1)
    loss = nn.functional.cross_entropy(odds, torch.tensor(labels))
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-3)


def test_sums_of_two_sites_are_those_of_all_cases(make_plan, make_case):
    task, _, _, _, judged = _judged(make_plan, make_case, count=12)

    def fold(some: list) -> dict:
        total = dict(some[0])
        for sums in some[1:]:
            total = add_sums(total, sums)
        return total

    whole, parts = fold(judged), add_sums(fold(judged[5:]), fold(judged[:5]))
    for name, expected in whole.items():
        np.testing.assert_allclose(parts[name], expected, rtol=1e-12)
    assert task.summarise(parts).keys() == task.summarise(whole).keys()


def test_three_classes_are_ranked_each_against_the_rest(make_plan, make_case):
    task = Classification(make_plan(task=KERNELS, model=NET))
    total: dict = {}
    for label in (0, 1, 2, 0, 1, 2):
        sure = _Fixed([4.0 * (c == label) for c in range(3)])
        judged = task.judge(sure, make_case(label=label), 0, CPU)
        total = add_sums(total, judged)
    metrics = task.summarise(total)
    assert metrics["auc"] == metrics["auc/sharp"] == metrics["accuracy"] == 1.0
    assert task.monitor == "accuracy"


class _Fixed(nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(image), -1)


def test_one_class_alone_has_no_auc(make_plan, make_case):
    task = Classification(make_plan(task=TWO, model=NET))
    sums = task.judge(_Mean(), _flat_case(make_case, 1.0, 1, diameter=8.0), 0, CPU)
    metrics = task.summarise(sums)
    assert metrics["accuracy"] == 1.0
    assert not [name for name in metrics if "auc" in name]


def test_slices_are_judged_together(make_plan, make_case):
    task = Classification(make_plan(task=TWO, model=NET))
    case = make_case((2, 16, 16), label=1)
    image = np.stack([np.full((16, 16), -1.0), np.full((16, 16), 3.0)])
    case = type(case)(**{**vars(case), "image": image.astype(np.float16)})
    sums = task.judge(_Mean(), case, 0, CPU)
    assert sums["confusion"].tolist() == [0, 0, 0, 1]
    assert task.summarise(sums)["loss"] == pytest.approx(np.log1p(np.exp(-1)), abs=1e-4)


def test_a_window_is_placed_by_the_seed(make_plan, make_case):
    plan = make_plan(task=TWO, model=NET, evaluation={"region": "window"})
    task, case = Classification(plan), make_case((3, 40, 40), label=1)
    first = task.judge(_Mean(), case, 5, CPU)["loss"]
    assert first == task.judge(_Mean(), case, 5, CPU)["loss"]
    assert (
        len({float(task.judge(_Mean(), case, s, CPU)["loss"][0]) for s in range(5)}) > 1
    )


def test_the_monitor_is_auc_for_two_classes_and_is_checked(make_plan):
    assert Classification(make_plan(task=TWO, model=NET)).monitor == "auc"
    # Of two classes only the second is ranked, so the first has no AUC of its own.
    for wrong in ("dice", "loss", "recall/heart", "baseline_auc", "auc/benign"):
        with pytest.raises(PlanError, match=r"evaluation\.monitor"):
            Classification(
                make_plan(task=TWO, model=NET, evaluation={"monitor": wrong})
            )


def test_a_small_cnn_learns_balls_from_noise(make_plan, make_case):
    model = {"name": "ResNet10", "norm": "group"}
    task = Classification(make_plan(task=TWO, model=model))
    network = build_network(task.plan, task.out_channels, seed=1)
    cases = [
        make_case((1, 16, 16), radius=5.0 * (i % 2), label=i % 2, seed=i)
        for i in range(8)
    ]
    image = torch.stack([torch.from_numpy(c.image.astype(np.float32)) for c in cases])
    label = torch.tensor([c.label for c in cases])
    batch = Batch(image, torch.zeros(8, 16, 16, dtype=torch.long), label)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(6):
        optimizer.zero_grad()
        task.loss(network(image), batch).backward()
        optimizer.step()
    total: dict = {}
    for case in cases:
        total = add_sums(total, task.judge(network.eval(), case, 0, CPU))
    assert task.summarise(total)["auc"] == 1.0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_picture_is_framed_by_right_and_wrong(make_plan, make_case, dimensions):
    patch = [16, 16] if dimensions == 2 else [4, 16, 16]
    model = {**NET, "dimensions": dimensions}
    plan = make_plan(task=TWO, model=model, training={"patch": patch})
    task, network = Classification(plan), build_network(plan, 2, seed=1).eval()
    pictures = [
        task.picture(network, make_case((5, 24, 20), label=label), CPU)
        for label in (0, 1)
    ]
    assert {tuple(p[0, 0].tolist()) for p in pictures} == {BLUE, ORANGE}
    assert all(p.shape == (384, 384, 3) for p in pictures)
