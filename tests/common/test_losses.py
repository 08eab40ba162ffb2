"""Losses: agree with plain formulas and MONAI, and go down where they should."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss, FocalLoss

from common.errors import ModelError
from common.losses import SMOOTH, classification_loss, segmentation_loss, soft_dice
from common.networks import build_network


def test_soft_dice_of_a_known_overlap():
    shares = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    truth = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    expected = (2 * 1 + SMOOTH) / (2 + 2 + SMOOTH)
    assert soft_dice(shares, truth).item() == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [None, 2.0])
def test_one_class_agrees_with_monai(gamma):
    logits, mask = torch.randn(3, 1, 8, 9), (torch.rand(3, 8, 9) > 0.7).long()
    truth = mask[:, None].float()
    dice = DiceLoss(sigmoid=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)(logits, truth)
    if gamma is None:
        rest = F.binary_cross_entropy_with_logits(logits, truth)
    else:
        rest = FocalLoss(gamma=gamma)(logits, truth)
    name = "dice_ce" if gamma is None else "dice_focal"
    ours = segmentation_loss(name, logits, mask)
    assert ours.item() == pytest.approx((dice + rest).item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(8, 9), (4, 5, 6)])
def test_several_classes_agree_with_monai(shape):
    logits, mask = torch.randn(2, 4, *shape), torch.randint(0, 4, (2, *shape))
    dice = DiceLoss(
        softmax=True,
        to_onehot_y=True,
        include_background=False,
        smooth_nr=SMOOTH,
        smooth_dr=SMOOTH,
    )(logits, mask[:, None])
    expected = dice + F.cross_entropy(logits, mask)
    ours = segmentation_loss("dice_ce", logits, mask)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_sure_and_right_answer_costs_nothing_and_a_wrong_one_costs():
    mask = torch.zeros(1, 4, 4, dtype=torch.long)
    mask[0, 1:3, 1:3] = 1
    sure = (mask[:, None].float() * 2 - 1) * 30
    for name in ("dice_ce", "dice_focal"):
        assert segmentation_loss(name, sure, mask).item() == pytest.approx(0, abs=1e-5)
        assert segmentation_loss(name, -sure, mask).item() > 10


def test_focal_classification_of_a_coin_flip():
    logits, label = torch.zeros(3, 2), torch.tensor([0, 1, 1])
    plain = classification_loss("cross_entropy", logits, label).item()
    focal = classification_loss("focal", logits, label).item()
    assert plain == pytest.approx(math.log(2))
    assert focal == pytest.approx(0.25 * math.log(2))


def test_an_unknown_loss_is_refused_by_name():
    with pytest.raises(ModelError, match="'hinge'"):
        classification_loss("hinge", torch.zeros(1, 2), torch.zeros(1).long())


@pytest.mark.parametrize("name", ["dice_ce", "dice_focal"])
def test_a_unet_learns_one_blob(make_plan, make_case, name):
    case = make_case(shape=(1, 16, 16))
    image = torch.from_numpy(case.image.astype("float32"))[None]
    mask = torch.from_numpy(case.mask.astype("int64"))
    network = build_network(make_plan(), 1, seed=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = segmentation_loss(name, network(image), mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
