"""Networks: every name of the plan builds, learns, honours its norm, and is seeded."""

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ModelError
from common.networks import build_network, check_fits

SEGMENTERS = ("UNet", "AttentionUnet", "DynUNet", "SegResNet", "LinearProbe")
CLASSIFIERS = (
    "ResNet10",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "DenseNet121",
    "DenseNet169",
    "LinearProbe",
)
CLASSIFIES = {
    "kind": "classification",
    "attribute": "x",
    "classes": [{"name": "n", "below": 0.0}, {"name": "p", "above": 0.0}],
}


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_segmenter_gives_voxel_logits_and_gradients(make_plan, name, dimensions):
    plan = make_plan(model={"name": name, "dimensions": dimensions})
    network = build_network(plan, 3, seed=1)
    output = network(torch.randn(2, 1, *plan.training.patch))
    assert output.shape == (2, 3, *plan.training.patch)
    _all_parameters_get_gradients(network, output)


# In 3D only the small ones: the others are the same code with more blocks.
@pytest.mark.parametrize(
    ("name", "dimensions"),
    [(name, 2) for name in CLASSIFIERS]
    + [(name, 3) for name in ("ResNet10", "LinearProbe")],
)
def test_every_classifier_gives_class_logits_and_gradients(make_plan, name, dimensions):
    dense = name.startswith("DenseNet")
    plan = make_plan(
        task=CLASSIFIES,
        model={"name": name, "dimensions": dimensions, "norm": "group"},
        training={"patch": [32 if dense else 16] * dimensions},
    )
    network = build_network(plan, 4, seed=1)
    output = network(torch.randn(2, 1, *plan.training.patch))
    assert output.shape == (2, 4)
    _all_parameters_get_gradients(network, output)


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("name", sorted({*SEGMENTERS, *CLASSIFIERS}))
def test_every_network_fits_a_patch_of_64(make_plan, name, dimensions):
    task = {} if name in SEGMENTERS else {"task": CLASSIFIES}
    model = {"name": name, "dimensions": dimensions, "dropout": 0.1}
    check_fits(make_plan(model=model, training={"patch": [64] * dimensions}, **task))


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", "InstanceNorm"), ("group", "GroupNorm")]
)
@pytest.mark.parametrize("name", ["UNet", "AttentionUnet", "SegResNet", "DynUNet"])
def test_no_batch_norm_is_left_in_a_segmenter(make_plan, name, norm, kind):
    network = build_network(make_plan(model={"name": name, "norm": norm}), 1, seed=1)
    assert _norms(network) == {kind + "2d" if norm == "instance" else kind}


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50", "DenseNet121"])
def test_no_batch_norm_is_left_in_a_classifier(make_plan, name):
    for norm, kind in (("instance", "InstanceNorm3d"), ("group", "GroupNorm")):
        plan = make_plan(
            task=CLASSIFIES,
            model={"name": name, "dimensions": 3, "norm": norm},
            training={"patch": [64, 64, 64]},
        )
        assert _norms(build_network(plan, 2, seed=1)) == {kind}


def test_batch_norm_stays_where_the_plan_wants_it(make_plan):
    for name in ("UNet", "AttentionUnet"):
        plan = make_plan(model={"name": name, "norm": "batch"})
        assert _norms(build_network(plan, 1, seed=1)) == {"BatchNorm2d"}


def test_instance_norm_has_no_parameters_and_group_norm_has(make_plan):
    bare = build_network(make_plan(), 1, seed=1)
    affine = build_network(make_plan(model={"norm": "group"}), 1, seed=1)
    assert _size(affine) > _size(bare)


def test_one_seed_is_one_network_and_the_global_state_is_untouched(make_plan):
    plan = make_plan()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (build_network(plan, 1, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = build_network(plan, 1, seed=4)
    assert torch.equal(_flat(first), _flat(again))
    assert not torch.equal(_flat(first), _flat(other))


def test_the_seed_wins_over_the_global_state(make_plan):
    torch.manual_seed(5)
    first = build_network(make_plan(), 1, seed=3)
    torch.manual_seed(6)
    assert torch.equal(_flat(first), _flat(build_network(make_plan(), 1, seed=3)))


def test_a_patch_that_is_no_multiple_of_the_strides_is_refused_by_number(make_plan):
    plan = make_plan(
        model={"channels": [4, 8, 16, 32]}, training={"patch": [16, 20], "steps": 1}
    )
    for refuse in (check_fits, lambda p: build_network(p, 1, seed=1)):
        with pytest.raises(ModelError, match=r"got 20 .* expected multiples of 8"):
            refuse(plan)


def test_a_patch_that_shrinks_to_one_voxel_is_refused_for_instance_norm(make_plan):
    small = {"task": CLASSIFIES, "training": {"patch": [16, 16]}}
    with pytest.raises(ModelError, match="single voxel"):
        check_fits(make_plan(model={"name": "ResNet10"}, **small))
    check_fits(make_plan(model={"name": "ResNet10", "norm": "group"}, **small))


def test_a_patch_too_small_for_a_densenet_is_refused(make_plan):
    plan = make_plan(
        task=CLASSIFIES,
        model={"name": "DenseNet121", "dimensions": 3, "norm": "group"},
        training={"patch": [16, 32, 32]},
    )
    with pytest.raises(ModelError, match=r"got 16 .* at least 32"):
        check_fits(plan)


def test_dropout_reaches_every_network(make_plan):
    for name in ("UNet", "AttentionUnet", "DynUNet", "SegResNet"):
        plan = make_plan(model={"name": name, "dropout": 0.3})
        assert _dropouts(build_network(plan, 1, seed=1)) == {0.3}
    for name in ("ResNet10", "DenseNet121"):
        plan = make_plan(
            task=CLASSIFIES,
            model={"name": name, "dropout": 0.3},
            training={"patch": [64, 64]},
        )
        assert _dropouts(build_network(plan, 2, seed=1)) == {0.3}


def _all_parameters_get_gradients(network: nn.Module, output: torch.Tensor) -> None:
    assert torch.isfinite(output).all()
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def _norms(network: nn.Module) -> set[str]:
    return {type(m).__name__ for m in network.modules() if "Norm" in type(m).__name__}


def _dropouts(network: nn.Module) -> set[float]:
    kinds = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    found = {float(m.p) for m in network.modules() if isinstance(m, kinds)}
    return found - {0.0}  # AttentionUnet has some that can't be set


def _flat(network: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def _size(network: nn.Module) -> int:
    return int(np.sum([p.numel() for p in network.parameters()]))
