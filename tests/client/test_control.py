"""The engineer and the service, over a real socket."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading

import grpc
import pytest

from client import control_calls
from client.activity import OrderCancelledError, work_of
from client.control import serve_control
from client.control_calls import NotRunningError
from client.desk import check_open, queue_plan
from client.desk_control import DeskControl, status_on_disk
from common import control_pb2 as pb
from common.control_pb2_grpc import ControlStub
from common.errors import ControlError, PolicyError, StoreError, UsageError
from tests.client.conftest import is_approved, slices
from tests.plans import SLICES

LONG = "a long name with % and # and ? and ü, " * 6 + "end"


@pytest.fixture(params=["site", LONG], ids=["plain folder", "long and odd folder"])
def site(request, tmp_path):
    folder = tmp_path / request.param
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def served(site):
    """A folder whose service runs, in this process."""
    with serve_control(site, DeskControl(site)):
        work_of(site).ready()
        yield site


def test_the_socket_is_for_the_sites_user_alone(served):
    assert stat.S_IMODE((served / "control.sock").stat().st_mode) == 0o600
    assert stat.S_ISSOCK((served / "control.sock").stat().st_mode)


def test_status_tells_what_the_service_is_doing_at_this_step(served):
    status = control_calls.status(served)
    assert (status.pid, status.activity.doing, status.pause) == (
        os.getpid(),
        "idle",
        None,
    )
    queue_plan(served, SLICES, "run-1")
    with work_of(served).order("training", "run-1", slices().digest, 4) as tell:
        tell(0, 20)
        tell(1, 20)
        status = control_calls.status(served)
        assert status.activity == work_of(served).now
        assert (status.activity.round, status.activity.step) == (4, 1)
    assert (status.waiting, status.approved, status.denied) == (1, 0, 0)


def test_a_plan_is_listed_approved_and_denied(served):
    entry = queue_plan(served, SLICES, "run-1")
    [plan] = control_calls.plans(served)
    assert (plan.state, plan.run, plan.decided) == ("waiting", "run-1", None)
    assert plan.first_seen == entry.first_seen
    assert f"# plan hash {entry.digest}" in plan.toml
    plan = control_calls.decide(served, entry.digest[:8], approve=True)
    assert plan.state == "approved"
    assert is_approved(served, entry.digest)
    assert control_calls.status(served).approved == 1
    assert control_calls.decide(served, entry.digest, approve=False).state == "denied"
    assert not is_approved(served, entry.digest)


def test_what_the_service_refuses_comes_back_as_the_error_it_was(served):
    with pytest.raises(UsageError, match="at least 8 hexadecimal"):
        control_calls.decide(served, "zz", approve=True)
    entry = queue_plan(served, SLICES, "run-1")
    (served / "plans" / f"{entry.digest}.toml").unlink()
    with pytest.raises(StoreError, match="can't read the text of plan"):
        control_calls.plans(served)


def test_pause_holds_new_orders_and_resume_lets_them_in(served):
    done = control_calls.pause(served, "scanner ü", now=False)
    assert (done.pause.reason, done.cancelled) == ("scanner ü", False)
    with pytest.raises(PolicyError):
        check_open(served)
    assert control_calls.status(served).pause == done.pause
    assert control_calls.resume(served) is True
    assert control_calls.resume(served) is False
    check_open(served)


@pytest.mark.parametrize("now", [False, True])
def test_pause_lets_the_order_at_work_end_or_cancels_it(served, now):
    steps, paused, ended = [], threading.Event(), []

    def train() -> None:
        try:
            with work_of(served).order("training", "run-1", "p", 1) as tell:
                for step in range(1, 6):
                    tell(step, 5)
                    steps.append(step)
                    if step == 2:
                        started.set()
                        assert paused.wait(30)
        except OrderCancelledError as error:
            ended.append(str(error))

    started = threading.Event()
    trainer = threading.Thread(target=train)
    trainer.start()
    assert started.wait(30)
    assert control_calls.pause(served, "", now=now).cancelled is now
    paused.set()
    trainer.join(30)
    assert steps == ([1, 2] if now else [1, 2, 3, 4, 5])
    assert len(ended) == now
    with pytest.raises(PolicyError), work_of(served).order("training", "r", "p", 2):
        pass


def test_without_a_service_the_desk_still_speaks(site):
    queue_plan(site, SLICES, "run-1")
    with pytest.raises(NotRunningError, match="fedct client start") as refused:
        control_calls.status(site)
    assert refused.value.exit_code == 52
    assert (status_on_disk(site).waiting, status_on_disk(site).pid) == (1, None)


def test_a_second_service_in_one_folder_is_refused_and_the_first_lives_on(served):
    with (
        pytest.raises(ControlError, match="another service"),
        serve_control(served, DeskControl(served)),
    ):
        pass
    assert control_calls.status(served).pid == os.getpid()


def test_a_folder_that_others_may_enter_is_not_served(site):
    site.chmod(0o750)
    with (
        pytest.raises(ControlError, match="mode 0750, expected 0700"),
        serve_control(site, DeskControl(site)),
    ):
        pass
    assert not (site / "control.sock").exists()


SERVICE = """
import sys, time
from pathlib import Path
from client.control import serve_control
from client.desk_control import DeskControl
folder = Path(sys.argv[1])
with serve_control(folder, DeskControl(folder)):
    print("ready", flush=True)
    time.sleep(60)
"""


def start(*argv: str, code: str, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_the_socket_of_a_killed_service_is_no_service_and_in_nobodys_way(site):
    with start(str(site), code=SERVICE) as service:
        assert service.stdout.readline() == "ready\n"
        assert control_calls.status(site).pid == service.pid
        service.send_signal(signal.SIGKILL)
        service.wait(30)
    assert (site / "control.sock").exists()
    with pytest.raises(NotRunningError):
        control_calls.status(site)
    with serve_control(site, DeskControl(site)):
        assert control_calls.status(site).pid == os.getpid()
    assert not (site / "control.sock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("folder_mode", [0o700, 0o755])
def test_another_user_is_told_whom_to_ask_as(served, folder_mode):
    for folder in [*served.parents][:3]:  # pytest's own, which are closed to others
        folder.chmod(0o755)
    served.chmod(folder_mode)
    os.seteuid(65534)
    try:
        with pytest.raises(ControlError, match="Permission denied") as refused:
            control_calls.status(served)
    finally:
        os.seteuid(0)
    assert not isinstance(refused.value, NotRunningError)
    assert re.search("the user who owns it|owner, user 0", str(refused.value))


def ask(folder, caller: pb.Caller) -> grpc.RpcError:
    """What a caller of another version gets."""
    descriptor = os.open(folder, os.O_RDONLY)
    address = f"unix:/proc/self/fd/{descriptor}/control.sock"
    with (
        grpc.insecure_channel(address) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        ControlStub(channel).Pause(pb.PauseRequest(caller=caller), 10)
    os.close(descriptor)
    return refused.value


@pytest.mark.parametrize(
    "caller", [pb.Caller(), pb.Caller(protocol=1, version="9.9.9")]
)
def test_a_caller_of_another_protocol_is_refused_before_anything_is_done(
    served, caller
):
    refused = ask(served, caller)
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (caller.version or "unknown") in refused.details()
    check_open(served)


def test_a_service_of_another_version_is_named_as_the_cause(site, monkeypatch):
    class Newer(DeskControl):
        def status(self):
            status = super().status()
            later = status.activity.model_copy(update={"doing": "dreaming"})
            return status.model_copy(update={"activity": later})

    with serve_control(site, Newer(site)):
        with pytest.raises(ControlError, match="does not understand FedCT"):
            control_calls.status(site)
        monkeypatch.setattr(control_calls, "PROTOCOL", 9)
        with pytest.raises(ControlError, match="of protocol 9; use the command of the"):
            control_calls.resume(site)


def test_a_fault_of_the_service_is_told_by_its_kind_alone(site, caplog):
    class Broken(DeskControl):
        def status(self):
            raise ValueError("PATIENT-7")

    with serve_control(site, Broken(site)):
        with pytest.raises(ControlError, match="ValueError") as refused:
            control_calls.status(site)
        assert "PATIENT-7" not in str(refused.value)
        assert control_calls.resume(site) is False


def test_a_service_that_hangs_is_given_up(site, monkeypatch):
    monkeypatch.setattr(control_calls, "TIMEOUT_S", 0.3)
    descriptor = os.open(site, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"/proc/self/fd/{descriptor}/control.sock")
        silent.listen()
        with pytest.raises(ControlError, match=r"did not answer within|UNAVAILABLE"):
            control_calls.status(site)
    os.close(descriptor)
