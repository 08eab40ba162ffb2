"""The parent's side of the decoder processes: feed, time, replace.

Each process is started once and keeps a few tasks queued, so that it never waits for
its parent. Replies come in the order of the tasks, hence a process that dies or is late
is always busy with the first task it has not answered: that one is lost, the others go
to its successor.
"""

import fcntl
import json
import math
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import client
from client.intake.worker import MESSAGE_BYTES, Message, send
from common.errors import IntakeError

_QUEUED = 4
_START_S = 60.0
_START_TRIES = 3
_DRAIN_S = 1.0


@dataclass(frozen=True)
class DecodeLimits:
    """What one hostile or broken file may cost."""

    workers: int = 2
    """Decoder processes at work at the same time."""
    memory_bytes: int = 1 << 30
    """Address space of one process; with no file open it uses about 200 MB."""
    item_s: float = 20.0
    """Wall time for the head of one file, or for one plane."""
    plane_bytes: int = 64 << 20
    """Largest plane as stored: 5792 x 5792 at 16 bits."""
    volume_bytes: int = 4 << 30
    """Largest volume in HU."""


@dataclass(frozen=True)
class Lost:
    """A task that its process did not survive."""

    late: bool
    """True: killed after `item_s`. False: the process crashed."""


@dataclass
class _Process:
    """One child and what it has yet to answer."""

    child: subprocess.Popen[bytes]
    channel: socket.socket
    ready: bool = False
    queue: deque[int] = field(default_factory=deque)
    since_s: float = 0.0
    received: bytearray = field(default_factory=bytearray)


class DecoderPool:
    """A few decoder processes; use as a context manager.

    Started lazily by the first `run`, ended by `close`.
    """

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self._processes: list[_Process] = []
        self._failed_starts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all processes at once; they hold nothing worth keeping."""
        for process in self._processes:
            _end(process)
        self._processes.clear()

    def run(
        self, tasks: Sequence[Message], target: int = -1
    ) -> Iterator[tuple[int, Message | Lost]]:
        """Do all tasks, in any order, each exactly once.

        Args:
            tasks: Messages that `client.intake.worker` answers.
            target: File descriptor of the shared volume, for tasks that write one; sent
                with each of them and closed there, so that no process keeps a volume.

        Yields:
            Index of a task with its reply, or with how it was lost.

        Raises:
            IntakeError: Decoder processes can't be started at all.
        """
        waiting = deque(range(len(tasks)))
        while len(self._processes) < min(self.limits.workers, len(tasks)):
            self._processes.append(self._start())
        left = len(tasks)
        try:
            while left:
                for process in self._processes:
                    self._feed(process, waiting, tasks, target)
                for process in self._wait():
                    for index, reply in self._collect(process, waiting):
                        left -= 1
                        yield index, reply
        finally:
            self._drain()

    def _drain(self) -> None:
        """Let processes finish what nobody waits for; end those that take long."""
        until_s = time.monotonic() + _DRAIN_S
        active = list(self._processes)  # some have replies that are read already
        while active and time.monotonic() < until_s:
            for process in active:
                for _ in self._collect(process, deque()):
                    pass
            busy = any(process.queue for process in self._processes)
            active = self._wait(until_s) if busy else []
        for process in [p for p in self._processes if p.queue]:
            _end(process)
            self._processes.remove(process)

    def _start(self) -> _Process:
        ours, theirs = socket.socketpair()
        root = Path(client.__file__).resolve().parents[1]
        arguments = [
            str(theirs.fileno()),
            str(self.limits.memory_bytes),
            str(self.limits.item_s),
        ]
        # Not the parent's working directory: a folder `dl` there breaks gdcm's import.
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "client.intake.worker", *arguments],
            pass_fds=[theirs.fileno()],
            cwd="/",
            env={**_inherited(), "PYTHONPATH": str(root)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        return _Process(child, ours, since_s=time.monotonic())

    def _feed(
        self,
        process: _Process,
        waiting: deque[int],
        tasks: Sequence[Message],
        target: int,
    ) -> None:
        while waiting and process.ready and len(process.queue) < _QUEUED:
            index = waiting.popleft()
            if not process.queue:
                process.since_s = time.monotonic()
            process.queue.append(index)
            try:
                send(process.channel, tasks[index], target)
            except OSError:  # it died; `_collect` will see the end of the stream
                return

    def _wait(self, until_s: float = math.inf) -> list[_Process]:
        """Processes that have something to read, are late, or are gone."""
        now = time.monotonic()
        with selectors.DefaultSelector() as selector:
            soonest = min(until_s, now + self.limits.item_s)
            for process in self._processes:
                selector.register(process.channel, selectors.EVENT_READ, process)
                if process.queue or not process.ready:
                    soonest = min(soonest, self._deadline(process))
            events = selector.select(max(0.0, soonest - now))
        readable = [key.data for key, _ in events]
        late = [p for p in self._processes if p not in readable and self._is_late(p)]
        return [*readable, *late]

    def _collect(
        self, process: _Process, waiting: deque[int]
    ) -> Iterator[tuple[int, Message | Lost]]:
        """Replies of one process; replaces it when it is late, gone or mad."""
        late = self._is_late(process)
        alive = not late and _read(process)
        while alive and (message := _next_message(process)) is not None:
            process.since_s = time.monotonic()
            if not process.ready:
                process.ready = True
                self._failed_starts = 0
            elif process.queue:
                yield process.queue.popleft(), message
            else:
                alive = False
        if alive and len(process.received) <= MESSAGE_BYTES:
            return
        self._failed_starts += not process.ready
        if self._failed_starts > _START_TRIES:
            raise IntakeError(
                "intake started a decoder process that ended at once, expected it to "
                "serve; check the installation and the memory limit"
            )
        _end(process)
        self._processes[self._processes.index(process)] = self._start()
        if process.queue:
            first = process.queue.popleft()
            waiting.extendleft(reversed(process.queue))
            yield first, Lost(late or process.child.returncode == -signal.SIGALRM)

    def _deadline(self, process: _Process) -> float:
        return process.since_s + (self.limits.item_s if process.ready else _START_S)

    def _is_late(self, process: _Process) -> bool:
        busy = bool(process.queue) or not process.ready
        return busy and time.monotonic() >= self._deadline(process)


def shared_memory(size_bytes: int) -> int:
    """A descriptor of fresh zeroed memory that can never change its size."""
    descriptor = os.memfd_create("fedct-volume", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def _inherited() -> dict[str, str]:
    """The few variables a decoder needs; one thread, or the memory limit is used up."""
    kept = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {k: os.environ[k] for k in kept if k in os.environ} | threads


def _read(process: _Process) -> bool:
    """Take what is there; False when the process is gone."""
    try:
        part = process.channel.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    process.received += part
    return bool(part)


def _next_message(process: _Process) -> dict[str, Any] | None:
    received = process.received
    if len(received) < 4:
        return None
    (length,) = struct.unpack("<I", received[:4])
    if len(received) < 4 + length:
        return None
    body = bytes(received[4 : 4 + length])
    del received[: 4 + length]
    message = json.loads(body)
    return message if isinstance(message, dict) else {"problem": "DECODE_FAILED"}


def _end(process: _Process) -> None:
    process.channel.close()
    process.child.kill()
    process.child.wait()
