"""Grad-CAM: equals CAM for a linear head, points at the blob, leaves no trace."""

import pytest
import torch
from torch import nn

from common.errors import ModelError
from common.gradcam import grad_cam
from common.networks import build_network

CLASSIFIES = {
    "kind": "classification",
    "attribute": "x",
    "classes": [{"name": "n", "below": 0.0}, {"name": "p", "above": 0.0}],
}


def _bright_means_positive() -> nn.Module:
    conv, head = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 2, bias=False)
    conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)
    head.weight.data = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def test_equals_the_class_activation_map_of_a_linear_head():
    image = torch.randn(1, 1, 6, 7)
    cam = grad_cam(_bright_means_positive(), image, 1)
    expected = image[0, 0].relu()
    torch.testing.assert_close(cam, expected / expected.max())
    cam = grad_cam(_bright_means_positive(), image, 0)
    expected = (-image[0, 0]).relu()
    torch.testing.assert_close(cam, expected / expected.max())


@pytest.mark.parametrize(
    ("name", "dimensions"), [("ResNet10", 2), ("ResNet10", 3), ("DenseNet121", 2)]
)
def test_every_classifier_has_one_of_the_image_size(make_plan, name, dimensions):
    patch = [64, 64] if dimensions == 2 else [16, 32, 32]
    plan = make_plan(
        task=CLASSIFIES,
        model={"name": name, "dimensions": dimensions, "norm": "group"},
        training={"patch": patch},
    )
    network = build_network(plan, 2, seed=1).eval().requires_grad_(False)
    with torch.inference_mode():  # as its callers may be in
        cam = grad_cam(network, torch.randn(1, 1, *patch), 0)
    assert list(cam.shape) == patch
    assert cam.min() >= 0
    assert cam.max() <= 1
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_all_zero_where_nothing_speaks_for_the_class():
    assert not grad_cam(_bright_means_positive(), -torch.ones(1, 1, 4, 4), 1).any()


def test_a_network_without_a_global_mean_is_refused(make_plan):
    with pytest.raises(ModelError, match="global mean"):
        grad_cam(build_network(make_plan(), 1, seed=1), torch.ones(1, 1, 16, 16), 0)
