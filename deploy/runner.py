"""The hub's runner: executes the runs that were asked for, one after another.

It is started by `fedct server start` and may be killed at any instant: what a run is
and how far it came stands in its folder (`deploy.hub_runs`, `server.journal`), so the
next runner goes on with it, to the bit.
"""

import logging
import signal
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import torch
from flwr.serverapp import Grid

from common.errors import EngineError, FedctError, StoppedError
from common.log_lines import log_events
from common.networks import check_fits
from common.plan import Plan
from common.plan_file import load_plan
from common.signing import Mark
from deploy.hand_out import hand_out_run
from deploy.hub_runs import fail_run, note_waiting
from deploy.nginx_run import PID_FILE
from deploy.run_folder import begin, finished_record, held, torch_threads
from deploy.run_state import (
    RUNS,
    RunRequest,
    is_stopped,
    next_run,
    read_request,
)
from deploy.traffic import Meter, bound_log
from deploy.twin_keys import watch_keys
from server.app import execute as run_arm_of
from server.app import write_arms
from server.federation import Arm
from server.hub import open_hub
from server.hub_grid import HubGrid
from server.members import Members
from server.parcel_book import close_book
from server.parcel_grid import ParcelGrid, Post
from server.part_files import part_files, sweep
from server.revocation import refresh_crl
from server.run_files import PLAN_FILE
from server.superlink import SuperLinkLine, superlink_of
from server.witness import note_mark

HOUSE_S = 600.0
"""How often revocation list and access log are looked after: nginx lets nobody in by an
overdue list."""
ARM = "federated"

AGAIN_S = 5.0
"""Pause before a run that failed and could not be marked so."""

log = logging.getLogger("fedct.hub")


def run_hub(folder: Path, stop: threading.Event) -> None:
    """Execute runs until `stop` is set.

    Args:
        folder: The hub's folder.
        stop: Set by a signal handler; the run at hand is left as it stands.
    """
    line = SuperLinkLine(superlink_of(folder))
    while not line.is_up():
        if stop.wait(0.2):
            return
    line.close_channels()
    members = Members(folder, line)
    meter = Meter(folder / "nginx")
    house = partial(_keep_house, folder, meter), partial(watch_keys, folder)
    for keep in (members.keep, *house):
        threading.Thread(target=keep, args=(stop,), daemon=True).start()
    while not stop.is_set():
        run = next_run(folder / RUNS)
        if run is None:
            sweep(folder)
            stop.wait(0.5)
            continue
        try:
            execute(run, line, members, meter, stop)
        except StoppedError:
            log.info("run %s left", run.name)
        except (EngineError, httpx.HTTPError) as error:
            log.warning("run %s waits for the SuperLink: %s", run.name, error)
            stop.wait(2.0)
        except FedctError as error:
            _fail(run, str(error), stop)
        except OSError as error:
            _fail(
                run,
                f"hub can't write ({error.strerror}), expected a disk with room that "
                "it may write to; mend that, then `fedct server resume`",
                stop,
            )
        except MemoryError:
            raise  # started anew, with all of the memory
        except Exception as error:
            # A run that would fail again at once must not hold up those behind it.
            log.exception("run %s met an error that nobody foresaw", run.name)
            _fail(
                run,
                f"hub met an unforeseen error ({type(error).__name__}), see its log, "
                "and please report it; `fedct server resume` tries again",
                stop,
            )


def _fail(run: Path, why: str, stop: threading.Event) -> None:
    """Note why a run ended; on a disk that takes not even that, it is tried again."""
    log.error("run %s failed: %s", run.name, why)
    try:
        fail_run(run, why)
    except OSError:
        log.error("run %s is tried again in %.0f s", run.name, AGAIN_S)
        stop.wait(AGAIN_S)


def execute(
    folder: Path,
    line: SuperLinkLine,
    members: Members,
    meter: Meter,
    stop: threading.Event,
) -> None:
    """Run or go on with one run, and hand out what it made.

    Raises:
        StoppedError: The coordinator stopped the run, or the hub stops.
    """
    plan = load_plan(folder / PLAN_FILE)
    request = read_request(folder)
    sites = request.sites

    def stopped() -> bool:
        return stop.is_set() or is_stopped(folder)

    def tell(waiting: Mapping[str, str]) -> None:
        note_waiting(folder, members.named(waiting))

    log.info("run %s begins, plan %s", folder.name, plan.digest[:12])
    with held(folder, plan, resume=True):
        start = begin(folder, torch.get_num_threads(), ())
        with torch_threads(start.threads):
            if finished_record(folder) is None:
                check_fits(plan)
                write_arms(folder, [federated_arm(folder, plan, request)])
                members.compare()
                with part_files(folder.parents[1]) as parts, line.channel() as channel:
                    live = HubGrid(channel, lambda: members.of(sites), stopped, parts)
                    grid = _with_parcels(live, folder, request, members)
                    wire = partial(_down_and_up, meter)
                    note = partial(_note_mark, folder.parents[1])
                    keys = members.keys(sites)
                    run_arm_of(grid, folder, ARM, keys, tell, wire, note)
            close_book(folder.parents[1], folder)
            hand_out_run(folder, plan, start)
    log.info("run %s finished", folder.name)


def federated_arm(folder: Path, plan: Plan, request: RunRequest) -> Arm:
    """The one arm of a real federation: baselines would need everybody's data."""
    names = tuple(sorted(request.sites))
    run = f"{plan.digest[:16]}-{folder.name}-{request.salt}"
    return Arm(ARM, plan, names, names, names, folder, run)


def _with_parcels(
    live: HubGrid, folder: Path, request: RunRequest, members: Members
) -> Grid:
    """The run's grid, with files for sites that have no live line."""
    if not request.parcels:
        return live
    keys = members.keys(request.parcels)
    post = Post(folder.parents[1], folder, keys, request.parcel_s)
    return ParcelGrid(live, post, lambda site: next(iter(members.of([site])), None))


def _note_mark(hub: Path, site: str, mark: Mark) -> None:
    note_mark(hub, site, mark, datetime.now(UTC))


def _down_and_up(meter: Meter) -> dict[str, tuple[int, int]]:
    passed = meter.take().items()
    return {site: (one.sent_bytes, one.received_bytes) for site, one in passed}


def _keep_house(folder: Path, meter: Meter, stop: threading.Event) -> None:
    """Renew the revocation list in time, and put a long access log aside."""
    while not stop.wait(HOUSE_S):
        try:
            now = datetime.now(UTC)
            refresh_crl(open_hub(folder, now), now)
            meter.look()
            nginx = folder / "nginx"
            if (pid := nginx / PID_FILE).exists():
                bound_log(nginx, int(pid.read_text()))
        except (FedctError, OSError, ValueError) as error:
            log.error("house not kept: %s", error)
        except Exception:  # a thread that dies would renew no revocation list any more
            log.exception("house not kept")


def main() -> None:
    """What the supervisor runs: `python -m deploy.runner HUB`."""
    log_events()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    run_hub(Path(sys.argv[1]), stop)


if __name__ == "__main__":
    main()
