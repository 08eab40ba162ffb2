"""The line between site and hub, against Flower's own SuperLink: a contract.

`client/fleet.py`, `client/node_key.py`, `server/superlink.py` and `server/hub_grid.py`
rest on Flower's internals. Whatever of that changes with another version fails here.
"""

import datetime
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import flwr.app.message.message
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

import client.fleet
import client.node_key
from client.fleet import Fleet, HubAddress
from client.resident import serve
from common.errors import JoinError, KeyInUseError, StoppedError
from common.exchange import Hello, Roster
from common.keys import openssh_line
from server.asking import Line, ask
from server.hub_grid import HubGrid
from server.presence import Presence
from server.superlink import SuperLinkAddress, SuperLinkLine, node_key_bytes
from server.verifying import Verifier
from tests.federation.chain import grid_of
from tests.federation.pki import Authority

FLOWER = "1.41.0"


@dataclass
class Hub:
    """A SuperLink with one node on its register."""

    authority: Authority
    address: SuperLinkAddress
    key: ec.EllipticCurvePrivateKey
    folder: Path

    def line(self) -> SuperLinkLine:
        return SuperLinkLine(self.address)

    def fleet(self, key: ec.EllipticCurvePrivateKey, said: list[str]) -> Fleet:
        pair = self.authority.issue("north")
        ca = self.authority.certificate
        hub = HubAddress("localhost", self.address.port, ca, pair.certificate, pair.key)
        return Fleet(hub, key, said.append, threading.Event())


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("superlink")
    authority = Authority(folder / "ca")
    pair = authority.issue("loopback", hosts=("localhost", "127.0.0.1"))
    secret = secrets.token_bytes(32)
    (folder / "secret").write_bytes(secret)
    port = free_port()
    argv = [
        Path(sys.executable).with_name("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-certfile", pair.certificate, "--ssl-keyfile", pair.key),
        *("--ssl-ca-certfile", authority.certificate),
        *("--database", folder / "state.db", "--enable-supernode-auth"),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", folder / "secret"),
    ]
    env = {
        **os.environ,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        made = Hub(
            authority,
            SuperLinkAddress(port, authority.certificate, secret),
            ec.generate_private_key(ec.SECP384R1()),
            folder,
        )
        with made.line() as line:
            until(line.is_up, 120)
            line.register(node_key_bytes(openssh_line(made.key.public_key())))
        yield made
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(true: Callable[[], object], within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@contextmanager
def echoing(hub: Hub) -> Iterator[int]:
    """A site that sends every order's content back."""
    stop, fleet = threading.Event(), hub.fleet(hub.key, [])

    def work() -> None:
        while not stop.is_set():
            message = fleet.pull()
            if message is None:
                stop.wait(0.05)
            else:
                fleet.push(Message(message.content, reply_to=message), 0.1)

    with fleet:
        node = fleet.activate(None)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield node
        finally:
            stop.set()
            thread.join()


def wait_for_reply(grid: HubGrid, asked: Iterable[str]) -> Message:
    replies: list[Message] = []
    until(lambda: replies.extend(grid.pull_messages(list(asked))) or replies, 60)
    return replies[0]


def vector(size_bytes: int) -> RecordDict:
    data = np.random.default_rng(1).integers(0, 255, size_bytes, dtype=np.uint8)
    array = Array("u1", data.shape, "raw", data.tobytes())
    return RecordDict({"f": ConfigRecord({"a": 1}), "v": ArrayRecord({"m": array})})


def test_flower_is_the_version_that_was_looked_at():
    assert version("flwr") == FLOWER


@pytest.mark.parametrize("size_bytes", [10, 200_000])
def test_an_order_and_its_answer_pass_unchanged(hub, size_bytes):
    with echoing(hub) as node, hub.line() as line, line.channel() as channel:
        grid = grid_of(channel, hub.folder, node)
        assert list(grid.get_node_ids()) == [node]
        content = vector(size_bytes)
        sent = [Message(content, node, "train", ttl=600)]
        (message_id,) = grid.push_messages(sent)
        replies: list[Message] = []
        until(lambda: replies.extend(grid.pull_messages([message_id])) or replies, 60)
        assert replies[0].content["v"]["m"].data == content["v"]["m"].data
        assert replies[0].metadata.reply_to_message_id == message_id


@pytest.mark.parametrize("where", ["PullObject", "PushMessages"])
def test_a_run_that_is_stopped_ends_no_service(hub, tmp_path, where, monkeypatch):
    """Be an order of it on the way at that moment, or an answer."""
    stop, there, over = threading.Event(), threading.Event(), threading.Event()
    fleet = hub.fleet(hub.key, [])
    call = getattr(fleet._client, where)

    def meanwhile(request: object) -> object:
        there.set()
        assert over.wait(30)
        return call(request)

    monkeypatch.setattr(fleet._client, where, meanwhile)

    def work(message: Message, context: object) -> Message:
        return Message(message.content, reply_to=message)

    key = node_key_bytes(openssh_line(hub.key.public_key()))
    with hub.line() as line, fleet:
        thread = threading.Thread(target=serve, args=(tmp_path, fleet, stop, work))
        thread.start()
        try:
            until(lambda: line.nodes()[key][1])
            node = line.nodes()[key][0]
            for wait in (lambda *_: there.wait(30), wait_for_reply):
                with line.channel() as channel:
                    grid = grid_of(channel, hub.folder, node)
                    order = Message(vector(10), node, "train", ttl=600)
                    assert wait(grid, grid.push_messages([order]))
                over.set()
        finally:
            stop.set()
            over.set()
            thread.join()


def test_who_answered_in_time_is_not_late_behind_one_who_is(hub):
    silent = ec.generate_private_key(ec.SECP384R1()).public_key()
    key = node_key_bytes(openssh_line(silent))
    with echoing(hub) as node, hub.line() as line, line.channel() as channel:
        line.register(key)
        nodes = {"late": line.nodes()[key][0], "prompt": node}
        grid = grid_of(channel, hub.folder, *nodes.values())
        way = Line(grid, Verifier(), Presence(grid, rejoin_s=60.0))
        orders = dict.fromkeys(nodes, Hello("run", "digest", "plan", "layout"))
        replies = list(ask(way, nodes, orders, Roster, 3.0))
        line.unregister(nodes["late"])
    # An echo is no roster; what counts is that it was taken at all.
    assert [reply.outcome for reply in replies] == ["late", "refused"]


def test_a_grid_has_only_the_nodes_of_its_run_and_can_be_left(hub):
    stopped: list[bool] = []
    with echoing(hub) as node, hub.line() as line, line.channel() as channel:
        assert not list(grid_of(channel, hub.folder).get_node_ids())
        grid = grid_of(channel, hub.folder, node, stopped=lambda: bool(stopped))
        stopped.append(True)
        for call in (grid.get_node_ids, lambda: grid.pull_messages(["x"])):
            with pytest.raises(StoppedError, match="server resume"):
                list(call())


def test_a_node_that_left_is_gone_at_once_and_comes_again_as_another(hub):
    with hub.line() as line, line.channel() as channel:
        with echoing(hub) as node:
            grid = grid_of(channel, hub.folder, node)
            first = grid.arrivals()[node]
        assert node not in grid.arrivals()
        assert Presence(grid, rejoin_s=0.0).is_given_up(node)
        with echoing(hub):
            assert grid.arrivals()[node] != first


def test_the_same_key_twice_at_once_is_refused_unless_the_first_is_known_to_be_dead(
    hub,
):
    with echoing(hub) as node, hub.fleet(hub.key, []) as second:
        with pytest.raises(KeyInUseError, match="second place"):
            second.activate(None)
        assert second.activate(left_over=node) == node


def test_a_key_that_is_not_on_the_register_is_refused(hub, monkeypatch):
    monkeypatch.setattr(client.fleet, "_REGISTER_S", 3.0)
    stranger = ec.generate_private_key(ec.SECP384R1())
    with hub.fleet(stranger, []) as fleet, pytest.raises(JoinError):
        fleet.activate(None)


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_site_whose_clock_is_off_by_an_hour_takes_part(hub, hours, monkeypatch):
    def wrong() -> datetime.datetime:
        now = datetime.datetime.now(datetime.UTC)
        return now + datetime.timedelta(hours=hours)

    monkeypatch.setattr(client.node_key, "machine_time", wrong)
    with echoing(hub) as node, hub.line() as line, line.channel() as channel:
        grid = grid_of(channel, hub.folder, node)
        order = Message(vector(10), node, "train", ttl=60)
        monkeypatch.setattr(flwr.app.message.message, "now", wrong)  # the answer's
        (message_id,) = grid.push_messages([order])
        until(lambda: list(grid.pull_messages([message_id])))


def test_a_node_that_is_shut_out_is_off_the_list(hub):
    stranger = ec.generate_private_key(ec.SECP384R1())
    key = node_key_bytes(openssh_line(stranger.public_key()))
    with hub.line() as line:
        line.register(key)
        node, online = line.nodes()[key]
        assert not online
        line.unregister(node)
        assert key not in line.nodes()


def test_a_site_goes_on_beating_whatever_a_beat_runs_into(hub, monkeypatch):
    """Short of memory, say; the SuperLink would ask it nothing more."""
    beats: list[object] = []

    def short_of_memory(request: object) -> None:
        beats.append(request)
        raise MemoryError

    monkeypatch.setattr(client.fleet, "HEARTBEAT_S", 0.01)
    said: list[str] = []
    fleet = hub.fleet(hub.key, said)
    fleet._client.SendNodeHeartbeat = short_of_memory
    with fleet:
        thread = threading.Thread(target=fleet._beat)
        thread.start()
        until(lambda: len(beats) > 3)
    thread.join()
    assert said[0] == "no heartbeat reached the hub (MemoryError)"
