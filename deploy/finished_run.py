"""A finished run as it is read back: only what its own journal bears out.

The journal got each round as one transaction while the run went on. The files beside it
were written for readers, and a reader who then says something of the model must not
take an edited plan, a cut record or another round's model for the run's own.

Not covered here: somebody who changes the journal as well.
"""

from pathlib import Path

import torch

from common.errors import FedctError, RunError
from common.package import load_package
from common.parameters import digest_of
from common.plan import Plan
from common.plan_file import load_plan
from common.tasks.catalog import task_of
from deploy.run_folder import final_model, read_arm_record
from server.federation import plan_layout
from server.journal import read_journal
from server.record import ArmRecord
from server.run_files import ARM_RECORD_FILE, FINAL_FILE, JOURNAL_FILE, PLAN_FILE
from server.summary import final_round


def read_finished(folder: Path) -> tuple[Plan, ArmRecord]:
    """Plan and federated arm of a finished run, which agree with its journal.

    A run whose gate withheld its model has no package to compare.

    Args:
        folder: The run folder.

    Raises:
        RunError: There is no finished run, none of its rounds counted, or one of its
            files or the model that it handed out is not what the run wrote.
        ModelError: That model can't be read.
    """
    try:
        plan = load_plan(folder / PLAN_FILE)
        arm = read_arm_record(folder)
        model = digest_of(final_model(folder))
        ran, entries = read_journal(folder / JOURNAL_FILE)
    except (FedctError, OSError, ValueError, LookupError) as error:
        if not folder.is_dir():
            raise RunError(
                f"there is no folder {folder.name!r}, expected that of a finished run; "
                "see `ls runs`, or `fedct server status` at a hub"
            ) from error
        raise RunError(
            f"folder {folder.name!r} holds no finished run, expected one with plan, "
            "journal, record and model; finish it with --resume or `fedct server "
            "resume`, or put what is damaged back from a backup"
        ) from error
    if plan.digest != ran.get("plan"):
        raise _other(folder, PLAN_FILE, plan.digest, ran.get("plan", "none"))
    rounds = [entry.record for entry in entries]
    if [r.model_dump_json() for r in rounds] != [
        r.model_dump_json() for r in arm.rounds
    ]:
        said = f"{len(arm.rounds)} rounds", f"these {len(rounds)}"
        raise _other(folder, ARM_RECORD_FILE, *said)
    if not any(one.outcome == "closed" for one in rounds):
        raise RunError(
            f"run {folder.name!r} has no round that counted in {len(rounds)}, expected "
            "one; nothing was trained, so there is no model to say anything of"
        )
    number = final_round(rounds, plan, task_of(plan).monitor)
    if arm.final_round != number:
        said = f"a model of round {arm.final_round}", f"of round {number}"
        raise _other(folder, ARM_RECORD_FILE, *said)
    if model != (expected := rounds[number - 1].model_digest):
        raise _other(folder, FINAL_FILE, model, expected)
    package = folder / "model"
    if package.is_dir() and (held := _weights_of(package, plan)) != expected:
        raise _other(folder, package.name, held or "another network", expected)
    return plan, arm


def _weights_of(package: Path, plan: Plan) -> str | None:
    """`digest_of` the parameters in a package; unset if it holds another network."""
    state = load_package(package).state
    try:
        parts = [state[name].float().flatten() for name in plan_layout(plan).names]
    except KeyError:
        return None
    return digest_of(torch.cat(parts).numpy())


def _other(folder: Path, file: str, got: str, expected: str) -> RunError:
    return RunError(
        f"run {folder.name!r} has another {file} than it wrote ({got[:20]}), expected "
        f"what its journal says ({expected[:20]}); put {file} back from a backup"
    )
