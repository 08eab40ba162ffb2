"""How often a site that refuses is asked again."""

from types import SimpleNamespace

import pytest
from flwr.app import Error, Message
from flwr.supercore.task_identity import TaskIdentity

from common.exchange import Hello
from server import admission
from server.admission import Admission


class Refusing:
    """A grid with one node, which has no approval for the plan; counts the askings."""

    def __init__(self):
        self.came, self.asked, self.silent = "first", [], False

    def push_messages(self, messages):
        self.asked += messages
        return [str(len(self.asked))]

    def pull_messages(self, ids):
        if self.silent:
            return []
        error = Error(1053, "its engineer decides")
        return [Message(error, reply_to=self.asked[int(ids[0]) - 1])]

    def arrivals(self):
        return {7: self.came}


@pytest.fixture
def hours(monkeypatch):
    """Lets time pass, a second a step; gives how often the node was asked in it."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(admission, "_now", lambda: clock.now)
    grid = Refusing()
    line = SimpleNamespace(grid=grid, presence=grid, verifier=None)
    hello = Hello(run="run", plan_digest="ab" * 32, plan_toml="", layout_digest="")
    asking = Admission(line, hello, ["north"])

    def passed(seconds: int) -> int:
        before = len(grid.asked)
        for _ in range(seconds):
            asking.step()
            clock.now += 1.0
        return len(grid.asked) - before

    return SimpleNamespace(passed=passed, grid=grid, asking=asking)


def test_a_site_that_waits_for_its_engineer_is_asked_ever_less(hours):
    assert hours.passed(3600) == pytest.approx(3600 / 60, abs=5)
    assert "policy says no" in hours.asking.missing()["node 7"]


def test_a_site_that_was_started_again_is_asked_at_once(hours):
    hours.passed(3600)
    hours.grid.came = "second"
    assert hours.passed(20) >= 3


def test_what_a_site_said_last_stands_until_it_says_something_else(hours):
    said = set()
    hours.passed(2)
    for _ in range(100):
        hours.grid.silent = not hours.grid.silent
        hours.passed(3)
        said.add(hours.asking.missing()["node 7"])
    assert len(said) == 1
    hours.grid.came, hours.grid.silent = "second", True
    hours.passed(2)
    assert hours.asking.missing()["node 7"] == "has not answered yet"
