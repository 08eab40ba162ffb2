"""Segmentation: labels to classes, judgements that add up, numbers known by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from common.case import IntakeCase, Segment
from common.errors import PlanError
from common.networks import build_network
from common.task import Batch, add_sums
from common.tasks.segmentation import Segmentation, classes_of
from common.volume import Grid, Volume

CPU = torch.device("cpu")
TWO = {"kind": "segmentation", "classes": {"organ": ["*"], "tumour": ["GTV-1", "2"]}}
SHAPE = (2, 4, 4)


class _Threshold(nn.Module):
    """Foreground where the image is above zero: exact on the ball phantom."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 50 * image


class _Silent(nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(image) - 5


def _intake(*segments: tuple[str, tuple]) -> IntakeCase:
    grid = Grid(SHAPE, np.eye(4))
    made = []
    for name, place in segments:
        mask = np.zeros(SHAPE, dtype=bool)
        mask[place] = True
        made.append(Segment(name, mask))
    return IntakeCase("1.2", "p", Volume(np.zeros(SHAPE), grid), tuple(made))


def test_one_class_is_one_channel_and_two_are_three(make_plan):
    one, two = Segmentation(make_plan()), Segmentation(make_plan(task=TWO))
    assert (one.out_channels, one.class_names) == (1, ("nodule",))
    assert (two.out_channels, two.class_names) == (3, ("organ", "tumour"))


def test_the_later_class_wins_and_the_overlap_is_counted(make_plan):
    case = _intake(("GTV-1", np.s_[0, :2]), ("lung", np.s_[0]))
    target = Segmentation(make_plan(task=TWO)).target(case)
    assert target.mask is not None
    assert target.mask[0, :2].tolist() == [[2] * 4] * 2
    assert target.mask[0, 2:].tolist() == [[1] * 4] * 2
    assert not target.mask[1].any()
    # `*` takes the tumour as well, so its eight voxels are claimed twice.
    assert target.overlap_voxels == 8
    assert target.left_out is None


def test_the_version_goes_up_when_the_rules_of_the_target_change(make_plan):
    """A store keeps targets by this number: change both lines below together."""
    labels = (("GTV-1", np.s_[0, :2]), (" TUMOUR", np.s_[1]), ("lung", np.s_[0, 1:3]))
    task = Segmentation(make_plan(task=TWO))
    mask = task.target(_intake(*labels)).mask
    none = Segmentation(make_plan()).target(_intake(*labels)).mask
    assert task.target_version == 1
    assert (mask[0, :, 0].tolist(), mask[1, 0, 0], none) == ([2, 2, 1, 0], 1, None)


def test_several_labels_make_one_class_without_an_overlap(make_plan):
    task = {"kind": "segmentation", "classes": {"lung": ["left", "right"]}}
    case = _intake(("left", np.s_[0]), ("right", np.s_[0, 0]), ("heart", np.s_[1]))
    target = Segmentation(make_plan(task=task)).target(case)
    assert target.mask is not None
    assert target.mask.sum() == 16
    assert target.overlap_voxels == 0


@pytest.mark.parametrize("name", ["nodule", " Nodule ", "NODULE"])
def test_names_match_whatever_the_case_and_the_spaces_around(make_plan, name):
    target = Segmentation(make_plan()).target(_intake((name, np.s_[0])))
    assert target.mask is not None
    assert target.mask.any()


def test_part_of_a_name_does_not_match(make_plan):
    assert Segmentation(make_plan()).target(_intake(("nodules", np.s_[0]))).left_out


def test_an_empty_label_is_a_statement_and_no_label_is_none(make_plan):
    task = Segmentation(make_plan())
    nothing = task.target(_intake(("nodule", np.s_[:0])))
    assert nothing.left_out is None
    assert nothing.mask is not None
    assert not nothing.mask.any()
    assert "no labels" in str(task.target(_intake()).left_out)
    other = task.target(_intake(("heart", np.s_[0]), ("liver", np.s_[1])))
    assert other.mask is None
    assert "none of its 2 labels" in str(other.left_out)
    assert "heart" not in str(other.left_out)


@pytest.mark.parametrize("region", ["volume", "window"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_perfect_answer_scores_one(make_plan, make_case, region, dimensions):
    plan = make_plan(
        task={"kind": "segmentation", "classes": {"a": ["*"]}, "lesions": True},
        model={"dimensions": dimensions},
        training={"patch": [16, 16] if dimensions == 2 else [4, 16, 16]},
        evaluation={"region": region},
    )
    task, case = Segmentation(plan), make_case((5, 24, 24))
    metrics = task.summarise(task.judge(_Threshold(), case, 7, CPU))
    for name in ("dice", "iou", "precision", "recall", "f1", "lesion_sensitivity"):
        assert metrics[name] == metrics[f"{name}/a"] == 1.0
    assert metrics["lesion_fp_per_case"] == 0
    if region == "volume":
        assert (metrics["assd_mm"], metrics["hd95_mm"]) == (0, 0)
    else:
        assert "assd_mm" not in metrics


def test_a_shifted_answer_has_its_numbers_in_millimetres(make_plan, make_case):
    case = make_case((6, 32, 32), radius=6.0, spacing_mm=(2.0, 0.5, 0.5))
    moved = np.roll(case.image, 4, axis=2)
    task = Segmentation(make_plan())
    shifted = type(case)(**{**vars(case), "image": moved})
    metrics = task.summarise(task.judge(_Threshold(), shifted, 0, CPU))
    truth, predicted = case.mask, np.roll(case.mask, 4, axis=2)
    dice = 2 * (truth & predicted).sum() / (truth.sum() + predicted.sum())
    assert metrics["dice"] == pytest.approx(dice)
    assert metrics["hd95_mm"] == pytest.approx(2.0)
    assert 0.5 < metrics["assd_mm"] < 2.0


def test_no_millimetres_no_surface_distance(make_plan, make_case):
    task = Segmentation(make_plan())
    blind = task.judge(_Threshold(), make_case(has_spacing=False), 0, CPU)
    assert not [name for name in task.summarise(blind) if "mm" in name]
    off = Segmentation(make_plan(evaluation={"surface": False}))
    assert "hd95_mm" not in off.judge(_Threshold(), make_case(), 0, CPU)


def test_a_silent_network_misses_and_has_no_precision(make_plan, make_case):
    task = Segmentation(make_plan())
    metrics = task.summarise(task.judge(_Silent(), make_case(), 0, CPU))
    assert (metrics["dice"], metrics["recall"], metrics["f1"]) == (0, 0, 0)
    assert "precision" not in metrics
    assert "hd95_mm" not in metrics


def test_a_healthy_volume_does_not_count_and_an_empty_window_does(make_plan, make_case):
    healthy = make_case(radius=0.0)
    volume = Segmentation(make_plan())
    assert "dice" not in volume.summarise(volume.judge(_Silent(), healthy, 0, CPU))
    window = Segmentation(make_plan(evaluation={"region": "window"}))
    sums = window.judge(_Silent(), healthy, 0, CPU)
    assert window.summarise(sums)["dice"] == 1.0
    assert sums["dice.count"] == 3  # one per slice


def test_sums_of_cases_add_up_to_means_over_cases(make_plan, make_case):
    task = Segmentation(make_plan(task=TWO, model={"norm": "group"}))
    network = build_network(task.plan, task.out_channels, seed=2).eval()
    cases = [make_case(radius=3.0 + i, seed=i) for i in range(4)]
    judged = [task.judge(network, case, 0, CPU) for case in cases]
    left = add_sums(add_sums(judged[0], judged[1]), add_sums(judged[2], judged[3]))
    right = add_sums(judged[3], add_sums(add_sums(judged[1], judged[0]), judged[2]))
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_allclose(left[name], right[name], rtol=1e-12)
    each = [task.summarise(sums)["dice/organ"] for sums in judged]
    assert task.summarise(left)["dice/organ"] == pytest.approx(np.mean(each))
    losses = [task.summarise(sums)["loss"] for sums in judged]
    assert task.summarise(left)["loss"] == pytest.approx(np.mean(losses))
    assert left["cases"] == 4


def test_f1_pools_voxels_and_dice_does_not(make_plan, make_case):
    task = Segmentation(make_plan())
    seen = task.judge(_Threshold(), make_case((5, 24, 24), radius=8), 0, CPU)
    missed = task.judge(_Silent(), make_case((5, 24, 24), radius=2), 0, CPU)
    metrics = task.summarise(add_sums(seen, missed))
    assert metrics["dice"] == 0.5
    assert metrics["f1"] > 0.9


def test_the_seed_alone_places_the_window(make_plan, make_case):
    task = Segmentation(make_plan(evaluation={"region": "window"}))
    network = build_network(task.plan, 1, seed=2).eval()
    case = make_case((3, 40, 40), radius=9)
    other_id = type(case)(**{**vars(case), "case_id": "ff"})
    first = task.judge(network, case, 5, CPU)["tp"]
    assert first == task.judge(network, other_id, 5, CPU)["tp"]
    tried = {float(task.judge(network, case, s, CPU)["tp"][0]) for s in range(5)}
    assert len(tried) > 1


def test_the_loss_is_that_of_the_batch(make_plan):
    task = Segmentation(make_plan())
    mask, label = torch.randint(0, 2, (2, 8, 8)), torch.zeros(2, dtype=torch.long)
    image = torch.randn(2, 1, 8, 8, requires_grad=True)
    loss = task.loss(image, Batch(image.detach(), mask, label))
    loss.backward()
    assert loss.ndim == 0
    assert image.grad is not None


def test_classes_are_the_likeliest():
    assert classes_of(torch.tensor([-0.1, 0.1]).reshape(1, 1, 1, 1, 2)).tolist() == [
        [[[0, 1]]]
    ]
    logits = torch.zeros(1, 3, 1, 1, 2)
    logits[0, 2, ..., 0] = 1
    assert classes_of(logits).tolist() == [[[[2, 0]]]]


@pytest.mark.parametrize("monitor", ["loss", "hd95_mm", "dice/heart", "auc"])
def test_a_monitor_of_which_less_is_better_is_refused(make_plan, monitor):
    with pytest.raises(PlanError, match=r"evaluation\.monitor"):
        Segmentation(make_plan(evaluation={"monitor": monitor}))


def test_lesions_pick_the_best_model_only_where_they_are_counted(make_plan):
    for name in ("lesion_sensitivity", "lesion_sensitivity/organ"):
        monitored = {"monitor": name}
        counted = Segmentation(
            make_plan(task={**TWO, "lesions": True}, evaluation=monitored)
        )
        assert counted.monitor == name
        with pytest.raises(PlanError, match="that this plan measures"):
            Segmentation(make_plan(task=TWO, evaluation=monitored))


def test_the_monitor_is_dice_unless_the_plan_says_otherwise(make_plan, make_case):
    task = Segmentation(make_plan())
    assert task.monitor == "dice"
    assert task.monitor in task.summarise(task.judge(_Threshold(), make_case(), 0, CPU))
    named = Segmentation(make_plan(evaluation={"monitor": "recall/nodule"}))
    assert named.monitor == "recall/nodule"


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_picture_shows_truth_and_prediction(make_plan, make_case, dimensions):
    patch = [16, 16] if dimensions == 2 else [8, 16, 16]
    model = {"dimensions": dimensions}
    task = Segmentation(make_plan(model=model, training={"patch": patch}))
    picture = task.picture(_Threshold(), make_case((5, 24, 24)), CPU)
    assert picture.shape == (384, 384, 3)
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
