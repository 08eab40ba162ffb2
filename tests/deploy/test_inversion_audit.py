"""Gradient inversion on what the hub gets: the control, sums and noise."""

import pytest
import torch

from common.networks import build_network, check_fits
from common.plan import SEGMENTERS
from common.plan_file import parse_plan
from deploy import inversion_audit
from deploy.inversion import (
    Sight,
    SigmoidNet,
    gradient_at,
    gradient_of,
    invert,
    likeness,
)
from deploy.inversion_audit import (
    CONTROL,
    SIDE,
    Way,
    audit_inversion,
    one_step,
    patients,
    sight_of,
)
from tests.deploy.conftest import CLASSIFICATION, SEGMENTATION

PLAN = parse_plan(CONTROL)
NETWORKS = (*SEGMENTERS, "ResNet10", "DenseNet121")
FIVE = (0.2,) * 5
PRIVATE = "\n[privacy.dp]\nnoise_multiplier = 1.0\n"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sight(way: Way) -> Sight:
    known = patients(len(way.shares), (SIDE, SIDE))
    return sight_of(SigmoidNet(0, SIDE), PLAN, known, way)


def found(way: Way) -> float:
    """Likeness of the first patient after a quarter of an audit's steps."""
    true = patients(1, (SIDE, SIDE))[0].image
    return likeness(invert(sight(way), steps=100).pictures, true)


def test_a_picture_comes_back_in_the_clear_but_not_from_a_sum_or_through_noise():
    assert found(Way()) > 0.7
    assert found(Way(FIVE)) < 0.35
    assert found(Way((1.0,), 1.0, 1.0)) < 0.1


def test_the_attacker_reckons_with_the_clip_so_that_only_noise_keeps_him_off():
    assert found(Way((1.0,), 1.0, 1e-5)) > 0.5


@pytest.mark.parametrize("way", [Way(), Way(FIVE), Way((0.7, 0.3), 0.1, 0.0)])
def test_the_true_pictures_have_the_gradient_that_the_hub_gets(way):
    got = sight(way)
    pictures = torch.cat([one.image for one in got.known])
    mine = gradient_at(got, pictures).detach()
    assert float((mine - got.gradient).norm() / got.gradient.norm()) < 1e-3


def test_a_record_says_what_lay_between(monkeypatch):
    monkeypatch.setattr(inversion_audit, "STEPS", 2)
    bare = audit_inversion(parse_plan(SEGMENTATION), Way())
    assert (bare.sites, bare.noise_multiplier, bare.defended) == (1, None, None)
    assert not bare.works
    both = audit_inversion(parse_plan(SEGMENTATION + PRIVATE), Way(FIVE, 1.0, 1.5))
    assert (both.sites, both.noise_multiplier, both.steps) == (5, 1.5, 2)
    assert both.defended is not None
    again = audit_inversion(parse_plan(SEGMENTATION + PRIVATE), Way(FIVE, 1.0, 1.5))
    assert again == both


def test_a_batch_norm_that_shrinks_a_picture_to_one_voxel_gets_a_larger_one():
    plan = parse_plan(CLASSIFICATION)
    known = {"name": "ResNet10", "dimensions": 3, "norm": "batch"}
    step = one_step(
        plan.model_copy(update={"model": plan.model.model_copy(update=known)})
    )
    batch = patients(1, step.training.patch)[0]
    assert gradient_of(build_network(step, 2, 1), step, batch).isfinite().all()


def test_an_attack_ends_when_its_time_is_up(monkeypatch):
    monkeypatch.setattr(inversion_audit, "STEPS", 2)
    monkeypatch.setattr(inversion_audit, "LIMIT_S", 0.0)
    assert audit_inversion(PLAN, Way()).steps == 0


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dimensions", [2, 3])
def test_every_network_takes_a_small_picture_in_one_plain_step(name, dimensions):
    plan = parse_plan(SEGMENTATION if name in SEGMENTERS else CLASSIFICATION)
    model = plan.model.model_copy(
        update={
            "name": name,
            "dimensions": dimensions,
            "channels": [4, 8, 16],
            "norm": "instance",
            "dropout": 0.5,
        }
    )
    step = one_step(plan.model_copy(update={"model": model}))
    check_fits(step)
    assert max(step.training.patch) <= 64
    assert (step.training.steps, step.training.batch_size) == (1, 1)
    assert step.model.dropout == 0.0
