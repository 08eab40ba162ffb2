"""A hospital without a line, by real processes and files, beside one with a line."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path

import pytest

from client.audit import read_audit
from deploy import rehearsal
from deploy.run_state import RUNS, read_run
from server.record import RunRecord
from tests.deploy.conftest import Running, start, zygote

__all__ = ["start", "zygote"]

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
OFFLINE, ONLINE = "east", "north"
CHANGES = [
    ("rounds = 5", "rounds = 2"),
    ("every = 5", "every = 2"),
    ('secure_aggregation = "on"', 'secure_aggregation = "off"'),
]


@pytest.fixture
def fedct(start):
    """Runs a command in a process of its own, which has imported everything."""
    return lambda *words: start(*words).end()


@pytest.fixture
def world(tmp_path, monkeypatch, fedct) -> Path:
    """A hub and two hospitals that have joined, and a plan."""

    def typed(say: object, *words: object) -> None:
        said = fedct(*words)
        assert said.code == 0, said.err

    monkeypatch.setattr(rehearsal, "_fedct", typed)
    monkeypatch.setattr(rehearsal, "SITES", (OFFLINE, ONLINE))
    rehearsal._phantoms(tmp_path / "phantoms", "tiny", print)
    rehearsal._join(tmp_path, tmp_path / "hub", 0, print)
    text = files("deploy").joinpath("plans/rehearsal.toml").read_text()
    for old, new in CHANGES:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "plan.toml").write_text(text)
    return tmp_path


@contextmanager
def started(start: Callable[..., Running], who: str, folder: Path) -> Iterator[Running]:
    """`fedct server start` or `fedct client start`, until the block is left."""
    process = start(who, "start", folder)
    yield process
    if process.pid not in process.ended:
        process.send(signal.SIGTERM)
        process.end()


def next_order(hub: Path, done: set[str]) -> Path | None:
    """The next file to bring to the hospital, or None when the run has ended."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for path in (hub / "parcels/out" / OFFLINE).glob("*.order"):
            if path.name not in done:
                return path
        run = read_run(hub / RUNS / "files")
        assert run.state in ("queued", "running", "finished"), run.why
        if run.state == "finished":
            return None
        time.sleep(0.05)
    raise AssertionError(read_run(hub / RUNS / "files"))


def walk(hub: Path, stick: Path) -> Iterator[Path]:
    """Bring one order after another on the stick."""
    done: set[str] = set()
    while (order := next_order(hub, done)) is not None:
        done.add(order.name)
        copy = stick / order.name
        shutil.copy(order, copy)
        yield copy


@pytest.mark.timeout(900)
def test_a_run_by_files_ends_bit_equal_though_its_hub_is_killed_meanwhile(
    world, start, fedct
):
    hub, site, stick = world / "hub", world / OFFLINE, world / "stick"
    stick.mkdir()
    with ExitStack() as stack:
        running = stack.enter_context(started(start, "server", hub))
        stack.enter_context(started(start, "client", world / ONLINE))
        with started(start, "client", site):
            rehearsal._ask(hub, world / "plan.toml", "live", print)
            rehearsal._until(hub, "live", lambda run: run.state == "finished", print)
        ask = ("server", "run", hub, world / "plan.toml", "--name", "files")
        assert fedct(*ask, "--parcel", OFFLINE, "--no-follow").code == 0
        brought = []
        for order in walk(hub, stick):
            brought.append(order.name)
            if "4-judge" in order.name:
                running.send(signal.SIGKILL)
                running.end()
            said = fedct("client", "work", site, order)
            assert said.code == 0, said.err
            if "4-judge" in order.name:
                running = stack.enter_context(started(start, "server", hub))
            said = fedct("server", "import", hub, order.with_suffix(".answer"))
            assert said.code == 0, said.err
    assert brought == [
        f"{OFFLINE}-files-{number}-{what}.order"
        for number, what in enumerate(("hello", "train", "train", "judge", "judge"), 1)
    ]
    assert rehearsal._digest(hub / RUNS / "files") == rehearsal._digest(
        hub / RUNS / "live"
    )
    report = (hub / RUNS / "files/report.json").read_bytes()
    (arm,) = RunRecord.model_validate_json(report).arms
    rows = [(row.site, row.outcome) for r in arm.rounds for row in r.sites]
    assert rows == [(OFFLINE, "accepted"), (ONLINE, "accepted")] * 2
    log = read_audit(site)
    assert log.broken is None
    assert [line.kind for line in log.lines[-5:]] == [
        "hello",
        "train",
        "train",
        "judge",
        "judge",
    ]
    assert not any((hub / "parcels/out" / OFFLINE).iterdir())
    said = fedct("server", "import", hub, order.with_suffix(".answer"))
    assert said.code == 40
    assert "a run that has ended" in said.err
