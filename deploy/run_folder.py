"""The folder of a run: who may use it, and what a finished arm left in it.

Two processes in one folder would write two histories into one journal, so the folder is
held by a lock for as long as a process works in it. The kernel lets go of the lock when
the process ends, however it ends: there is nothing to clear up after a crash.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import BaseModel, ConfigDict, ValidationError

from client.private_files import FILE_MODE, make_private_folder
from common.durable import write_whole
from common.errors import RunError, StoreError
from common.parameters import digest_of
from common.plan import Plan
from common.plan_file import load_plan
from deploy.run_state import now
from server.record import ArmRecord
from server.run_files import (
    ARM_RECORD_FILE,
    FINAL_FILE,
    LOCK_FILE,
    PLAN_FILE,
    STARTED_FILE,
)
from server.vector_file import read_vectors

Baseline = Literal["pooled", "local"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)


@contextmanager
def held(out: Path, plan: Plan, *, resume: bool) -> Iterator[None]:
    """Hold a run folder, made where absent, for this process alone.

    Args:
        out: The folder. One that is refused is left as it was.
        plan: The plan that shall run in it.
        resume: Whether it must hold a run of this plan; else it must be empty.

    Raises:
        RunError: The folder does not fit, is in use, or could not be written to.
    """
    if not (out / LOCK_FILE).is_file():
        _refuse(out, plan, resume)
    try:
        make_private_folder(out)
    except StoreError as error:
        why = getattr(error.__cause__, "strerror", None) or "others may enter it"
        raise RunError(
            f"run folder {out.name!r} can't be used ({why}), expected a place of mode "
            "0700 that this user may write to; choose another --out"
        ) from error
    try:
        with _locked(out):
            _refuse(out, plan, resume)
            yield
    except OSError as error:
        raise RunError(
            f"run in {out.name!r} could not go on ({error.strerror}), expected files "
            "that can be read and written; check room and rights, then go on with it "
            "(--resume, or `fedct server resume`)"
        ) from error


class Start(BaseModel):
    """How a run began; a resumed one goes on in the same way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str
    """When, ISO 8601, UTC."""
    threads: int
    """CPU threads. Sums over threads round differently for another number of them, so
    a run keeps its own to end bit-equal."""
    baselines: tuple[Baseline, ...] = ()
    """All that were ever asked for, so that resuming drops none."""


def begin(out: Path, threads: int, baselines: Sequence[Baseline] = ()) -> Start:
    """Note the start of a new run, or recall that of the run in the folder.

    Args:
        out: The run folder.
        threads: CPU threads of a new run.
        baselines: Those of a new run; they join those of the run in the folder.

    Raises:
        RunError: The file that says so is damaged.
    """
    path = out / STARTED_FILE
    known = _read_start(path) if path.exists() else Start(at=now(), threads=threads)
    wanted = tuple(b for b in BASELINES if b in {*known.baselines, *baselines})
    start = known.model_copy(update={"baselines": wanted})
    write_whole(path, start.model_dump_json().encode())
    return start


def _read_start(path: Path) -> Start:
    try:
        return Start.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise RunError(
            f"run folder {path.parent.name!r} has a damaged {STARTED_FILE}, expected "
            "time, threads and baselines with which the run began; delete that file "
            "and add --resume (and --baselines)"
        ) from error


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Compute on so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def finished_record(folder: Path) -> ArmRecord | None:
    """An arm's record, if it and its model are there and belong together.

    Both follow from the journal, so what is missing or damaged can be made again. An
    arm that void rounds stopped is not finished: a resumed run tries on.
    """
    try:
        record = read_arm_record(folder)
        digest = record.rounds[record.final_round - 1].model_digest
        whole = digest_of(final_model(folder)) == digest
        return record if whole and record.stopped != "void rounds" else None
    except (OSError, ValueError, LookupError):
        return None


def read_arm_record(folder: Path) -> ArmRecord:
    """What the server wrote of an arm when it had finished."""
    return ArmRecord.model_validate_json((folder / ARM_RECORD_FILE).read_bytes())


def final_model(folder: Path) -> Float32[np.ndarray, " P"]:
    """Parameters of an arm's final round, the best or the last by its plan."""
    return read_vectors(folder / FINAL_FILE)[0]["model"]


def _refuse(out: Path, plan: Plan, resume: bool) -> None:
    """Refuse a folder that is neither new nor the run to resume. Writes nothing."""
    known = out / PLAN_FILE
    if out.exists() and not out.is_dir():
        raise RunError(
            f"run folder {out.name!r} is a file, expected a folder; choose another "
            "--out"
        )
    if resume:
        if not known.exists():
            raise RunError(
                f"folder {out.name!r} holds no run, expected one to resume; leave "
                "--resume out to start it"
            )
        if load_plan(known).digest != plan.digest:
            raise RunError(
                f"folder {out.name!r} holds a run of another plan, expected plan "
                f"{plan.digest[:12]}; choose another --out"
            )
    elif out.exists() and any(path.name != LOCK_FILE for path in out.iterdir()):
        raise RunError(
            f"folder {out.name!r} is not empty, expected a new one; add --resume to go "
            "on with the run in it, or choose another --out"
        )


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    descriptor = os.open(out / LOCK_FILE, os.O_RDWR | os.O_CREAT, FILE_MODE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace").strip()
            raise RunError(
                f"run folder {out.name!r} is in use by process {holder or 'unknown'}, "
                "expected to be alone; wait until it has ended, or choose another --out"
            ) from error
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
