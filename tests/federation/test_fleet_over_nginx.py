"""A site's own line through a proxy, the hub's nginx and Flower's SuperLink.

All are processes or servers of their own, on mutual TLS and node keys.
"""

import datetime
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict

import client.node_key
from client.echo import echo
from client.fleet import Fleet
from common.errors import JoinError, TransportError
from common.exchange import TrainOrder, Update
from common.keys import openssh_line
from common.parameters import digest_of
from common.parts import PART_BYTES
from deploy.nginx_run import reload
from deploy.traffic import traffic_by_site
from server.asking import Line, ask
from server.hub_grid import HubGrid
from server.part_files import PARTS
from server.presence import Presence
from server.superlink import SuperLinkAddress, SuperLinkLine, node_key_bytes
from server.verifying import Verifier
from tests.federation.chain import (
    Federation,
    free_port,
    grid_of,
    needs_nginx,
    running,
    until,
    wait_for,
)
from tests.federation.connect_proxy import connect_proxy
from tests.federation.pki import DAY

pytestmark = needs_nginx
PASSWORD, USER = "ward a:p@ss", "ward%20a:p%40ss"


@contextmanager
def superlink(federation: Federation) -> Iterator[SuperLinkLine]:
    """Flower's own program, and the coordinator's line to it."""
    pair, root = federation.loopback, federation.root
    (root / "secret").write_bytes(os.urandom(32))
    argv = [
        Path(sys.executable).with_name("flower-superlink"),
        *("--host", "127.0.0.1", "--port", str(federation.superlink_port)),
        *("--ssl-certfile", pair.certificate, "--ssl-keyfile", pair.key),
        *("--ssl-ca-certfile", federation.authority.certificate),
        *("--database", root / "state.db", "--enable-supernode-auth"),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", root / "secret"),
    ]
    env = {
        **os.environ,
        "FLWR_HOME": str(root / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
    with (root / "superlink.log").open("ab") as log:
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        wait_for(federation.superlink_port, 120)
        address = SuperLinkAddress(
            federation.superlink_port,
            federation.authority.certificate,
            (root / "secret").read_bytes(),
        )
        with SuperLinkLine(address) as line:
            until(line.is_up, 60)
            yield line
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("federation"), free_port())
    key = ec.generate_private_key(ec.SECP384R1())
    with superlink(federation) as line, running(federation.hub) as hub:
        line.register(node_key_bytes(openssh_line(key.public_key())))
        yield SimpleNamespace(f=federation, line=line, key=key, hub=hub)


@contextmanager
def echoing(fleet: Fleet) -> Iterator[int]:
    """A site that sends every order's content back; its node id."""
    stop = threading.Event()

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


taken: list[Message] = []


def order_of(fleet: Fleet) -> bool:
    """Whether an order came; it is in `taken`."""
    if (message := fleet.pull()) is not None:
        taken.append(message)
    return bool(taken)


def vector(size_bytes: int) -> RecordDict:
    array = Array("u1", (size_bytes,), "raw", bytes(size_bytes))
    return RecordDict({"v": ArrayRecord({"m": array})})


def reply_to(grid: HubGrid, asked: str) -> Message:
    replies: list[Message] = []
    until(lambda: replies.extend(grid.pull_messages([asked])) or replies, 120)
    return replies[0]


def order_and_answer(chain, node: int, size_bytes: int = 12_000_000) -> None:
    """An order goes to the node and its content comes back unchanged."""
    data = np.random.default_rng(1).integers(0, 255, size_bytes, dtype=np.uint8)
    content = RecordDict(
        {"v": ArrayRecord({"m": Array("u1", data.shape, "raw", data.tobytes())})}
    )
    with chain.line.channel() as channel:
        grid = grid_of(channel, chain.f.root, node)
        (message_id,) = grid.push_messages([Message(content, node, "train", ttl=600)])
        reply = reply_to(grid, message_id)
    assert reply.content["v"]["m"].data == data.tobytes()


@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "by proxy"])
def test_orders_pass_and_a_broken_tunnel_is_opened_again(chain, proxied):
    hub = f"127.0.0.1:{chain.f.hub.port}"
    with connect_proxy(password=PASSWORD, allowed=[hub]) as proxy:
        url = f"http://{USER}@127.0.0.1:{proxy.port}" if proxied else None
        said: list[str] = []
        address = chain.f.address(proxy=url)
        with echoing(Fleet(address, chain.key, said.append, threading.Event())) as node:
            order_and_answer(chain, node)
            tunnels = len(proxy.asked)
            proxy.cut()
            order_and_answer(chain, node)
        assert "p@ss" not in str(said)
        assert "p%40ss" not in str(said)
        assert (tunnels > 0, len(proxy.asked) > tunnels) == (proxied, proxied)
    seen = traffic_by_site(chain.f.hub.folder)["north"]
    assert seen.sent_bytes > 2 * 12_000_000


def test_an_answer_that_the_hub_does_not_take_is_not_dropped_in_silence(
    chain, monkeypatch
):
    said: list[str] = []
    with Fleet(chain.f.address(), chain.key, said.append, threading.Event()) as fleet:
        node = fleet.activate(None)
        with chain.line.channel() as channel:
            grid = grid_of(channel, chain.f.root, node)
            grid.push_messages([Message(RecordDict(), node, "train", ttl=600)])
            order = fleet.pull()
            full = SimpleNamespace(stored=False)
            monkeypatch.setattr(fleet._client, "PushObject", lambda request: full)
            with pytest.raises(TransportError, match="not taken by the hub"):
                fleet.push(Message(RecordDict(), reply_to=order), 0.1)
    assert sum("sent again" in sentence for sentence in said) == 3


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.unlink(), "a part of it was not brought"),
        (lambda path: path.write_bytes(b"x"), "part 2 is not what it is called"),
        (None, "larger than any answer may be"),
    ],
)
def test_an_answer_whose_parts_are_not_there_is_refused_and_nothing_stays(
    chain, harm, words
):
    """As of a site that lies; the next answer counts."""
    data = bytes(PART_BYTES) + os.urandom(PART_BYTES if harm else 40_000_000)
    content = RecordDict({"v": ArrayRecord({"m": Array("u1", (1,), "raw", data)})})
    brought = chain.f.root / PARTS / "in/north"
    stop = threading.Event()
    with Fleet(chain.f.address(), chain.key, print, stop) as fleet:
        node = fleet.activate(None)
        with chain.line.channel() as channel:
            grid = grid_of(channel, chain.f.root, node)
            for harmed in (True, False):
                order = Message(vector(12), node, "train", ttl=600)
                (asked,) = grid.push_messages([order])
                until(lambda: order_of(fleet))
                answer = content if harmed else vector(1000)
                fleet.push(Message(answer, reply_to=taken.pop()), 0.1)
                if harmed and harm:
                    harm(brought / hashlib.sha256(data[PART_BYTES:]).hexdigest())
                reply = reply_to(grid, asked)
                assert reply.has_error() == harmed
                if harmed:
                    assert words in reply.error.reason
    assert not harm or not list(brought.iterdir())


@pytest.mark.parametrize("harm", ["damaged", "absent"])
def test_an_order_whose_parts_can_t_be_read_is_sent_again(chain, harm, monkeypatch):
    said: list[str] = []
    model = np.random.default_rng(3).random(400_000, np.float32)
    order = TrainOrder("r", "d", 1, 0, model, digest_of(model))
    with (
        echoing(
            Fleet(chain.f.address(), chain.key, said.append, threading.Event())
        ) as n,
        chain.line.channel() as channel,
    ):
        grid = grid_of(channel, chain.f.root, n)
        lay_out, laid = grid._parts.lay_out, []

        def harmed(digest: str, content: memoryview) -> None:
            laid.append(digest)
            lay_out(digest, content)
            path = chain.f.root / PARTS / "out" / digest
            if len(laid) == 1:
                path.write_bytes(b"x") if harm == "damaged" else path.unlink()

        monkeypatch.setattr(grid._parts, "lay_out", harmed)
        line = Line(grid, Verifier(), Presence(grid, rejoin_s=60.0))
        (reply,) = ask(line, {"north": n}, {"north": order}, Update, 60.0)
    assert len(laid) == 2
    assert "asking for it again" in said[0]
    assert reply.outcome == "refused"  # an echo is no update; it came


# --- the echo -------------------------------------------------------------------------


def nodes(chain) -> list:
    return sorted(chain.line.nodes().items())


def test_an_echo_comes_back_and_nothing_came_of_it(chain):
    before = nodes(chain)
    echo(chain.f.address(), chain.key)
    assert nodes(chain) == before
    stop = threading.Event()
    with echoing(Fleet(chain.f.address(), chain.key, print, stop)) as node:
        during = nodes(chain)
        echo(chain.f.address(), chain.key)  # a service runs with the same key
        assert nodes(chain) == during
        order_and_answer(chain, node, 10)


@pytest.mark.parametrize("hours", [-3, 3])
def test_an_echo_comes_back_to_a_site_whose_clock_is_off(chain, hours, monkeypatch):
    off = datetime.timedelta(hours=hours)
    monkeypatch.setattr(
        client.node_key,
        "machine_time",
        lambda: datetime.datetime.now(datetime.UTC) + off,
    )
    echo(chain.f.address(), chain.key)


def test_a_site_waits_for_a_hub_that_does_not_know_its_key_yet(chain):
    key = ec.generate_private_key(ec.SECP384R1())
    said: list[str] = []

    def tell(sentence: str) -> None:
        if not said:
            chain.line.register(node_key_bytes(openssh_line(key.public_key())))
        said.append(sentence)

    with Fleet(chain.f.address(), key, tell, threading.Event()) as fleet:
        assert fleet.activate(None)
    assert said == ["the hub has not this site's key on its register yet; waiting"]


def test_an_echo_with_a_key_that_is_not_on_the_register_says_so(chain):
    with pytest.raises(JoinError, match="not this site's node key on its register"):
        echo(chain.f.address(), ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"begins": -2 * DAY, "ends": -DAY / 24}, "has expired.*fedct client renew"),
        ({"begins": DAY, "ends": 2 * DAY}, "not yet valid.*a clock was wrong"),
        ({"hosts": ["north"]}, "unsuitable certificate purpose.*kit of the hub"),
    ],
)
def test_a_certificate_that_the_hub_refuses_is_told_with_what_to_do(chain, how, words):
    pair = chain.f.authority.issue("north", **how)
    with pytest.raises(JoinError, match=words):
        echo(chain.f.address(pair), chain.key)


def test_an_echo_to_a_hub_whose_superlink_is_down_says_so(tmp_path):
    federation = Federation(tmp_path, free_port())
    key = ec.generate_private_key(ec.SECP384R1())
    with running(federation.hub), pytest.raises(TransportError, match="nobody is beh"):
        echo(federation.address(), key)
    with pytest.raises(TransportError, match="no answer came back"):
        echo(federation.address(), key)


def test_a_revoked_site_is_cut_off_and_told_why(chain):
    """Last, as it takes the site's certificate back."""
    said: list[str] = []
    fleet = Fleet(chain.f.address(), chain.key, said.append, threading.Event())
    with fleet:
        fleet.activate(None)
        fleet.pull()
        chain.f.authority.revoke(chain.f.north)
        reload(chain.f.hub.folder, chain.hub.pid)

        def is_out() -> bool:
            try:
                fleet.pull()
            except JoinError as error:
                return "certificate revoked" in str(error)
            return False

        until(is_out, 30)
    with pytest.raises(JoinError, match=r"certificate revoked.*new folder"):
        echo(chain.f.address(), chain.key)
