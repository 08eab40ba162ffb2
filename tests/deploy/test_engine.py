import importlib
import json
import os

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.run import Run

import client.app
import deploy.engine
from client.app import SITE_FOLDER_KEY, SITES_VARIABLE
from common.errors import EngineError
from deploy.engine import InProcessGrid, run_on_ray


@pytest.fixture
def worked(monkeypatch):
    """Stands for the sites: notes who works, and when."""
    log = []

    def site(message, context):
        folder = context.node_config[SITE_FOLDER_KEY]
        log.append(folder)
        return Message(RecordDict(), reply_to=message)

    monkeypatch.setattr(deploy.engine, "client_app", site)
    return log


def messages(count: int) -> list[Message]:
    return [Message(RecordDict(), node, "query") for node in range(2, 2 + count)]


def test_each_site_folder_is_a_node(tmp_path):
    grid = InProcessGrid([tmp_path / "a", tmp_path / "b"])
    assert list(grid.get_node_ids()) == [2, 3]
    made = grid.create_message(RecordDict(), "train", 3, "1")
    assert (made.metadata.dst_node_id, made.metadata.message_type) == (3, "train")


def test_a_site_works_when_its_reply_is_pulled_and_not_before(tmp_path, worked):
    grid = InProcessGrid([tmp_path / name for name in "abc"])
    ids = list(grid.push_messages(messages(3)))
    assert len(set(ids)) == 3
    assert worked == []
    replies = iter(grid.pull_messages(reversed(ids)))
    next(replies)
    assert worked == [str(tmp_path / "c")]
    next(replies)
    assert worked == [str(tmp_path / "c"), str(tmp_path / "b")]


def test_a_reply_exists_once(tmp_path, worked):
    grid = InProcessGrid([tmp_path / "a"])
    (known,) = grid.push_messages(messages(1))
    assert len(list(grid.pull_messages([known]))) == 1
    assert list(grid.pull_messages([known, "unknown"])) == []
    assert len(worked) == 1


def test_send_and_receive_asks_everyone_in_order(tmp_path, worked):
    grid = InProcessGrid([tmp_path / name for name in "abc"])
    replies = list(grid.send_and_receive(messages(3)))
    assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4]
    assert worked == [str(tmp_path / name) for name in "abc"]


def test_an_interrupt_in_a_site_reaches_the_caller(tmp_path, monkeypatch):
    def interrupted(message, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(deploy.engine, "client_app", interrupted)
    grid = InProcessGrid([tmp_path / "a"])
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(messages(1))


def test_the_grid_belongs_to_the_run_it_was_given(tmp_path, worked):
    grid = InProcessGrid([tmp_path / "a"])
    assert grid.run.run_id == 1
    grid.set_run(Run.create_empty(run_id=7))
    assert grid.run.run_id == 7


def test_a_failing_ray_is_an_engine_error_that_names_the_way_out(tmp_path, monkeypatch):
    called = {}

    def broken(**options):
        called.update(options)
        raise RuntimeError("no shared memory")

    # Flower's package has a function of the module's name; take the module.
    module = importlib.import_module("flwr.simulation.run_simulation")
    monkeypatch.setattr(module, "_run_simulation", broken)
    monkeypatch.setenv(SITES_VARIABLE, "")
    with pytest.raises(EngineError, match=r"\(no shared memory\); try --engine in-pro"):
        run_on_ray([tmp_path / "a", tmp_path / "b"], tmp_path, "federated")
    assert called["num_supernodes"] == 2
    assert called["client_app"] is client.app.app
    listed = json.loads(os.environ[SITES_VARIABLE])
    assert listed == [str(tmp_path / "a"), str(tmp_path / "b")]
