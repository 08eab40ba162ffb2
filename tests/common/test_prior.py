import pytest
import torch

from common.networks import FOREGROUND_PRIOR, build_network
from tests.plans import plan


@pytest.mark.parametrize("name", ["UNet", "AttentionUnet", "DynUNet", "SegResNet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_segmenter_begins_with_the_belief_that_a_voxel_is_background(name, channels):
    the_plan = plan(
        model__name=name, model__channels=[8, 16, 32], training__patch=[16, 16, 16]
    )
    network = build_network(the_plan, channels, 1)
    with torch.no_grad():
        logits = network(torch.randn(2, 1, 16, 16, 16))
    if channels == 1:
        foreground = torch.sigmoid(logits)
    else:
        foreground = 1 - torch.softmax(logits, 1)[:, :1]
    assert FOREGROUND_PRIOR / 4 < float(foreground.median()) < FOREGROUND_PRIOR * 4
