"""The resident service's side of local control: gRPC on a unix socket.

Whoever can open the socket is the site's own user, or root: it has mode 0600 in a
folder of mode 0700, and there is no network port. A caller of another protocol is
refused before anything is done; a deliberate failure goes back as its sentence and its
number; of anything else only the kind goes back, the rest is logged.

Not covered here: callers of the same user. They may do whatever the engineer may.
"""

import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc

from client.control_wire import (
    EXIT_CODE_KEY,
    PROTOCOL,
    SOCKET,
    fill,
    socket_address,
)
from client.desk_control import Control
from client.private_files import FILE_MODE
from common import control_pb2 as pb
from common.control_pb2_grpc import (
    ControlServicer,
    add_ControlServicer_to_server,
)
from common.errors import ControlError, FedctError

LOCK = "control.lock"
_THREADS = 4
"""Callers that are served at a time; each takes milliseconds."""
_GRACE_S = 2.0

log = logging.getLogger("fedct.control")


@contextmanager
def serve_control(folder: Path, control: Control) -> Iterator[None]:
    """Answer the engineer while the body runs.

    Args:
        folder: The site's folder.
        control: What gives the answers; called by several threads.

    Raises:
        ControlError: Another service serves this folder, or the socket can't be made.
    """
    with _only_one(folder), socket_address(folder) as address:
        server = grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="control"),
            options=[("grpc.so_reuseport", 0)],
        )
        add_ControlServicer_to_server(_Servicer(control), server)
        try:
            server.add_insecure_port(f"unix:{address}")
            (folder / SOCKET).chmod(FILE_MODE)
        except (RuntimeError, OSError) as error:
            raise ControlError(
                f"control can't open {SOCKET} in the site's folder "
                f"({type(error).__name__}), expected a local disk that takes sockets"
            ) from error
        server.start()
        try:
            yield
        finally:
            server.stop(_GRACE_S).wait()
            (folder / SOCKET).unlink(missing_ok=True)


class _Servicer(ControlServicer):
    """Turns messages into calls of a `Control`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def Status(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(
            request,
            context,
            lambda: fill(pb.StatusReply(), **dict(self._control.status())),
        )

    def Plans(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(
            request,
            context,
            lambda: fill(pb.PlansReply(), plans=self._control.plans()),
        )

    def Decide(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            plan = self._control.decide(request.digest, approve=request.approve)
            return fill(pb.DecideReply(), plan=plan)

        return _answer(request, context, work)

    def Pause(self, request: Any, context: Any) -> Any:  # noqa: N802
        def work() -> Any:
            done = self._control.pause(request.reason, now=request.now)
            return fill(pb.PauseReply(), **dict(done))

        return _answer(request, context, work)

    def Resume(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _answer(
            request,
            context,
            lambda: fill(pb.ResumeReply(), was_paused=self._control.resume()),
        )


def _answer(request: Any, context: Any, work: Callable[[], Any]) -> Any:
    """Do the work for a caller of our protocol; turn failures into a status."""
    try:
        _check_protocol(request.caller)
        return work()
    except FedctError as error:
        context.set_trailing_metadata(((EXIT_CODE_KEY, str(error.exit_code)),))
        code, sentence = grpc.StatusCode.FAILED_PRECONDITION, str(error)
    except Exception as error:  # the edge of the process: its caller must get an answer
        log.exception("control failed")
        kind = type(error).__name__
        code, sentence = grpc.StatusCode.INTERNAL, f"the service failed with {kind}"
    context.abort(code, sentence)


def _check_protocol(caller: Any) -> None:
    if caller.protocol != PROTOCOL:
        raise ControlError(
            f"the service (FedCT {version('fedct')}, protocol {PROTOCOL}) was asked by "
            f"FedCT {caller.version or 'unknown'} of protocol {caller.protocol}; use "
            "the command of the same version, or restart the service"
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; gRPC itself would take the socket from another."""
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
        if mode & 0o077:
            raise ControlError(
                f"control got a folder of mode {mode:04o}, expected 0700, as whoever "
                "enters it may command the site; make it private (chmod 700)"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        descriptor = os.open(folder / LOCK, flags, FILE_MODE)
    except OSError as error:
        raise ControlError(
            f"control can't use the site's folder ({error.strerror}), expected one "
            "that this user may write to"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ControlError(
            "control found another service at work in the site's folder, expected "
            "none; stop that one first"
        ) from error
    finally:
        os.close(descriptor)
