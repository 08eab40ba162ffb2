"""Each fault of the proxy, measured on real sockets."""

import itertools
import json
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults import proxy as module
from tests.faults.line import AT_CONNECT, IN_HANDSHAKE, Faults
from tests.faults.proxy import Proxy


class Echo(socketserver.ThreadingTCPServer):
    """Sends everything back, and keeps what each connection said."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.said: list[bytearray] = []
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """A reset is what many tests are about."""


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        mine = bytearray()
        self.server.said.append(mine)
        while data := self.request.recv(1 << 16):
            mine += data
            self.request.sendall(data)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.server_address) as running:
        yield running


def connect(proxy: Proxy, timeout_s: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout_s)


def receive(end: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (data := end.recv(size - len(got))):
        got += data
    return bytes(got)


def round_trip(end: socket.socket, data: bytes = b"ping") -> float:
    """Seconds until all of it came back."""
    start = time.perf_counter()
    sender = threading.Thread(target=end.sendall, args=(data,))
    sender.start()
    assert receive(end, len(data)) == data
    sender.join()
    return time.perf_counter() - start


def is_silent(end: socket.socket, for_s: float = 0.15) -> bool:
    """Whether nothing comes and the connection does not end either."""
    end.settimeout(for_s)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    return False


def is_reset(proxy: Proxy) -> bool:
    """Whether a connection is, before or when it is first read from."""
    try:
        with connect(proxy) as end:
            end.recv(1)
    except ConnectionResetError:
        return True
    return False


def eventually(true: object, within_s: float = 3.0) -> bool:
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def test_a_sound_line_changes_nothing_and_counts_every_byte(proxy, echo):
    data = bytes(range(256)) * 4000
    with connect(proxy) as end:
        round_trip(end, data)
        end.shutdown(socket.SHUT_WR)
        assert receive(end, 1) == b""  # the half close arrived, and came back
    counters = proxy.counters
    assert (counters.connections, counters.up, counters.down) == (1, *[len(data)] * 2)
    assert bytes(echo.said[0]) == data


@pytest.mark.parametrize(
    ("faults", "least_s"),
    [
        ({"delay_up_s": 0.1}, 0.1),
        ({"delay_down_s": 0.1}, 0.1),
        ({"delay_up_s": 0.1, "delay_down_s": 0.15}, 0.25),
    ],
)
def test_delay_is_added_to_each_way(proxy, faults, least_s):
    with connect(proxy) as end:
        assert round_trip(end) < 0.1
        proxy.set(**faults)
        assert least_s <= round_trip(end) < least_s + 0.25
        proxy.heal()
        assert round_trip(end) < 0.1


def test_delay_is_no_limit_of_the_rate(proxy):
    proxy.set(delay_up_s=0.1)
    with connect(proxy) as end:
        assert round_trip(end, bytes(5_000_000)) < 1.0


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_limited_rate_is_kept_by_all_connections_together(proxy, way):
    proxy.set(**{f"rate_{way}": 1_000_000})
    ends = [connect(proxy) for _ in range(2)]
    start = time.perf_counter()
    threads = [
        threading.Thread(target=round_trip, args=(end, bytes(150_000))) for end in ends
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0.29 <= time.perf_counter() - start < 0.8
    for end in ends:
        end.close()


@pytest.mark.parametrize("size", [0, 1, 1000, 99_999])
def test_an_upload_is_cut_after_exactly_so_many_bytes(proxy, echo, size):
    proxy.set(cut_up_after=size)
    with connect(proxy) as end:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_until_it_fails(end)
        assert eventually(lambda: proxy.counters.cuts == 1)
    assert eventually(lambda: len(echo.said) == 1 and len(echo.said[0]) == size)


def send_until_it_fails(end: socket.socket) -> None:
    for _ in range(200):
        end.sendall(bytes(50_000))
        time.sleep(0.005)
    raise AssertionError("the line was not cut")


def test_a_download_is_cut_after_exactly_so_many_bytes(proxy):
    proxy.set(cut_down_after=1000)
    with connect(proxy) as end:
        end.sendall(bytes(5000))
        assert len(receive(end, 5000)) == 1000


def test_bytes_vanish_one_way_and_the_connection_stays_silent(proxy, echo):
    with connect(proxy) as end:
        round_trip(end)
        proxy.set(drop_up=True)
        end.sendall(b"lost")
        assert is_silent(end)
        proxy.heal()
        end.settimeout(5)
        end.sendall(b"more")  # after a hole there is no more stream
        assert is_silent(end)
        assert (bytes(echo.said[0]), proxy.counters.dropped_up) == (b"ping", 8)
    with connect(proxy) as end:
        round_trip(end)


def test_answers_vanish_while_questions_arrive(proxy, echo):
    with connect(proxy) as end:
        proxy.set(drop_down=True)
        end.sendall(b"order")
        assert is_silent(end)
        assert bytes(echo.said[0]) == b"order"
        assert proxy.counters.dropped_down == 5


def test_a_frozen_line_refuses_newcomers_and_holds_the_others(proxy, echo):
    with connect(proxy) as end:
        round_trip(end)
        proxy.set(frozen=True)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        end.sendall(b"held")
        assert is_silent(end)
        assert bytes(echo.said[0]) == b"ping"
        proxy.heal()
        end.settimeout(5)
        assert receive(end, 4) == b"held"  # nothing was lost
        with connect(proxy) as other:
            round_trip(other)


def test_a_line_that_toggles_is_down_half_of_the_time(proxy):
    proxy.set(toggle_hz=5)
    refused = []
    until = time.monotonic() + 0.8
    while time.monotonic() < until:
        try:
            connect(proxy).close()
            refused.append(False)
        except ConnectionError:
            refused.append(True)
        time.sleep(0.01)
    changes = sum(a != b for a, b in itertools.pairwise(refused))
    assert 4 <= changes <= 10
    assert 0.25 < sum(refused) / len(refused) < 0.75
    proxy.heal()
    with connect(proxy) as end:
        round_trip(end)


def test_a_connection_is_reset_at_once(proxy, echo):
    proxy.set(reset_after=AT_CONNECT)
    assert is_reset(proxy)
    assert (echo.said, proxy.counters.resets) == ([], 1)


def test_a_tls_handshake_is_reset_on_the_client_s_hello(proxy, echo):
    proxy.set(reset_after=IN_HANDSHAKE)
    context = ssl.create_default_context()
    with connect(proxy) as end, pytest.raises(ConnectionResetError):
        context.wrap_socket(end, server_hostname="localhost")
    assert eventually(lambda: proxy.counters.resets == 1)
    assert proxy.counters.up == 0
    assert not any(echo.said)


def test_a_connection_is_reset_later_at_both_ends(proxy, echo):
    proxy.set(reset_after=10)
    with connect(proxy) as end:
        round_trip(end, b"123456789")
        end.sendall(b"0")
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    assert bytes(echo.said[0]) == b"123456789"


def test_a_whole_connection_is_said_once_more(proxy, echo):
    proxy.set(replay=True)
    with connect(proxy) as end:
        round_trip(end, b"one")
        round_trip(end, b"two")
        assert len(echo.said) == 1
    assert eventually(lambda: [bytes(s) for s in echo.said] == [b"onetwo"] * 2)
    assert proxy.counters.replays == 1


@pytest.mark.parametrize(("way", "offset"), [("up", 0), ("up", 70_000), ("down", 5)])
def test_one_byte_is_altered(proxy, echo, way, offset):
    proxy.set(**{f"flip_{way}_at": offset})
    data = bytes(100_000)
    with connect(proxy) as end:
        end.sendall(data)
        got = receive(end, len(data))
    assert [i for i, byte in enumerate(got) if byte] == [offset]
    assert got[offset] == 0xFF
    assert bool(any(echo.said[0])) == (way == "up")
    assert proxy.counters.flipped == 1


def test_a_server_that_is_not_there_looks_like_a_reset():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with Proxy(unused.getsockname()) as proxy:
            assert is_reset(proxy)


def test_a_port_in_use_is_said_at_the_start(proxy):
    with pytest.raises(OSError, match="in use"):
        Proxy(proxy.upstream, port=proxy.port).start()


def test_stopping_ends_connections_frozen_or_not(echo):
    with Proxy(echo.server_address, faults=Faults(delay_up_s=30)) as proxy:
        end = connect(proxy)
        end.sendall(b"late")
        proxy.set(frozen=True)
    with end:
        assert not is_silent(end, 3)
    proxy.stop()  # twice is no harm


def test_stopping_does_not_wait_for_who_never_reads():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        with Proxy(deaf.getsockname()) as proxy, connect(proxy) as end:
            end.settimeout(0.1)
            with pytest.raises(TimeoutError):
                end.sendall(bytes(100_000_000))
        start = time.perf_counter()
        proxy.stop()
    assert time.perf_counter() - start < 1


def test_it_runs_as_a_process_and_is_switched_by_lines(echo):
    host, port = echo.server_address
    command = [sys.executable, module.__file__, "--upstream", f"{host}:{port}"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        where = int(process.stdout.readline())
        with socket.create_connection((host, where), 5) as end:
            round_trip(end)
            process.stdin.write(json.dumps({"drop_up": True}) + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["up"] == 4
            end.sendall(b"lost")
            assert is_silent(end)
        process.stdin.close()
        assert process.wait(5) == 0
