"""A hub that asks for more than the plan gives: again and again, or without masks.

Orders to a real site with pictures. The control is the same site with the one rule
taken out that the attack is about.
"""

import numpy as np
import pytest
from flwr.app import Message

import client.app
import client.rules
import client.service
from client.app import serve_order
from client.policy import Policy
from common.exchange import Hello, Judgement, JudgeOrder, TrainOrder, Update
from common.parameters import digest_of
from common.plan_file import plan_toml
from common.wire import from_record, to_record
from deploy.engine import InProcessGrid
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from server.federation import first_model, plan_layout
from tests.attacks.rows import SERVER, row
from tests.client.conftest import slices, write_hospital

TIMES = 20
SITES = {name: 64 * name[0] for name in ("a-site", "b-site", "c-site")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "pictures"
    write_images(folder, hospitals=HOSPITALS[:1], patients=5, seed=1)
    return folder


@pytest.fixture
def hospital(tmp_path, pictures):
    client.app._services.clear()
    InProcessGrid([])  # Flower wants a task identity before it makes messages
    yield write_hospital(
        tmp_path / "a-site", Policy(approve="auto", max_runs=2 * TIMES), pictures
    )
    client.app._services.clear()


def ask(folder, order, kind):
    """What a site answers; a number if it refuses."""
    message = Message(to_record(order), 2, kind)
    message.metadata.__dict__["_message_id"] = "m"
    reply = serve_order(folder, message)[0]
    return reply.error.code if reply.has_error() else reply.content


def enter(folder, plan):
    text, layout = plan_toml(plan, with_simulation=False), plan_layout(plan).digest
    hello = Hello("run", plan.digest, text, layout, SITES)
    assert not isinstance(ask(folder, hello, "query"), int)


def models(plan, times):
    """Models by chance, each with its generator."""
    size = first_model(plan)[1].size
    for trial in range(times):
        rng = np.random.default_rng(trial)
        yield rng.normal(scale=0.1, size=size).astype(np.float32), rng


def looks(folder, plan, times):
    """Digests of the updates that a hub gets for round 1, asked from model on model."""
    found = set()
    for model, _ in models(plan, times):
        order = TrainOrder("run", plan.digest, 1, 0, model, digest_of(model))
        said = ask(folder, order, "train")
        if not isinstance(said, int):
            found.add(digest_of(from_record(said, Update).delta))
        else:
            assert said == 104021
    return found


@row(
    SERVER, "asks one round with model after model", "one question a round", short=True
)
def test_a_round_gives_one_update_however_often_it_is_asked(
    hospital, told, monkeypatch
):
    plan = slices(training__steps=1)
    enter(hospital, plan)
    with monkeypatch.context() as weak_site:
        for name in ("check_question", "note_question"):
            weak_site.setattr(client.rules, name, lambda *given: None)
        weak = looks(hospital, plan, TIMES)
    client.app._services.clear()  # a restart does not make the site forget
    ours = looks(hospital, plan, TIMES // 2)
    client.app._services.clear()
    again = looks(hospital, plan, TIMES)
    told(f"{len(weak)} updates of {TIMES} models", f"{len(ours | again)}, of the first")
    assert (len(weak), len(ours)) == (TIMES, 1)
    assert ours == again <= weak  # asked again, the same one to the bit


def steered(folder, plan, times):
    """How often a vector that the hub sends along decides where an update goes."""
    found = 0
    for number, (model, rng) in enumerate(models(plan, times), start=1):
        push = rng.choice([-5e5, 5e5], model.size).astype(np.float32)
        order = TrainOrder(
            f"run-{number}", plan.digest, 1, 0, model, digest_of(model), push
        )
        said = ask(folder, order, "train")
        if isinstance(said, int):
            assert said == 104026
        else:
            delta = from_record(said, Update).delta
            found += float(np.corrcoef(delta, -np.sign(push))[0, 1]) > 0.99
    return found


@row(
    SERVER,
    "makes all updates but one a known vector, by control variates",
    "only with SCAFFOLD, which has no masks",
    short=True,
)
def test_a_hub_can_not_steer_the_updates_beside_one(hospital, told, monkeypatch):
    plan = slices(training__steps=1)
    enter(hospital, plan)
    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.service, "check_control", lambda *given: None)
        weak = steered(hospital, plan, TIMES)
    ours = steered(hospital, plan, TIMES)
    told(f"{weak} of {TIMES}", f"{ours} of {TIMES}")
    assert (weak, ours) == (TIMES, 0)


def metrics(folder, plan, times):
    """Sums of metrics that a hub gets on the test patients, with model after model."""
    found = []
    for model, _ in models(plan, times):
        order = JudgeOrder("run", plan.digest, 1, 0, "test", model, digest_of(model))
        said = ask(folder, order, "evaluate")
        if not isinstance(said, int):
            found.append(from_record(said, Judgement).sums)
        else:
            assert said == 104021
    return found


@row(
    SERVER,
    "judges model after model on the same patients",
    "one question a round",
    short=True,
)
def test_the_test_patients_judge_one_model_a_round(hospital, told, monkeypatch):
    plan = slices(training__steps=1)
    enter(hospital, plan)
    with monkeypatch.context() as weak_site:
        for name in ("check_question", "note_question"):
            weak_site.setattr(client.rules, name, lambda *given: None)
        weak = metrics(hospital, plan, TIMES)
    ours = metrics(hospital, plan, TIMES)
    told(f"{len(weak)} results of {TIMES} models", f"{len(ours)}")
    assert all(float(sums["cases"][0]) > 0 for sums in weak)
    assert (len(weak), len(ours)) == (TIMES, 1)


def in_the_clear(folder, plan):
    """Whether a hub gets an update by leaving the masks away."""
    model = np.zeros(first_model(plan)[1].size, np.float32)
    order = TrainOrder("run", plan.digest, 1, 0, model, digest_of(model))
    said = ask(folder, order, "train")
    if isinstance(said, int):
        assert said == 105307
        return False
    return float(np.abs(from_record(said, Update).delta).max()) > 0.0


@row(
    SERVER,
    "calls three sites two, so that auto has no masks",
    "the plan's sites",
    short=True,
)
def test_a_hub_can_not_talk_auto_out_of_its_masks(hospital, told, monkeypatch):
    plan = slices(training__steps=2, privacy__secure_aggregation="auto")
    enter(hospital, plan)
    ours = in_the_clear(hospital, plan)
    with monkeypatch.context() as weak_site:  # believes the hub's own number
        weak_site.setattr(client.rules, "sites_of", lambda *given: dict.fromkeys("ab"))
        weak = in_the_clear(hospital, plan)
    told(f"{int(weak)} of 1 update in the clear", f"{int(ours)} of 1")
    assert (weak, ours) == (True, False)
