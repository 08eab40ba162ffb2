import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import client.service
from client.draws import plan_seed
from client.open_site import open_site
from client.patches import PatchSampler
from client.train import build_optimizer, rate_at
from common.errors import ContributionError, ModelError, StoreError, TrainingError
from common.exchange import Hello, JudgeOrder
from common.networks import build_network
from common.parameters import digest_of, layout_of, load_vector, to_vector
from common.plan_file import parse_plan
from common.task import add_sums
from common.tasks.catalog import task_of
from server.federation import first_model
from tests.client.conftest import ALGORITHMS, order, quiet, slices
from tests.plans import SLICES


def train(service, the_order):
    return service.train(the_order, quiet)


def same(a, b) -> bool:
    """Whether two updates say the same, to the bit; only times may differ."""
    if a.control_delta is not None and not np.array_equal(
        a.control_delta, b.control_delta
    ):
        return False
    return np.array_equal(a.delta, b.delta) and a.loss == b.loss


def judge_order(plan, model, since=0, part="validation", **changes) -> JudgeOrder:
    digest = digest_of(model)
    order = JudgeOrder("run", plan.digest, 1, since, part, model, digest)
    return replace(order, **changes)


def files(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def drawn(monkeypatch):
    """Every batch that a service trains on, in order."""
    seen = []

    class Recording(PatchSampler):
        def batch(self):
            batch = super().batch()
            seen.append(copy.deepcopy(batch))
            return batch

    monkeypatch.setattr(client.service, "PatchSampler", Recording)
    return seen


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_order_twice_gives_the_same_update_to_the_bit(
    make_service, tmp_path, algorithm
):
    plan = slices(algorithm)
    service = make_service(plan)
    first = train(service, order(plan, 1, 0))
    assert np.isfinite(first.delta).all()
    assert np.abs(first.delta).max() > 0
    assert same(train(service, order(plan, 1, 0)), first)
    assert same(train(make_service(plan, tmp_path / "other"), order(plan, 1, 0)), first)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_round_after_a_void_one_starts_where_the_void_one_did(
    make_service, tmp_path, algorithm
):
    plan = slices(algorithm)
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    second = train(service, order(plan, 2, 1))
    assert same(train(service, order(plan, 2, 1)), second)  # round 2 did not count
    third = train(service, order(plan, 3, 1))
    restarted = make_service(plan)
    assert same(train(restarted, order(plan, 3, 1)), third)

    undisturbed = make_service(plan, tmp_path / "undisturbed")
    train(undisturbed, order(plan, 1, 0))
    assert same(train(undisturbed, order(plan, 3, 1)), third)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn", "scaffold"])
def test_what_a_site_remembers_matters(make_service, tmp_path, algorithm):
    plan = slices(algorithm)
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    remembered = train(service, order(plan, 2, 1))
    assert not same(train(service, order(plan, 2, 0)), remembered)


def test_runs_do_not_share_their_memory(make_service, tmp_path):
    plan = slices("fedbn")
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    other = train(service, order(plan, 1, 0, run="other"))
    fresh = make_service(plan, tmp_path / "fresh")
    assert same(other, train(fresh, order(plan, 1, 0)))
    assert not same(
        train(service, order(plan, 2, 1)),
        train(service, order(plan, 2, 0, run="third")),
    )


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_two_rounds_of_scaffold_are_those_of_the_paper(make_service, drawn, decay):
    plan = slices("scaffold", training__weight_decay=decay)
    service, task = make_service(plan), task_of(plan)
    network, layout = first_model(plan)
    oracle = copy.deepcopy(network).double()
    own = np.zeros(layout.size)  # c_i
    steps, rounds = plan.training.steps, plan.federation.rounds
    for number in (1, 2):
        the_order = order(plan, number, number - 1)
        update = train(service, the_order)
        x, c = the_order.model.astype(np.float64), the_order.control.astype(np.float64)
        y, rates = x.copy(), 0.0
        for k, batch in enumerate(drawn[-steps:]):
            g = _slope(oracle, task, batch, y)
            rate = rate_at((number - 1) * steps + k, rounds * steps, plan.training)
            y -= rate * (g - own + c + decay * y)
            rates += rate
        new = own - c + (x - y) / rates
        assert np.abs(update.delta - (y - x)).max() < 1e-7
        assert np.abs(update.control_delta - (new - own)).max() < 2e-5
        assert np.abs(new - own).max() > 1e-2
        own = new


def _slope(network, task, batch, vector) -> np.ndarray:
    """Gradient in double precision at a vector of parameters."""
    parameters = list(network.parameters())
    with torch.no_grad():
        start = 0
        for p in parameters:
            p.copy_(torch.from_numpy(vector[start : start + p.numel()]).view_as(p))
            start += p.numel()
    loss = task.loss(network(batch.image.double()), batch)
    parts = torch.autograd.grad(loss, parameters)
    return torch.cat([part.flatten() for part in parts]).numpy()


def test_two_rounds_from_an_unchanged_model_are_one_run_of_adam(make_service, drawn):
    plan = slices(training__optimizer="adam")
    network, layout = first_model(plan)
    service = make_service(plan)
    first = order(plan, 1, 0)
    delta = train(service, first).delta
    # The site's own vector: start + delta differs from it in the last bit.
    load_vector(network, layout, first.model)
    alone = _alone(network, plan, drawn)
    between = to_vector(alone, layout)
    assert np.array_equal(between - first.model, delta)

    second = order(plan, 2, 1, model=between)
    end = train(service, second).delta
    load_vector(network, layout, first.model)
    whole = to_vector(_alone(network, plan, drawn), layout)
    assert np.array_equal(whole - between, end)

    forgetful = slices(training__optimizer="adam", training__keep_optimizer_state=False)
    other = make_service(forgetful)
    train(other, order(forgetful, 1, 0))
    reset = train(other, order(forgetful, 2, 1, model=between)).delta
    assert np.abs(reset - end).max() > 1e-4


def _alone(network, plan, batches):
    """One uninterrupted loop in plain PyTorch over the batches so far."""
    task, total = task_of(plan), plan.federation.rounds * plan.training.steps
    optimizer = build_optimizer(network, plan.training)
    network.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate_at(step, total, plan.training)
        optimizer.zero_grad()
        task.loss(network(batch.image), batch).backward()
        optimizer.step()
    return network


def test_patches_differ_between_rounds_and_sites(make_service, drawn):
    plan = slices()
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    service.name = "south"
    train(service, order(plan, 1, 0))
    train(service, order(plan, 2, 1))
    firsts = [drawn[i].image for i in (0, 3, 6)]
    assert not torch.equal(firsts[0], firsts[1])
    assert not torch.equal(firsts[1], firsts[2])


def test_training_leaves_the_process_random_state_alone(make_service):
    plan = slices(model__dropout=0.5)
    service = make_service(plan)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = train(service, order(plan, 1, 0))
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(8)
    assert same(train(service, order(plan, 1, 0)), first)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"plan_digest": "0" * 64}, ContributionError, "order for plan 000000000000"),
        ({"model_digest": "0" * 64}, ContributionError, "not the one announced"),
        ({"model": np.zeros(3, np.float32)}, ModelError, r"float32\[3\]"),
    ],
)
def test_an_order_that_was_not_approved_leaves_no_trace(
    make_service, tmp_path, changes, error, words
):
    plan = slices()
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    before = files(tmp_path / "site")
    with pytest.raises(error, match=words):
        train(service, order(plan, 2, 1, **changes))
    assert files(tmp_path / "site") == before
    after = train(service, order(plan, 2, 1))
    assert same(train(make_service(plan), order(plan, 2, 1)), after)


def test_hello_and_judge_refuse_what_was_not_approved(make_service):
    plan = slices()
    service = make_service(plan)
    layout = first_model(plan)[1]
    roster = service.hello(Hello("run", plan.digest, "", layout.digest))
    assert (roster.site, roster.accepted) == ("north", roster.found)
    assert min(roster.train, roster.validation, roster.test) > 0
    with pytest.raises(ContributionError, match="nothing was done"):
        service.hello(Hello("run", "0" * 64, "", layout.digest))
    with pytest.raises(ContributionError, match="another layout"):
        service.hello(Hello("run", plan.digest, "", "0" * 64))
    model = order(plan, 1, 0).model
    with pytest.raises(ContributionError, match="nothing was done"):
        service.judge(judge_order(plan, model, plan_digest="0" * 64))


def test_a_lost_or_damaged_memory_is_named_and_never_guessed(make_service, tmp_path):
    plan = slices()
    train(make_service(plan), order(plan, 1, 0))
    folder = tmp_path / "site" / "state" / "run"
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (None, b"", whole[:100], whole[:-1], bytes(flipped), b"x" * 999):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StoreError, match="training state of round 1"):
            train(make_service(plan), order(plan, 2, 1))
    with pytest.raises(StoreError, match="training state of round 7"):
        train(make_service(plan), order(plan, 8, 7))


def test_a_loss_that_is_not_finite_leaves_the_memory_as_it_was(make_service, tmp_path):
    plan = slices("fedbn")
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    before = files(tmp_path / "site")
    poison = order(plan, 2, 1)
    poison.model[:] = np.nan
    poison = replace(poison, model_digest=digest_of(poison.model))
    with pytest.raises(TrainingError, match="loss of nan"):
        train(service, poison)
    assert files(tmp_path / "site") == before
    after = train(service, order(plan, 2, 1))
    assert same(train(make_service(plan), order(plan, 2, 1)), after)


def test_fedbn_keeps_norm_layers_at_the_site_through_a_restart(make_service):
    plan = slices("fedbn")
    service = make_service(plan)
    network, layout = first_model(plan)
    names = dict(network.named_parameters())
    assert layout.local
    assert all("norm" in n or ".N." in n or ".adn." in n for n in layout.local), names
    model = order(plan, 1, 0).model
    untrained = service.judge(judge_order(plan, model)).sums
    train(service, order(plan, 1, 0))
    trained = service.judge(judge_order(plan, model, since=1)).sums
    assert any(not np.array_equal(trained[k], untrained[k]) for k in trained)
    restarted = make_service(plan).judge(judge_order(plan, model, since=1)).sums
    assert all(np.array_equal(trained[k], restarted[k]) for k in trained)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn"])
@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_model_is_judged_the_same_whatever_was_trained_in_between(
    make_service, algorithm, part
):
    plan = slices(algorithm)
    service = make_service(plan)
    model = order(plan, 9, 0).model
    before = service.judge(judge_order(plan, model, part=part)).sums
    assert before
    train(service, order(plan, 1, 0))
    train(service, order(plan, 2, 1))
    service.judge(judge_order(plan, order(plan, 3, 0).model, since=2))
    after = service.judge(judge_order(plan, model, part=part)).sums
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_judging_leaves_training_alone(make_service, tmp_path):
    plan = slices(model__norm="batch")
    service = make_service(plan)
    train(service, order(plan, 1, 0))
    service.judge(judge_order(plan, order(plan, 5, 0).model, since=1))
    second = train(service, order(plan, 2, 1))
    quietly = make_service(plan, tmp_path / "quiet")
    train(quietly, order(plan, 1, 0))
    assert same(train(quietly, order(plan, 2, 1)), second)


def test_a_judgement_is_the_sum_over_the_cases_of_its_part(make_service, site_cases):
    plan = slices()
    task, model = task_of(plan), order(plan, 1, 0).model
    service = make_service(plan)
    said = service.judge(judge_order(plan, model, part="test"))
    assert (said.site, said.round, said.part) == ("north", 1, "test")
    network = build_network(plan, task.out_channels, plan.plan.seed)
    load_vector(network, layout_of(network, keep_norms_local=False), model)
    network.eval()
    sums = {}
    for index, record in enumerate(site_cases.data.test):
        seed = int(plan_seed(plan, "north", "test", index).generate_state(1)[0])
        case = site_cases.store.open(record)
        sums = add_sums(sums, task.judge(network, case, seed, torch.device("cpu")))
    assert sums.keys() == said.sums.keys()
    assert all(np.array_equal(sums[k], said.sums[k]) for k in sums)


@pytest.mark.parametrize("run", ["../../evil", "", "a/b", "x" * 65, ".hidden"])
def test_a_run_s_id_can_t_lead_out_of_the_site_s_folder(make_service, tmp_path, run):
    plan = parse_plan(SLICES)
    with pytest.raises(ContributionError, match="no plain name"):
        train(make_service(plan), order(plan, 1, 0, run=run))
    assert not list(tmp_path.rglob("*.state"))


def test_a_pooled_site_has_all_members_cases_and_takes_all_their_steps(
    make_site, tmp_path, drawn
):
    plan = parse_plan(SLICES)
    members = [
        make_site(tmp_path / name, plan, vendor=vendor)
        for vendor, name in enumerate(["north", "south"])
    ]
    alone = [open_site(member, plan).hello(_hello(plan)) for member in members]
    pooled = open_site(
        make_site(tmp_path / "pooled", plan, source=None, members=members), plan
    )
    roster = pooled.hello(_hello(plan))
    for what in ("train", "validation", "test", "accepted", "found"):
        assert getattr(roster, what) == sum(getattr(r, what) for r in alone)
    update = pooled.train(order(plan, 1, 0), quiet)
    assert update.cases == roster.train
    assert update.steps == len(drawn) == 2 * plan.training.steps


def test_with_epochs_a_site_takes_steps_by_its_cases_and_pooled_takes_their_sum(
    make_site, tmp_path, drawn
):
    plan = slices(training__steps=None, training__epochs=3.0, training__batch_size=2)
    folders = [
        make_site(tmp_path / name, plan, vendor=vendor)
        for vendor, name in enumerate(["north", "south"])
    ]
    folders.append(
        make_site(tmp_path / "pooled", plan, source=None, members=folders[:2])
    )
    taken = []
    for folder in folders:
        update = open_site(folder, plan).train(order(plan, 1, 0), quiet)
        taken.append(update.steps)
        assert update.steps == pytest.approx(3.0 * update.cases / 2, abs=1)
    assert taken[2] == taken[0] + taken[1] == len(drawn) - taken[0] - taken[1]


def test_a_public_site_only_tests(make_site, tmp_path):
    plan = parse_plan(SLICES)
    hospital = open_site(make_site(tmp_path / "north", plan), plan).hello(_hello(plan))
    public = open_site(make_site(tmp_path / "public", plan, public=True), plan)
    roster = public.hello(_hello(plan))
    assert (roster.train, roster.validation) == (0, 0)
    assert roster.test == hospital.train + hospital.validation + hospital.test
    assert public.judge(judge_order(plan, order(plan, 1, 0).model)).sums == {}


def _hello(plan) -> Hello:
    return Hello("run", plan.digest, "", first_model(plan)[1].digest)
