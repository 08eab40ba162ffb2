"""A TCP line that goes wrong on demand, between any client and any server.

    with Proxy(("127.0.0.1", 8000)) as proxy:
        ...connect to proxy.port...
        proxy.set(delay_up_s=0.5, rate_up=125_000)
        proxy.heal()

    python tests/faults/proxy.py --upstream 127.0.0.1:8000 [--port 9000]

"Up" is from client to server. Faults are switched while connections live; offsets count
from the beginning of each connection and direction. The process prints its port and
then reads one JSON object of `Faults` fields a line, answering each with its counters.

Not covered here: what happens below TCP. A packet is never lost, reordered or sent
twice, as the kernel would mend it; and the handshake of TCP itself is never slow.
"""

import argparse
import asyncio
import json
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.line import AT_CONNECT, Counters, CutError, Faults, ResetError

_CHUNK = 1 << 16
_WINDOW = 256
"""Chunks on their way in one direction, as far as delay goes: 16 MiB."""
_SLICE_S = 0.01
"""A limited rate is kept to within slices of this length."""
_REPLAY_S = 2.0
"""How long a server may take to end a connection that was replayed to it."""


@dataclass(eq=False)
class Flow:
    """One direction of one connection."""

    way: str
    """"up" or "down"."""
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    queue: asyncio.Queue[tuple[float, bytes | None]] = field(
        default_factory=lambda: asyncio.Queue(_WINDOW)
    )
    """When a chunk is due, and the chunk; empty at the end, None after a reset."""
    seen: int = 0
    """Bytes taken off the queue."""
    deaf: bool = False
    """Whether bytes were lost."""


class Proxy:
    """The line; a thread of its own from `start` to `stop`."""

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        faults: Faults | None = None,
    ) -> None:
        """Prepare a line to `upstream`; port 0 takes a free one."""
        self.upstream = upstream
        self.host, self.port = host, port
        self.faults = faults or Faults()
        self.counters = Counters()
        self._free_at = {"up": 0.0, "down": 0.0}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: Exception | None = None

    # --- for other threads ---

    def start(self) -> Self:
        """Listen; returns when connections are taken."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """End all connections and the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    __enter__ = start

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    def set(self, **changes: Any) -> None:
        """Change some faults; in force when this returns."""
        self._do(self._apply(replace(self.faults, **changes)))

    def heal(self) -> None:
        """Let everything pass from now on."""
        self._do(self._apply(Faults()))

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    # --- the thread ---

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended, self._flowing = asyncio.Event(), asyncio.Event()
        self._listener: socket.socket | None = None
        self._toggling: asyncio.Task[None] | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._thaw()
        await self._apply(self.faults)
        self._ready.set()
        await self._ended.wait()
        self._freeze()
        tasks = [*self._connections, *([self._toggling] if self._toggling else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _apply(self, faults: Faults) -> None:
        if self._toggling is not None:
            self._toggling.cancel()
            self._toggling = None
        self.faults = faults
        if faults.frozen:
            self._freeze()
        else:
            self._thaw()
        if faults.toggle_hz is not None:
            self._toggling = asyncio.create_task(self._toggle(0.5 / faults.toggle_hz))

    async def _toggle(self, half_s: float) -> None:
        while True:
            await asyncio.sleep(half_s)
            self._freeze()
            await asyncio.sleep(half_s)
            self._thaw()

    def _freeze(self) -> None:
        self._flowing.clear()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _thaw(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port), backlog=1024)
            self._listener.setblocking(False)
            self._loop.add_reader(self._listener, self._accept)
            self.port = self._listener.getsockname()[1]
        self._flowing.set()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            end, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # gone again
        self.counters.connections += 1
        task = asyncio.create_task(self._connection(end))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: end.close())

    async def _connection(self, end: socket.socket) -> None:
        if self.faults.reset_after == AT_CONNECT:
            self.counters.resets += 1
            _linger(end)
            return
        said = bytearray() if self.faults.replay else None
        async with _streams(sock=end) as (reader, writer):
            try:
                async with _streams(*self.upstream) as (up_reader, up_writer):
                    up = Flow("up", reader, up_writer)
                    down = Flow("down", up_reader, writer)
                    await self._carry(up, down, said)
            except OSError:  # nobody there
                _reset(writer)
        if said:
            await self._replay(bytes(said))

    async def _carry(self, up: Flow, down: Flow, said: bytearray | None) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for flow in (up, down):
                    group.create_task(self._take(flow, said if flow is up else None))
                    group.create_task(self._give(flow))
        except* CutError:
            self.counters.cuts += 1
        except* ResetError:
            self.counters.resets += 1
            _reset(up.writer, down.writer)
        except* OSError:  # one end is gone: so is the other
            _reset(up.writer, down.writer)

    async def _take(self, flow: Flow, said: bytearray | None) -> None:
        """Read what comes, and note when it is due at the other end."""
        chunk: bytes | None = b"..."
        while chunk:
            try:
                chunk = await flow.reader.read(_CHUNK)
            except ConnectionError:
                chunk = None
            if said is not None and chunk:
                said += chunk
            delay_s = getattr(self.faults, f"delay_{flow.way}_s")
            await flow.queue.put((self._loop.time() + delay_s, chunk))

    async def _give(self, flow: Flow) -> None:
        """Pass on what is due, with its faults."""
        while True:
            due, chunk = await flow.queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            await self._flowing.wait()
            if chunk is None:
                raise ConnectionResetError
            if not chunk:
                if not flow.deaf and not self._fault("drop", flow):
                    flow.writer.write_eof()
                return
            start, flow.seen = flow.seen, flow.seen + len(chunk)
            await self._pass(flow, start, chunk)

    async def _pass(self, flow: Flow, start: int, chunk: bytes) -> None:
        """One chunk; `start` is the offset of its first byte."""
        end = start + len(chunk)
        after = self.faults.reset_after
        if flow.way == "up" and after is not None and end >= after:
            raise ResetError
        flow.deaf = flow.deaf or self._fault("drop", flow)
        if flow.deaf:
            self._count(f"dropped_{flow.way}", len(chunk))
            return
        flip = getattr(self.faults, f"flip_{flow.way}_at")
        if flip is not None and start <= flip < end:
            altered = bytearray(chunk)
            altered[flip - start] ^= 0xFF
            chunk = bytes(altered)
            self.counters.flipped += 1
        cut = getattr(self.faults, f"cut_{flow.way}_after")
        cut_here = cut is not None and end >= cut
        await self._write(flow, chunk[: max(0, cut - start)] if cut_here else chunk)
        if cut_here:
            raise CutError

    async def _write(self, flow: Flow, chunk: bytes) -> None:
        """Write at the line's rate, which all connections share."""
        done = 0
        while done < len(chunk):
            await self._flowing.wait()
            rate = getattr(self.faults, f"rate_{flow.way}")
            size = _CHUNK if rate is None else max(1, int(rate * _SLICE_S))
            part = chunk[done : done + size]
            if rate is not None:
                start = max(self._loop.time(), self._free_at[flow.way])
                self._free_at[flow.way] = start + len(part) / rate
                await asyncio.sleep(self._free_at[flow.way] - self._loop.time())
            flow.writer.write(part)
            await flow.writer.drain()
            self._count(flow.way, len(part))
            done += len(part)

    async def _replay(self, said: bytes) -> None:
        with suppress(OSError, TimeoutError):
            async with (
                asyncio.timeout(_REPLAY_S),
                _streams(*self.upstream) as (reader, to),
            ):
                self.counters.replays += 1
                to.write(said)
                await to.drain()
                to.write_eof()
                while await reader.read(_CHUNK):
                    pass

    def _fault(self, name: str, flow: Flow) -> bool:
        return bool(getattr(self.faults, f"{name}_{flow.way}"))

    def _count(self, name: str, size: int) -> None:
        setattr(self.counters, name, getattr(self.counters, name) + size)


@asynccontextmanager
async def _streams(
    host: str | None = None, port: int | None = None, *, sock: Any = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Both streams of a connection, made or given, which is closed in the end."""
    reader, writer = await asyncio.open_connection(host, port, sock=sock)
    try:
        yield reader, writer
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
    finally:  # does nothing to what is closed; does not wait for who never reads
        writer.transport.abort()


def _reset(*writers: asyncio.StreamWriter) -> None:
    """Close with RST in place of FIN."""
    for writer in writers:
        with suppress(OSError):
            _linger(writer.get_extra_info("socket"))
        writer.transport.abort()


def _linger(end: socket.socket) -> None:
    """Have close() send RST: SO_LINGER on, 0 seconds (socket(7))."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def main() -> None:
    """Run as a process until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upstream", required=True, help="host:port of the server")
    parser.add_argument("--port", type=int, default=0, help="where to listen")
    options = parser.parse_args()
    host, _, port = options.upstream.rpartition(":")
    with Proxy((host, int(port)), port=options.port) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            proxy.set(**json.loads(line))
            print(json.dumps(asdict(proxy.counters)), flush=True)


if __name__ == "__main__":
    main()
