"""A model's answer lands on the voxels it is about, whatever way the series runs."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from client import predictor
from client.predictor import classify, network_of, segment
from common.errors import ModelError
from common.inference import predict_class_logits
from common.networks import build_network
from common.package import ModelPackage, PackageFacts
from common.preprocess import prepare
from common.tasks.segmentation import classes_of
from common.volume import Grid, Volume, resample
from tests.plans import plan as small_plan
from tests.threshold_model import threshold_package, threshold_plan

CPU = torch.device("cpu")
SHAPE = (6, 9, 11)


def noise(affine: np.ndarray, shape=SHAPE) -> Volume:
    hu = np.random.default_rng(5).integers(-400, 600, shape).astype(np.int16)
    return Volume(hu, Grid(shape, affine))


def affine_of(axes: np.ndarray, spacing=(2.5, 0.7, 0.9)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = (-31.25, 12.5, 100.0)
    return affine


def predict(plan, volume, above_hu=(100.5,)) -> Volume:
    package = threshold_package(plan, above_hu)
    return segment(network_of(package, CPU), volume, plan, CPU)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_at_native_spacing_every_voxel_of_any_series_keeps_its_answer(order):
    for signs in product((1.0, -1.0), repeat=3):
        volume = noise(affine_of(np.eye(3)[:, order] * signs))
        mask = predict(threshold_plan(), volume)
        assert mask.array.dtype == np.uint8
        assert mask.grid.same_as(volume.grid)
        assert np.array_equal(mask.array, volume.array > 100.5)


def test_the_same_holds_for_oblique_series():
    for seed in range(5):
        axes = Rotation.random(random_state=seed).as_matrix()
        volume = noise(affine_of(axes))
        mask = predict(threshold_plan(), volume)
        assert np.array_equal(mask.array, volume.array > 100.5)


def test_several_classes_are_told_apart():
    volume = noise(affine_of(np.eye(3)))
    mask = predict(threshold_plan(["a", "b", "c"]), volume, (-100.5, 100.5, 300.5))
    hu = volume.array
    wanted = (hu > -100.5).astype(int) + (hu > 100.5) + (hu > 300.5)
    assert np.array_equal(mask.array, wanted)


def ball(grid: Grid, radius_mm: float) -> np.ndarray:
    """1 inside a ball around the middle of the grid, linear over a voxel at its rim."""
    index = np.indices(grid.shape).reshape(3, -1)
    places = grid.affine[:3, :3] @ index + grid.affine[:3, 3:]
    middle = grid.affine @ (*((n - 1) / 2 for n in grid.shape), 1.0)
    away = np.linalg.norm(places - middle[:3, None], axis=0)
    return np.clip(0.5 + (radius_mm - away) / 2.0, 0.0, 1.0).reshape(grid.shape)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_probabilities_come_back_smoother_than_classes():
    grid = Grid((40, 40, 40), affine_of(np.eye(3)[:, ::-1], (1.0, 1.0, 1.0)))
    share = ball(grid, 12.0)
    volume = Volume((share * 1000 - 500).astype(np.int16), grid)
    plan = threshold_plan(preprocessing__spacing_mm=[3.0, 3.0, 3.0])
    # A model as steep as this one has no doubts; a trained one has them at borders.
    package = threshold_package(plan, (0.5,))
    soft = replace(package, state={k: t / 200 for k, t in package.state.items()})
    network = network_of(soft, CPU)
    ours = segment(network, volume, plan, CPU).array.astype(bool)
    image, _, coarse = prepare(volume, plan.preprocessing)
    logits = network(torch.from_numpy(image.astype(np.float32))[None, None])
    classes = classes_of(logits.detach())[0].numpy()
    staircase = resample(
        Volume(classes, coarse), grid, nearest=True, outside=0
    ).array.astype(bool)
    truth = share > 0.5
    assert dice(ours, truth) > 0.96
    assert dice(ours, truth) > dice(staircase, truth) + 0.02


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_slabs_do_not_show(monkeypatch, names):
    volume = noise(affine_of(np.eye(3)[:, [2, 0, 1]]))
    plan = threshold_plan(names, preprocessing__spacing_mm=[1.3, 1.1, 1.7])
    above = (0.5, 200.5)[: len(names)]
    whole = predict(plan, volume, above).array
    monkeypatch.setattr(predictor, "SLAB", 2)
    assert np.array_equal(predict(plan, volume, above).array, whole)
    assert set(np.unique(whole)) == set(range(len(names) + 1))


CLASSIFICATION = """
[plan]
name = "test"
[task]
kind = "classification"
attribute = "malignancy"
classes = [{name = "benign", below = 3.0}, {name = "malignant", above = 3.0}]
[model]
name = "LinearProbe"
dimensions = 2
[training]
steps = 1
batch_size = 1
patch = [16, 16]
loss = "cross_entropy"
[federation]
rounds = 1
min_sites = 1
"""


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_class_is_the_mean_over_all_windows(dimensions):
    patch = [16, 16] if dimensions == 2 else [4, 16, 16]
    plan = small_plan(
        CLASSIFICATION, model__dimensions=dimensions, training__patch=patch
    )
    network = build_network(plan, 2, 3).eval()
    volume = noise(affine_of(np.eye(3)[:, ::-1]), (5, 20, 30))
    said = classify(network, volume, plan, CPU)
    image, _, _ = prepare(volume, plan.preprocessing)
    logits = predict_class_logits(network, image, plan, CPU)
    assert said.probabilities == pytest.approx(logits.softmax(0).tolist(), abs=1e-6)
    assert sum(said.probabilities) == pytest.approx(1.0)
    assert said.grey.shape == said.warmth.shape == (16, 16)
    assert said.warmth.min() >= 0.0
    assert said.warmth.max() <= 1.0


def test_weights_of_another_network_are_refused():
    plan = threshold_plan()
    facts = PackageFacts(round=1, monitor="dice")
    package = ModelPackage(plan, {"weight": torch.zeros(2)}, facts, "ab" * 32)
    with pytest.raises(ModelError, match="do not fit LinearProbe"):
        network_of(package, CPU)
