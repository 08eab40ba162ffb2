"""Laws of the hub's shelf for parts of models and answers, on a real nginx."""

import hashlib
import os
import pwd
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array

from client.fleet import Fleet
from common.errors import JoinError
from common.parts import PART_BYTES, fetch, hand_over
from deploy.nginx_run import reload
from deploy.traffic import traffic_by_site
from server.part_files import PARTS, PartFiles, part_files, sweep
from tests.faults.small_disk import needs_mount, small_disk
from tests.federation.chain import (
    HUB_NAME,
    Federation,
    free_port,
    needs_nginx,
    running,
    until,
)
from tests.federation.connect_proxy import connect_proxy
from tests.federation.pki import Authority

pytestmark = needs_nginx
SAID = b"what a site says"
DIGEST = hashlib.sha256(SAID).hexdigest()
PATH = f"/v1/parts/{DIGEST}"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("with space"), free_port())
    with running(federation.hub) as hub:
        yield SimpleNamespace(f=federation, hub=hub, parts=federation.root / PARTS)


@pytest.fixture
def files(chain):
    return PartFiles(chain.f.root)


def fleet_of(chain, pair=None) -> Fleet:
    key = ec.generate_private_key(ec.SECP384R1())
    return Fleet(chain.f.address(pair), key, print, threading.Event())


def test_what_is_laid_out_is_there_for_sites_and_for_nobody_else(chain, files):
    files.lay_out(DIGEST, memoryview(SAID))
    with chain.f.client(chain.f.north) as north:
        assert north.get(PATH).content == SAID
        assert north.get(f"/v1/parts/{'0' * 64}").status_code == 404
    foreign = Authority(chain.f.root / "foreign").issue("north")
    nameless = chain.f.authority.issue("Not A Site")
    for pair in (None, foreign, nameless):
        with chain.f.client(pair) as stranger:
            assert stranger.get(PATH).status_code == 400
            assert stranger.put(PATH, content=SAID).status_code == 400
    assert not list((chain.parts / "in").iterdir())


def test_what_a_site_brings_is_its_own_and_can_t_be_fetched(chain, files):
    east = chain.f.authority.issue("east")
    with chain.f.client(chain.f.north) as north, chain.f.client(east) as other:
        assert north.put(PATH, content=SAID).status_code == 201
        assert other.put(PATH, content=b"another's").status_code == 201
        assert north.put(PATH, content=SAID).status_code == 204  # once more
        assert [one.get(PATH).status_code for one in (north, other)] == [404, 404]
    assert files.take("north", DIGEST) == SAID
    assert files.take("east", DIGEST) == b"another's"
    files.drop("north", [DIGEST])
    with pytest.raises(FileNotFoundError):
        files.take("north", DIGEST)
    assert files.take("east", DIGEST) == b"another's"


ELSEWHERE = [
    f"/v1/parts/{DIGEST}x",
    f"/v1/parts/{DIGEST[:-1]}",
    f"/v1/parts/{DIGEST.upper()}",
    f"/v1/parts/{DIGEST}/",
    f"/v1/parts/{DIGEST}?x=1",
    f"/v1/parts/../parts/{DIGEST}",
    f"/v1/parts/..%2fin%2feast%2f{DIGEST}",
    f"/v1/parts/%2e%2e/{DIGEST}",
    f"/v1/parts/in/east/{DIGEST}",
    "/v1/parts/",
    "/v1/parts/../../hub.toml",
    f"/V1/parts/{DIGEST}",
]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "MKCOL", "MOVE", "POST"])
def test_no_other_path_or_method_leads_anywhere(chain, files, method):
    files.lay_out(DIGEST, memoryview(SAID))
    head = f"HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nDestination: {PATH}\r\n\r\n"
    with (
        socket.create_connection(("127.0.0.1", chain.f.hub.port), 10) as raw,
        chain.f.tls(chain.f.north).wrap_socket(raw, server_hostname=HUB_NAME) as line,
    ):
        for path in ELSEWHERE:  # as raw bytes: clients tidy paths up
            line.sendall(f"{method} {path} {head}".encode())
            assert line.recv(65536).startswith(b"HTTP/1.1 404 "), path
    if method not in ("GET", "PUT"):
        with chain.f.client(chain.f.north) as north:
            said = north.request(method, PATH, headers={"Destination": PATH + "0"})
            assert said.status_code == 405
    assert [p.name for p in (chain.parts / "out").iterdir()] == [DIGEST]
    assert not list((chain.parts / "in").iterdir())


def test_a_part_that_is_too_large_or_not_whole_leaves_nothing(chain, files):
    with chain.f.client(chain.f.north) as north:
        assert north.put(PATH, content=b"x" * (PART_BYTES + 1)).status_code == 413
    with (
        socket.create_connection(("127.0.0.1", chain.f.hub.port), 10) as raw,
        chain.f.tls(chain.f.north).wrap_socket(raw, server_hostname=HUB_NAME) as line,
    ):
        head = f"PUT {PATH} HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n"
        line.sendall(head.encode() + b"x" * 500_000)
    time.sleep(0.3)
    assert not list((chain.parts / "in").iterdir())
    body = chain.f.hub.folder / "temp" / "body"
    until(lambda: not [path for path in body.rglob("*") if path.is_file()])


def test_200_mb_pass_both_ways_in_flat_memory(chain, files):
    whole = np.random.default_rng(1).bytes(200_000_000)
    array = Array("u1", (len(whole),), "raw", whole)
    before = traffic_by_site(chain.f.hub.folder).get("north")
    with fleet_of(chain) as fleet:
        brought = hand_over(array, fleet._put_part)
        kept = fetch(brought, lambda digest: files.take("north", digest), 1 << 28)
        assert kept.data == whole
        laid = hand_over(array, files.lay_out)
        assert fetch(laid, fleet._get_part, 1 << 28).data == whole
    passed = traffic_by_site(chain.f.hub.folder)["north"]
    for moved in ("received_bytes", "sent_bytes"):
        size = getattr(passed, moved) - (getattr(before, moved) if before else 0)
        assert len(whole) < size < 1.001 * len(whole)
    nginx = psutil.Process(chain.hub.pid)
    peaks = [
        one.memory_info().rss / 1e6 for one in (nginx, *nginx.children(recursive=True))
    ]
    assert max(peaks) < 30, peaks


def test_a_line_that_breaks_costs_a_part_and_not_the_array(chain, files, monkeypatch):
    whole = np.random.default_rng(2).bytes(20 * PART_BYTES)
    key, said = ec.generate_private_key(ec.SECP384R1()), []
    with connect_proxy(allowed=[f"127.0.0.1:{chain.f.hub.port}"]) as proxy:
        address = chain.f.address(proxy=f"http://127.0.0.1:{proxy.port}")
        with Fleet(address, key, said.append, threading.Event()) as fleet:
            web, sent = fleet._client._client, []
            send = web.send

            def counted(request, **more):
                sent.append(request.url.path)
                return send(request, **more)

            def cut():
                until(lambda: len(sent) > 3)
                until(lambda: proxy.cut() or said, every_s=0.002)

            monkeypatch.setattr(web, "send", counted)
            cutting = threading.Thread(target=cut)
            cutting.start()
            array = Array("u1", (len(whole),), "raw", whole)
            parted = hand_over(array, fleet._put_part)
            cutting.join()
    assert len(sent) == 20 + len(said) < 30
    found = fetch(parted, lambda digest: files.take("north", digest), 1 << 28)
    assert found.data == whole


@needs_mount
def test_a_hub_whose_disk_is_full_is_waited_for_and_told(chain, files):
    key, said = ec.generate_private_key(ec.SECP384R1()), []
    whole = Array("u1", (1,), "raw", np.random.default_rng(3).bytes(300_000))
    with (
        small_disk(chain.parts / "in") as disk,
        Fleet(chain.f.address(), key, said.append, threading.Event()) as fleet,
    ):
        disk.fill()
        making_room = threading.Thread(
            target=lambda: (until(lambda: said), disk.free())
        )
        making_room.start()
        parted = hand_over(whole, fleet._put_part)
        making_room.join()
        brought = fetch(parted, lambda digest: files.take("north", digest), 1 << 20)
    assert brought.data == whole.data
    assert "it can't store a part; is its disk full?" in said[0]
    with small_disk(chain.parts / "out") as disk:
        disk.fill()
        with pytest.raises(OSError, match="No space left on device"):
            hand_over(whole, files.lay_out)
        assert [path.name for path in (chain.parts / "out").iterdir()] == ["ballast"]
        disk.free()
        hand_over(whole, files.lay_out)


def test_what_older_orders_laid_out_is_removed_and_what_is_shared_stays(chain, files):
    models = {
        name: [hashlib.sha256(f"{name}{n}".encode()).hexdigest() for n in range(2)]
        for name in "abcde"
    }
    shared = hashlib.sha256(b"shared").hexdigest()
    for name, digests in models.items():
        for digest in (*digests, shared):
            files.lay_out(digest, memoryview(name.encode()))
        files.keep_newest({*digests, shared})
        files.keep_newest({*digests, shared})  # a site is asked again
        files.keep_newest(set())  # an order without a model
    there = {path.name for path in (chain.parts / "out").iterdir()}
    assert there == {shared, *models["c"], *models["d"], *models["e"]}


def test_a_run_begins_with_nothing_and_leaves_nothing(chain, files):
    files.lay_out(DIGEST, memoryview(SAID))  # of a hub that was killed
    with chain.f.client(chain.f.north) as north:
        north.put(PATH, content=SAID)
        with part_files(chain.f.root) as parts:
            assert north.get(PATH).status_code == 404
            parts.lay_out(DIGEST, memoryview(SAID))
            assert north.get(PATH).content == SAID
            north.put(PATH, content=SAID)
            assert parts.take("north", DIGEST) == SAID
    assert not [path for path in chain.parts.rglob("*") if path.is_file()]


def test_equal_parts_are_laid_out_at_once_by_several_hands(chain, files):
    """Zeros, as SCAFFOLD's first control variate: two threads write one part."""
    zeros = Array("u1", (1,), "raw", bytes(16 * PART_BYTES))
    for _ in range(5):
        parted = hand_over(zeros, files.lay_out)
    with fleet_of(chain) as fleet:
        assert fetch(parted, fleet._get_part, 1 << 28).data == zeros.data


def test_while_no_run_goes_on_nothing_stays(chain, files):
    files.lay_out(DIGEST, memoryview(SAID))  # of a run that was killed
    with chain.f.client(chain.f.north) as north:
        north.put(PATH, content=SAID)
        sweep(chain.f.root)
        assert not [path for path in chain.parts.rglob("*") if path.is_file()]
        assert north.put(PATH, content=SAID).status_code == 201  # too late for it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
def test_root_starts_a_hub_for_the_owner_of_its_folder(tmp_path_factory):
    federation = Federation(tmp_path_factory.mktemp("owned"), free_port())
    www = pwd.getpwnam("www-data")
    for folder in (federation.root, *federation.root.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o711)
    federation.hub.folder.mkdir()
    for path in (federation.root, *federation.root.rglob("*")):
        os.chown(path, www.pw_uid, www.pw_gid)
    with running(federation.hub), federation.client(federation.north) as north:
        files = PartFiles(federation.root)
        files.lay_out(DIGEST, memoryview(SAID))
        assert north.get(PATH).content == SAID
        assert north.put(PATH, content=SAID).status_code == 201
        assert files.take("north", DIGEST) == SAID


def test_a_revoked_site_fetches_nothing_more(chain, files):
    files.lay_out(DIGEST, memoryview(SAID))
    west = chain.f.authority.issue("west")
    with fleet_of(chain, west) as fleet:
        assert fleet._get_part(DIGEST) == SAID
        chain.f.authority.revoke(west)
        reload(chain.f.hub.folder, chain.hub.pid)
        with pytest.raises(JoinError):
            until(lambda: not fleet._get_part(DIGEST))
