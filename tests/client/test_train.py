import copy
import io
import itertools
import math

import pytest
import torch
from torch import nn

from client.train import (
    Correction,
    build_optimizer,
    rate_at,
    steps_per_round,
    train_round,
)
from common.errors import TrainingError
from common.plan import Training
from common.task import Batch
from common.tasks.catalog import task_of
from tests.client.conftest import quiet
from tests.plans import plan

CPU = torch.device("cpu")
NONE = Correction()


class Branched(nn.Module):
    """Maps B 1 H W to the same; one branch is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(1, 2, 3, padding=1)
        self.used = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, image):
        return self.used(image)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 3, padding=1)
    )


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        image = torch.rand((2, 1, 8, 8), generator=generator) * 2 - 1
        made.append(Batch(image, (image[:, 0] > 0.3).long(), torch.zeros(2).long()))
    return made


def settings(**changes):
    given = {"model__dimensions": 2, "training__patch": [8, 8], **changes}
    return plan(**{"training__weight_decay": 0.0, **given})


def take(
    net, the_plan, some, *, optimizer=None, first=0, total=None, how=NONE, scaler=None
):
    return train_round(
        net,
        optimizer or build_optimizer(net, the_plan.training),
        some,
        task_of(the_plan),
        the_plan,
        steps=len(some),
        first_step=first,
        total_steps=total or len(some),
        correction=how,
        scaler=scaler or {},
        device=CPU,
        progress=quiet,
    )


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def gradient(net: nn.Module, the_plan, batch: Batch) -> torch.Tensor:
    loss = task_of(the_plan).loss(net(batch.image), batch)
    parts = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([part.flatten() for part in parts])


def like(vector: torch.Tensor, net: nn.Module) -> tuple[torch.Tensor, ...]:
    sizes = [p.numel() for p in net.parameters()]
    pairs = zip(vector.split(sizes), net.parameters(), strict=True)
    return tuple(part.reshape(p.shape).clone() for part, p in pairs)


PLAIN = {
    "training__optimizer": "sgd",
    "training__momentum": 0.0,
    "training__schedule": "constant",
    "training__learning_rate": 1.0,
}


FP16 = {"training__amp": "fp16"}


def scale_of(power: int) -> dict:
    """A loss scale of 2 to this power, as a round leaves it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**power)
    return scaler.state_dict()


def test_the_cosine_falls_from_the_peak_to_zero_over_the_whole_run():
    training = settings(training__learning_rate=0.2).training
    rates = [rate_at(step, 100, training) for step in range(101)]
    assert rates[0] == 0.2
    assert rates[50] == pytest.approx(0.1)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates))


def test_warm_up_rises_in_equal_steps_and_then_leaves_the_schedule_alone():
    changes = {"training__warmup_steps": 4, "training__schedule": "constant"}
    training = settings(training__learning_rate=0.4, **changes).training
    rates = [rate_at(step, 100, training) for step in range(6)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    cosine = training.model_copy(update={"schedule": "cosine"})
    without = cosine.model_copy(update={"warmup_steps": 0})
    assert rate_at(50, 100, cosine) == rate_at(50, 100, without)


def test_rounds_share_one_schedule():
    the_plan = settings(training__learning_rate=0.02)
    net, some = network(), batches(3)
    sums = [
        take(net, the_plan, some, first=3 * number, total=12).rate_sum
        for number in range(4)
    ]
    # sum over k < T of (1 + cos(pi k / T)) / 2 is (T + 1) / 2.
    assert sum(sums) == pytest.approx(0.02 * 13 / 2)
    assert sums == sorted(sums, reverse=True)


def test_a_plain_step_goes_against_the_gradient():
    the_plan, (batch,) = settings(**PLAIN), batches(1)
    net = network()
    before, slope = weights(net), gradient(net, the_plan, batch)
    trained = take(net, the_plan, [batch])
    assert torch.allclose(before - weights(net), slope, atol=1e-6)
    assert trained.rate_sum == 1.0
    loss = task_of(the_plan).loss(network()(batch.image), batch)
    assert trained.loss == pytest.approx(loss.item())


def test_fedprox_adds_mu_times_the_way_from_the_global_model():
    the_plan, (batch,) = settings(**PLAIN), batches(1)
    net = network()
    before, slope = weights(net), gradient(net, the_plan, batch)
    anchor = weights(network(seed=5))
    assert (before - anchor).abs().max() > 0.1
    take(net, the_plan, [batch], how=Correction(anchor=like(anchor, net), mu=0.3))
    expected = slope + 0.3 * (before - anchor)
    assert (before - weights(net) - expected).abs().max() < 1e-6


def test_scaffold_adds_the_difference_of_the_controls():
    the_plan, (batch,) = settings(**PLAIN), batches(1)
    net = network()
    before, slope = weights(net), gradient(net, the_plan, batch)
    shift = torch.linspace(-1, 1, len(before))
    take(net, the_plan, [batch], how=Correction(shift=like(shift, net)))
    assert (before - weights(net) - slope - shift).abs().max() < 1e-6


def test_corrections_find_their_parameters_when_one_has_no_gradient():
    the_plan, (batch,) = settings(**PLAIN), batches(1)
    torch.manual_seed(0)
    net = Branched()
    used, unused = net.used.weight.detach().clone(), net.unused.weight.detach().clone()
    shift = tuple(torch.full_like(p, i + 1.0) for i, p in enumerate(net.parameters()))
    anchor = tuple(p.detach().clone() for p in net.parameters())
    plain = copy.deepcopy(net)
    take(plain, the_plan, [batch])
    take(net, the_plan, [batch], how=Correction(anchor=anchor, mu=0.5, shift=shift))
    # `used.weight` is the third parameter, so its shift is 3.
    assert torch.allclose(plain.used.weight - net.used.weight, torch.tensor(3.0))
    assert torch.equal(net.unused.weight, unused)
    assert not torch.equal(net.used.weight, used)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_kept_moments_make_two_rounds_one_run(name):
    the_plan = settings(training__optimizer=name, training__weight_decay=0.01)
    some = batches(6)
    whole = network()
    take(whole, the_plan, some, total=6)

    parts = network()
    optimizer = build_optimizer(parts, the_plan.training)
    take(parts, the_plan, some[:3], optimizer=optimizer, total=6)
    kept = io.BytesIO()
    torch.save(optimizer.state_dict(), kept)
    kept.seek(0)
    reset = copy.deepcopy(parts)
    again = build_optimizer(parts, the_plan.training)
    again.load_state_dict(torch.load(kept, weights_only=True))
    take(parts, the_plan, some[3:], optimizer=again, first=3, total=6)
    take(reset, the_plan, some[3:], first=3, total=6)

    assert torch.equal(weights(parts), weights(whole))
    assert not torch.allclose(weights(reset), weights(whole), atol=1e-6)


def test_the_gradient_is_clipped_after_the_correction():
    the_plan = settings(**PLAIN, training__max_grad_norm=0.01)
    net, (batch,) = network(), batches(1)
    before = weights(net)
    shift = torch.ones_like(before)
    take(net, the_plan, [batch], how=Correction(shift=like(shift, net)))
    assert (weights(net) - before).norm().item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(bad):
    some = batches(3)
    some[1].image[0, 0, 2, 2] = bad
    with pytest.raises(TrainingError, match=r"loss of (nan|inf) within 3 steps"):
        take(network(), settings(), some)


def test_bfloat16_runs_on_the_cpu_and_learns_nearly_the_same():
    some = batches(30)
    full, half = settings(), settings(training__amp="bf16")
    one, other = network(), network()
    exact, rough = take(one, full, some), take(other, half, some)
    assert exact.loss != rough.loss
    assert rough.loss == pytest.approx(exact.loss, rel=0.02)
    assert all(p.dtype == torch.float32 for p in other.parameters())


def test_float16_counts_only_steps_it_took_and_keeps_the_scale_it_found():
    the_plan = settings(**{**PLAIN, "training__learning_rate": 1e-4}, **FP16)
    net, some = network(), batches(1) * 12
    first = take(net, the_plan, some, scaler=scale_of(30))
    skipped = 30 - math.log2(first.scaler["scale"])
    assert 1 <= skipped < 12
    assert first.rate_sum == pytest.approx(1e-4 * (12 - skipped))
    second = take(net, the_plan, some, scaler=first.scaler)
    assert second.rate_sum == pytest.approx(1e-4 * 12)


def test_a_round_without_any_step_is_an_error():
    net, the_plan = network(), settings(**FP16)
    before = weights(net)
    with pytest.raises(TrainingError, match="0 of 2 steps"):
        take(net, the_plan, batches(2), scaler=scale_of(60))
    assert torch.equal(weights(net), before)


def test_under_masks_float16_does_not_leave_a_single_step_of_adam():
    alone, masked = settings(**FP16), settings(**FP16, privacy__secure_aggregation="on")
    some = batches(1) * 12
    found = take(network(), alone, some, scaler=scale_of(30)).scaler["scale"]
    some = some[: 31 - int(math.log2(found))]  # all that are skipped, and one
    assert take(network(), alone, some, scaler=scale_of(30)).rate_sum
    with pytest.raises(TrainingError, match=f"took 1 of {len(some)} steps"):
        take(network(), masked, some, scaler=scale_of(30))


def test_progress_is_told_after_each_step():
    told = []
    net, the_plan = network(), settings()
    train_round(
        net,
        build_optimizer(net, the_plan.training),
        iter(batches(9)),
        task_of(the_plan),
        the_plan,
        steps=4,
        first_step=0,
        total_steps=4,
        correction=Correction(),
        scaler={},
        device=CPU,
        progress=lambda done, steps: told.append((done, steps)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_the_plan_names_the_optimizer(name):
    training = Training(
        steps=1,
        batch_size=1,
        patch=[8, 8],
        optimizer=name,
        learning_rate=0.5,
        weight_decay=0.25,
    )
    optimizer = build_optimizer(network(), training)
    assert type(optimizer).__name__.lower() == name
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.25


@pytest.mark.parametrize(
    ("privacy", "optimizer", "fewest"),
    [
        ({"secure_aggregation": "on"}, "adamw", 2),
        ({"secure_aggregation": "auto"}, "adam", 2),
        ({"secure_aggregation": "on"}, "sgd", 1),
        ({"secure_aggregation": "on", "dp": {"noise_multiplier": 1.0}}, "adamw", 1),
        ({"secure_aggregation": "off"}, "adamw", 1),
    ],
)
def test_under_masks_a_small_site_takes_two_steps_of_adam(privacy, optimizer, fewest):
    length = {"steps": None, "epochs": 1.0, "optimizer": optimizer, "batch_size": 8}
    chosen = {f"training__{name}": value for name, value in length.items()}
    about = plan(**chosen, **{f"privacy__{k}": v for k, v in privacy.items()})
    taken = [steps_per_round(about, cases) for cases in (1, 8, 24)]
    assert taken == [fewest, fewest, 3]
