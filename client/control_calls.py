"""The engineer's side of local control: one function per question.

The socket is tried first by itself, because the kernel says exactly what is wrong (no
service, a stale socket, another user's), where gRPC would say "unavailable". Every
failure is a `ControlError` that says what to do, except what the service itself
refuses: that comes back as the error it was there.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import grpc
from pydantic import ValidationError

from client.control_wire import (
    EXIT_CODE_KEY,
    PROTOCOL,
    SOCKET,
    fill,
    read,
    socket_address,
)
from client.desk_control import PauseDone, PlanView, Status
from client.desk_file import PauseNote
from common import control_pb2 as pb
from common.control_pb2_grpc import ControlStub
from common.errors import ControlError, error_from

TIMEOUT_S = 10.0
"""For one question; a decision waits for one sync of the disk."""


class NotRunningError(ControlError):
    """No service runs in the folder."""


def status(folder: Path) -> Status:
    """What the running service is doing.

    Raises:
        NotRunningError: None runs.
        ControlError: It can't be asked.
    """
    with _service(folder) as ask:
        return read(ask.Status(pb.StatusRequest(caller=_caller()), TIMEOUT_S), Status)


def plans(folder: Path) -> tuple[PlanView, ...]:
    """Every plan that was queued at the site."""
    with _service(folder) as ask:
        reply = ask.Plans(pb.PlansRequest(caller=_caller()), TIMEOUT_S)
        return tuple(read(plan, PlanView) for plan in reply.plans)


def decide(folder: Path, digest: str, *, approve: bool) -> PlanView:
    """Approve or deny a plan by its digest or the first digits of it.

    Raises:
        UsageError: No plan, or more than one, has such a digest.
    """
    request = fill(pb.DecideRequest(caller=_caller()), digest=digest, approve=approve)
    with _service(folder) as ask:
        return read(ask.Decide(request, TIMEOUT_S).plan, PlanView)


def pause(folder: Path, reason: str, *, now: bool) -> PauseDone:
    """Have the service take no further orders; `now` cancels the one at work."""
    request = fill(pb.PauseRequest(caller=_caller()), reason=reason, now=now)
    with _service(folder) as ask:
        reply = ask.Pause(request, TIMEOUT_S)
        return PauseDone.model_validate(
            {"pause": read(reply.pause, PauseNote), "cancelled": reply.cancelled}
        )


def resume(folder: Path) -> bool:
    """Have the service take orders again; whether it was paused."""
    with _service(folder) as ask:
        reply = ask.Resume(pb.ResumeRequest(caller=_caller()), TIMEOUT_S)
        return bool(reply.was_paused)


def _caller() -> Any:
    return pb.Caller(protocol=PROTOCOL, version=version("fedct"))


@contextmanager
def _service(folder: Path) -> Iterator[Any]:
    """A stub of the folder's service; gRPC's failures become ours."""
    with socket_address(folder) as address:
        _knock(folder, address)
        # Not a line of an earlier call: the same address may mean another folder now.
        options = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"unix:{address}", options) as channel:
            try:
                yield ControlStub(channel)
            except grpc.RpcError as error:
                _raise(error)
            except ValidationError as error:
                raise _skew() from error


def _knock(folder: Path, address: str) -> None:
    """See who is behind the socket, if anybody."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(TIMEOUT_S)
            line.connect(address)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise NotRunningError(
            f"the site's service does not run (no answer at {SOCKET} in its folder), "
            "expected it to; start it with `fedct client start`"
        ) from error
    except OSError as error:
        owner, own = folder.stat().st_uid, os.geteuid()
        raise ControlError(
            f"{SOCKET} can't be opened by user {own} ({error.strerror}), expected the "
            f"folder's owner, user {owner}; ask as that user"
        ) from error


def _raise(error: Any) -> NoReturn:
    """The service's refusal as the error it was, anything else as a `ControlError`."""
    trailing = dict(error.trailing_metadata() or ())
    code, said = error.code(), str(error.details())
    if code is grpc.StatusCode.FAILED_PRECONDITION and EXIT_CODE_KEY in trailing:
        raise error_from(int(trailing[EXIT_CODE_KEY]), said, ControlError) from error
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise _skew() from error
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise ControlError(
            f"the site's service did not answer within {TIMEOUT_S:.0f} s, expected it "
            "at once; look at its log, and restart it"
        ) from error
    raise ControlError(
        f"the site's service could not answer ({code.name}: {said[:200]}), expected a "
        "reply; look at its log"
    ) from error


def _skew() -> ControlError:
    return ControlError(
        f"the site's service does not understand FedCT {version('fedct')}, expected "
        "one version on both sides; restart the service after an update"
    )
