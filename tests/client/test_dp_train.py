import copy
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, kstest

from client.dp_train import Grid, PatientSampler, add_clipped, blur, train_privately
from client.dp_train import norm_of as flat_norm
from client.patches import PatchSampler
from client.secret_random import SecretStream
from client.train import Correction
from common.errors import PlanError, TrainingError
from common.networks import build_network
from common.task import Batch
from common.tasks.catalog import task_of
from tests.client.conftest import quiet, slices
from tests.plans import plan as plan_of

CPU = torch.device("cpu")
CLIP = 0.2
QUIET = 1e-9
"""A noise multiplier whose noise is rounded away."""


@dataclass
class Drawn:
    """A sampler that draws whom the test names."""

    batches: list[list[Batch]]
    patients: list[tuple[int, ...]]
    rate: float = 0.5
    stream: SecretStream = field(default_factory=lambda: SecretStream(bytes(32)))

    def draw(self):
        return self.batches.pop(0)


class Held(torch.optim.Optimizer):
    """Keeps the gradients of every step, and changes nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})
        self.steps = []

    def step(self):
        grads = [p.grad.flatten() for p in self.param_groups[0]["params"]]
        self.steps.append(torch.cat(grads).clone())


def private(plan=None, /, **changes):
    changes = {"privacy__dp": {"noise_multiplier": 1.0, "clip_norm": CLIP}, **changes}
    return slices(**changes) if plan is None else plan_of(plan, **changes)


def some_patches(plan, seed, patches=1, scale=1.0):
    rng = torch.Generator().manual_seed(seed)
    size = (patches, *plan.training.patch)
    image = torch.randn(size, generator=rng).unsqueeze(1) * scale
    mask = (torch.rand(size, generator=rng) > 0.7).long()
    label = torch.randint(0, 2, (patches,), generator=rng)
    return Batch(image, mask, label)


def step(plan, batches, noise=QUIET, rate=0.5, patients=8, network=None):
    """The gradients that one or more private steps give the optimiser."""
    task = task_of(plan)
    network = network or build_network(plan, task.out_channels, 1)
    held = Held(network.parameters())
    train_privately(
        network,
        held,
        Drawn(batches, [(n,) for n in range(patients)], rate),
        task,
        plan,
        noise_multiplier=noise,
        steps=len(batches),
        first_step=0,
        total_steps=10,
        correction=Correction(),
        device=CPU,
        progress=quiet,
    )
    return held.steps


def oracle(plan, batches, expected, clip=CLIP):
    """Each patient's gradient in double precision, clipped, added, divided."""
    task = task_of(plan)
    network = build_network(plan, task.out_channels, 1).double().train()
    total = 0.0
    for batch in batches:
        network.zero_grad()
        image = Batch(batch.image.double(), batch.mask, batch.label)
        task.loss(network(image.image), image).backward()
        grad = torch.cat([p.grad.flatten() for p in network.parameters()])
        total = total + grad * min(1.0, clip / float(grad.norm()))
    return total / expected


@pytest.mark.parametrize("each", [1, 3])
def test_a_step_is_the_mean_of_clipped_gradients_one_a_patient(each):
    plan = private()
    batches = [some_patches(plan, seed, each, scale=3.0) for seed in range(5)]
    (taken,) = step(plan, [list(batches)], rate=0.5, patients=8)
    expected = oracle(plan, batches, expected=4.0)
    assert float((taken - expected).norm()) < 1e-3 * float(expected.norm())
    assert float((oracle(plan, batches, 4.0, clip=1e9) - expected).norm()) > 0.1


def test_patches_of_one_patient_are_clipped_together_not_each():
    plan = private()
    parts = [some_patches(plan, seed) for seed in range(6)]
    one = Batch(*(torch.cat(ts) for ts in zip(*map(astuple, parts), strict=True)))
    (as_one,) = step(plan, [[one]], rate=1.0, patients=1)
    (as_six,) = step(plan, [parts], rate=1.0, patients=1)
    assert float(as_one.norm()) <= CLIP
    assert float(as_six.norm()) > 2 * CLIP


def astuple(batch):
    return batch.image, batch.mask, batch.label


def test_no_patient_moves_the_sum_by_more_than_the_clip():
    """The law that all of the promise rests on, with a patient made to break it."""
    plan = private()
    others = [some_patches(plan, seed) for seed in range(3)]
    for scale in (0.0, 1.0, 1e4, 1e30, float("inf"), float("nan")):
        odd = some_patches(plan, 99, scale=scale)
        (without,) = step(plan, [list(others)], rate=1.0, patients=1)
        (there,) = step(plan, [[*others, odd]], rate=1.0, patients=1)
        assert torch.isfinite(there).all()
        assert float((there - without).double().norm()) <= CLIP * (1 + 1e-6)


def test_without_the_clip_such_a_patient_moves_it_far():
    """The control: the odd patient of the test above is odd."""
    plan = private()
    task = task_of(plan)
    network = build_network(plan, task.out_channels, 1)
    odd = some_patches(plan, 99, patches=1, scale=1.0)
    (100.0 * task.loss(network(odd.image), odd)).backward()
    assert sum(float(p.grad.norm()) for p in network.parameters()) > 10 * CLIP


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=40),
    st.sampled_from([1e-3, 1.0, 1e3]),
    st.sampled_from([1, 500, 100_000]),
)
def test_any_vector_at_all_adds_at_most_the_clip(numbers, clip, patients):
    gradient = torch.tensor(numbers, dtype=torch.float32)
    total = torch.zeros(len(numbers), dtype=torch.int32)
    grid, cut = Grid.of(clip, len(numbers), patients), len(numbers) // 2
    lengths = [cut, len(numbers) - cut]
    add_clipped(total.split(lengths), gradient.split(lengths), grid)
    units = math.isqrt(sum(int(v) ** 2 for v in total))  # whole numbers: no rounding
    assert units * grid.unit <= clip
    # So many patients at their worst, all in one number, still fit.
    assert int(total.abs().max()) * patients < 2**31


def test_a_sum_too_long_for_its_clip_is_refused():
    assert Grid.of(1.0, 10_000_000, 100_000).clip > 0.5
    with pytest.raises(PlanError, match="smaller model"):
        Grid.of(1.0, 100_000_000, 1_000_000)


def test_sums_are_the_same_in_any_order():
    plan = private()
    batches = [some_patches(plan, seed) for seed in range(5)]
    (there,) = step(plan, [batches[:]])
    (back,) = step(plan, [batches[::-1]])
    assert torch.equal(there, back)


def test_the_norm_is_that_of_double_precision():
    for size in (1, 2047, 2048, 2049, 100_000):
        vector = torch.randn(size, generator=torch.Generator().manual_seed(size))
        assert flat_norm([vector]) == pytest.approx(float(vector.double().norm()), 1e-5)


# --- noise --------------------------------------------------------------------------


def test_a_step_that_draws_nobody_takes_a_noise_step_of_the_promised_size():
    plan = private()
    taken = step(plan, [[], [], []], noise=2.0, rate=0.25, patients=40)
    drawn = torch.cat(taken).double().numpy()
    sigma = 2.0 * CLIP / (0.25 * 40)
    assert abs(drawn.std() / sigma - 1.0) < 0.05
    assert kstest(drawn / sigma, "norm").pvalue > 0.001
    assert not torch.equal(taken[0], taken[1])


def test_noise_on_a_sum_is_that_of_the_plan():
    """Where the sum is known, what is left of the gradient is noise of size sigma C."""
    plan = private()
    batches = [some_patches(plan, seed) for seed in range(4)]
    expected = oracle(plan, batches, expected=4.0)
    (taken,) = step(plan, [batches], noise=1.5, rate=0.5, patients=8)
    left = (taken - expected).double().numpy()
    assert abs(left.std() * 4.0 / (1.5 * CLIP) - 1.0) < 0.1
    assert kstest(left * 4.0 / (1.5 * CLIP), "norm").pvalue > 0.001


def test_noisy_sums_are_whole_numbers_of_the_grid():
    """So every sum can come from every other: low bits tell nothing (Mironov 2012)."""
    grid = Grid.of(1.0, 10_000, 100)
    total = torch.arange(10_000, dtype=torch.int32)
    noisy = torch.empty(10_000, dtype=torch.float64)
    blur(noisy, total, 1.0 / grid.unit, grid.unit, SecretStream())
    units = noisy / grid.unit
    assert torch.equal(units, units.round())
    assert len(units.unique()) > 9_900


def test_the_same_step_twice_has_other_noise():
    plan = private()
    batches = [some_patches(plan, seed) for seed in range(2)]
    stream = SecretStream()
    runs = []
    for _ in range(2):
        task = task_of(plan)
        network = build_network(plan, task.out_channels, 1)
        held = Held(network.parameters())
        sampler = Drawn([list(batches)], [(0,), (1,)], stream=stream)
        train_privately(
            network,
            held,
            sampler,
            task,
            plan,
            noise_multiplier=1.0,
            steps=1,
            first_step=0,
            total_steps=1,
            correction=Correction(),
            device=CPU,
            progress=quiet,
        )
        runs.append(held.steps[0])
    apart = (runs[0] - runs[1]).double()
    assert abs(float(apart.std()) / (math.sqrt(2.0) * CLIP) - 1.0) < 0.1


# --- who is drawn -------------------------------------------------------------------


def test_patients_are_drawn_by_chance_and_all_alike(site_cases):
    cases = [site_cases.store.open(record) for record in site_cases.data.train]
    plan = private()
    patients = [(0,), (1, 2)] + [(n % len(cases),) for n in range(38)]
    stream, rng = SecretStream(), np.random.default_rng(1)
    sampler = PatientSampler(
        PatchSampler(cases, plan, rng), patients, 0.2, 2, stream, rng
    )
    counts = [len(sampler.draw()) for _ in range(400)]
    # Binomial, as Poisson sampling is: not a fixed number.
    for quantile in (0.1, 0.5, 0.9):
        expected = binom(40, 0.2).ppf(quantile)
        assert abs(np.quantile(counts, quantile) - expected) <= 1
    assert len(set(counts)) > 8
    drawn = [batch for _ in range(20) for batch in sampler.draw()]
    assert {len(batch.image) for batch in drawn} == {2}


def test_all_cases_of_a_patient_are_one_patients(site_cases):
    cases = [site_cases.store.open(record) for record in site_cases.data.train]
    seen = []

    class Recording(PatchSampler):
        def batch_of(self, picked):
            seen.append(list(picked))
            return super().batch_of(picked)

    rng = np.random.default_rng(1)
    sampler = PatientSampler(
        Recording(cases, private(), rng), [(0, 1, 2)], 1.0, 8, SecretStream(), rng
    )
    batches = sampler.draw() + sampler.draw()
    assert [len(batch.image) for batch in batches] == [8, 8]
    assert {case for picked in seen for case in picked} == {0, 1, 2}


# --- networks -----------------------------------------------------------------------

NETWORKS = {
    "UNet": {},
    "AttentionUnet": {},
    "DynUNet": {"model__channels": [4, 8, 8]},
    "SegResNet": {"training__patch": [16, 16]},
    "LinearProbe": {},
}
CLASSIFIER = """
[plan]
name = "classes"
[task]
kind = "classification"
attribute = "kind"
classes = [{ name = "a", equals = ["a"] }, { name = "b", equals = ["b"] }]
[model]
name = "ResNet10"
dimensions = 2
norm = "group"
[training]
steps = 1
batch_size = 2
patch = [32, 32]
loss = "cross_entropy"
[federation]
rounds = 1
"""


@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_segmenter_learns_privately_as_the_slow_way_says(name, norm):
    plan = private(model__name=name, model__norm=norm, **NETWORKS[name])
    batches = [some_patches(plan, seed) for seed in range(2)]
    (taken,) = step(plan, [list(batches)], rate=0.5, patients=4)
    expected = oracle(plan, batches, expected=2.0)
    assert float((taken - expected).norm()) < 1e-2 * float(expected.norm())


@pytest.mark.parametrize("name", ["ResNet10", "DenseNet121"])
def test_classifiers_learn_privately_as_the_slow_way_says(name):
    plan = private(CLASSIFIER, model__name=name)
    batches = [some_patches(plan, seed) for seed in range(2)]
    (taken,) = step(plan, [list(batches)], rate=0.5, patients=4)
    expected = oracle(plan, batches, expected=2.0)
    assert float((taken - expected).norm()) < 1e-2 * float(expected.norm())


def test_the_loss_is_not_kept_and_a_model_that_bursts_is_an_error():
    plan = private(training__optimizer="sgd", training__learning_rate=1e30)
    task = task_of(plan)
    network = build_network(plan, task.out_channels, 1)
    start = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)

    def train(noise):
        return train_privately(
            network,
            optimizer,
            Drawn([[], []], [(0,)]),
            task,
            plan,
            noise_multiplier=noise,
            steps=2,
            first_step=0,
            total_steps=4,
            correction=Correction(),
            device=CPU,
            progress=quiet,
        )

    with pytest.raises(TrainingError, match="not finite within 2 noisy steps"):
        train(1e12)
    network.load_state_dict(start)
    assert train(QUIET).loss is None
    assert all(p.grad is None for p in network.parameters())
