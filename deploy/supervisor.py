"""Keeping a few programs running, in the foreground.

`fedct server start` and `fedct client start` are supervisors: they start their
programs, start again what ends, with a growing pause, and stop all of them in order
when they are told to. A service manager above (systemd, a container engine) has one
process to watch and one to signal. If the supervisor itself is killed, the kernel ends
its programs (PR_SET_PDEATHSIG), so that a restart never meets old ones.

What runs stands in `processes.json`, for `status`; what the programs say, in
`logs/<name>.log`. What they keep for themselves (compiled kernels, fonts) goes to
`cache/`, as a service's user often has no home.
"""

import ctypes
import datetime
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from client.private_files import FILE_MODE, make_private_folder, write_private
from common.errors import SupervisorError

PROCESSES_FILE = "processes.json"
LOGS_FOLDER = "logs"
CACHE_FOLDER = "cache"
_CACHES = {
    "XDG_CACHE_HOME": "",
    "XDG_CONFIG_HOME": "",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "CUDA_CACHE_PATH": "cuda",
    "FLWR_HOME": "flwr",
}
"""Environment variable to a folder in `cache/`; by themselves these would be in the
home, or in /tmp where all users meet."""
_LOG_LIMIT_BYTES = 20_000_000
_LAST_WORDS_BYTES = 1000
_SHORTEST_S, _LONGEST_S = 1.0, 60.0
"""Pause before a program is started again; it doubles from one to the other."""
_GOOD_AFTER_S = 60.0
"""A program that ran so long begins again with the shortest pause."""
_STOP_S = 20.0
"""How long programs may take to end before they are killed."""
_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Program:
    """One program to keep running."""

    name: str
    """Short name, as in the log file's name."""
    argv: tuple[str, ...]
    """The command line; the first part is found on PATH or absolute."""
    env: Mapping[str, str] = field(default_factory=dict)
    """What its environment has beside the supervisor's own."""
    is_ready: Callable[[], bool] = lambda: True
    """Whether it can be used; programs after it in the list wait for that."""
    reload_on: tuple[Path, ...] = ()
    """Files; when one changes, the program gets SIGHUP."""


@dataclass
class _Running:
    """What the supervisor knows of one program."""

    program: Program
    pause_s: float
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    again_at: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    is_ready: bool = False
    files: tuple[int | None, ...] = ()


class _Row(BaseModel):
    """One program in `processes.json`."""

    model_config = ConfigDict(frozen=True)

    name: str
    """Its name."""
    pid: int | None
    """Its process; unset while it is to be started again."""
    began: int | None
    """When that began, in clock ticks since boot."""
    since: str = ""
    """When this was written, ISO 8601, UTC."""
    restarts: int
    """How often it was started again."""
    last_exit: int | None = None
    """What it ended with the last time."""


_ROWS = TypeAdapter(tuple[_Row, ...])


def supervise(
    folder: Path, programs: Sequence[Program], stop: threading.Event, tell: Tell
) -> None:
    """Run the programs until `stop` is set, then end them, the last one first.

    Args:
        folder: Where `logs/` and `processes.json` go.
        programs: Started in this order, each when the one before is ready.
        stop: Set by a signal handler.
        tell: Hears one sentence per start, end and restart.

    Raises:
        SupervisorError: A program does not exist.
    """
    make_private_folder(folder / LOGS_FOLDER)
    make_private_folder(folder / CACHE_FOLDER)
    states = [_Running(program, _SHORTEST_S) for program in programs]
    unwritten = False
    try:
        while not stop.is_set():
            changed = False
            for state in states:
                changed |= _look_after(folder, state, tell)
                if not _is_ready(state):
                    break  # those behind it wait
            if changed or unwritten:
                again, unwritten = unwritten, not _write(folder, states)
                if unwritten and not again:
                    tell(f"{PROCESSES_FILE} can't be written; is the disk full?")
            stop.wait(0.2)
    finally:
        _end(states, tell)
        _write(folder, states)


def read_processes(folder: Path) -> list[dict[str, object]]:
    """What `supervise` wrote last, each with "running": whether that process lives.

    Nothing, if the file is absent or damaged: it is written anew by the next change.
    """
    try:
        rows = _ROWS.validate_json((folder / PROCESSES_FILE).read_bytes())
    except (OSError, ValidationError):
        return []
    return [{**row.model_dump(), "running": _lives(row.pid, row.began)} for row in rows]


def last_words(folder: Path, name: str) -> str:
    """The last line of a program's log, for whoever looks at the supervisor alone."""
    log = folder / LOGS_FOLDER / f"{name}.log"
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LAST_WORDS_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")
    return ""


def _look_after(folder: Path, state: _Running, tell: Tell) -> bool:
    """Start, notice an end, pass on a reload; whether anything changed."""
    process, name = state.process, state.program.name
    now = time.monotonic()
    if process is None:
        if now < state.again_at:
            return False
        state.process = _start(folder, state.program)
        state.started = now
        state.is_ready = False
        state.files = _files(state.program)
        tell(f"{name} started, process {state.process.pid}")
        return True
    if (code := process.poll()) is not None:
        if now - state.started > _GOOD_AFTER_S:
            state.pause_s = _SHORTEST_S
        tell(f"{name} ended with {code}; starting again in {state.pause_s:.0f} s")
        if code > 0 and (words := last_words(folder, name)):
            tell(f"{name} said at last: {words}")
        state.process, state.last_exit = None, code
        state.again_at = now + state.pause_s
        state.pause_s = min(2 * state.pause_s, _LONGEST_S)
        state.restarts += 1
        return True
    if (files := _files(state.program)) != state.files:
        state.files = files
        process.send_signal(signal.SIGHUP)
        tell(f"{name} reads its files again")
    return False


def _start(folder: Path, program: Program) -> subprocess.Popen[bytes]:
    descriptor = _open_log(_log(folder, program))
    try:
        return subprocess.Popen(
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env={**os.environ, **_caches(folder), **program.env},
            process_group=0,  # Ctrl-C goes to the supervisor alone
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one thread only
        )
    except OSError as error:
        raise SupervisorError(
            f"supervisor can't start {program.name} ({error.strerror}), expected the "
            f"program {Path(program.argv[0]).name!r} on this machine; install it"
        ) from error
    finally:
        os.close(descriptor)


def _log(folder: Path, program: Program) -> Path:
    return folder / LOGS_FOLDER / f"{program.name}.log"


def _open_log(log: Path) -> int:
    """A descriptor to append with; a full disk costs the log and not the program."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    try:
        if log.exists() and log.stat().st_size > _LOG_LIMIT_BYTES:
            log.replace(log.with_suffix(".log.1"))
        return os.open(log, flags, FILE_MODE)
    except OSError:
        return os.open(os.devnull, flags)


def _caches(folder: Path) -> dict[str, str]:
    """Where programs keep what they could make again."""
    cache = (folder / CACHE_FOLDER).resolve()
    return {name: str(cache / part) for name, part in _CACHES.items()}


def _die_with_parent() -> None:
    """In the child, before exec (prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(states: Sequence[_Running], tell: Tell) -> None:
    for state in reversed(states):
        process = state.process
        if process is None or process.poll() is not None:
            continue
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            tell(f"{state.program.name} did not end in {_STOP_S:.0f} s and was killed")
        state.last_exit = process.returncode
        tell(f"{state.program.name} ended")


def _is_ready(state: _Running) -> bool:
    """Whether the program was ready once since it was started."""
    if state.process is not None and not state.is_ready:
        state.is_ready = state.program.is_ready()
    return state.process is not None and state.is_ready


def _files(program: Program) -> tuple[int | None, ...]:
    return tuple(_modified(path) for path in program.reload_on)


def _modified(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _write(folder: Path, states: Sequence[_Running]) -> bool:
    """Write what runs for `status`; whether the disk took it."""
    rows = [
        {
            "name": state.program.name,
            "pid": state.process.pid if state.process else None,
            "began": _began(state.process.pid) if state.process else None,
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "restarts": state.restarts,
            "last_exit": state.last_exit,
        }
        for state in states
    ]
    try:
        write_private(folder / PROCESSES_FILE, json.dumps(rows, indent=1).encode())
    except OSError:
        return False
    return True


def _began(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot (proc(5), field 22)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])


def _lives(pid: int | None, began: int | None) -> bool:
    """Whether this very process lives; its number may be another's by now."""
    return pid is not None and began is not None and _began(pid) == began
