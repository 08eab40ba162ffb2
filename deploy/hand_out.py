"""What a run leaves: the model as a package, and the record behind the report."""

import gc
import json
import logging
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

from common.durable import write_whole
from common.errors import ReleaseError
from common.package import PackageFacts, save_package
from common.parameters import to_state
from common.plan import Plan
from common.plan_file import plan_toml
from common.tasks.catalog import task_of
from deploy.privacy_audit import check_release, copy_record
from deploy.run_folder import Start, final_model, read_arm_record
from deploy.run_state import WITHHELD_FILE, now
from deploy.versions import versions
from server.federation import first_model, plan_layout
from server.record import ArmRecord, Picture, RunRecord, SiteRecord
from server.report import write_report
from server.run_files import ROSTERS_FILE

log = logging.getLogger("fedct.run")

_NORMS_APART = "with fedbn each site keeps norm layers of its own; no model/ is written"


def hand_out_model(folder: Path, plan: Plan, record: ArmRecord) -> None:
    """Write the final federated model as a package, where there is a global model.

    Args:
        folder: The run folder.
        plan: Its plan.
        record: Of the federated arm.

    Raises:
        ReleaseError: The model does not pass the plan's gate; there is no model, and a
            note says why.
    """
    if not plan.has_global_model:
        log.warning("no global model", extra={"why": _NORMS_APART})
        return
    try:
        check_release(folder, plan, record)
    except ReleaseError as error:
        note = json.dumps({"why": str(error), "at": now()})
        write_whole(folder / WITHHELD_FILE, note.encode())
        shutil.rmtree(folder / "model", ignore_errors=True)
        raise
    (folder / WITHHELD_FILE).unlink(missing_ok=True)
    network, layout = first_model(plan)
    monitor = task_of(plan).monitor
    best = record.rounds[record.final_round - 1]
    facts = PackageFacts(
        round=record.final_round,
        monitor=monitor,
        monitor_value=best.validation_mean.get(monitor),
        sites=len(best.sites),
        versions=versions(),
    )
    state = to_state(layout, final_model(folder), network)
    del network
    gc.collect()  # networks are full of cycles, and this one is a model
    save_package(folder / "model", plan, state, facts=facts)
    copy_record(folder)


def run_record(
    plan: Plan,
    start: Start,
    *,
    engine: str,
    sites: list[SiteRecord],
    arms: Sequence[ArmRecord],
    device: str,
    intake_s: float | None = None,
    pictures: Sequence[Picture] = (),
) -> RunRecord:
    """The content of `report.json`.

    Args:
        plan: The plan.
        start: When and how the run began.
        engine: What carried the messages.
        sites: The hospitals, as the report may show them.
        arms: Federated first.
        device: What trained.
        intake_s: Wall time of intake, where it is known.
        pictures: Of public cases.
    """
    task = task_of(plan)
    return RunRecord(
        name=plan.plan.name,
        description=plan.plan.description,
        task=plan.task.kind,
        monitor=task.monitor,
        class_names=list(task.class_names),
        plan_digest=plan.digest,
        plan_toml=plan_toml(plan, with_simulation=False),
        engine=engine,
        started=start.at,
        finished=now(),
        seconds=(intake_s or 0.0) + sum(arm.seconds for arm in arms),
        intake_s=intake_s,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        parameters=plan_layout(plan).size,
        sites=sites,
        arms=list(arms),
        no_model="" if plan.has_global_model else _NORMS_APART,
        pictures=list(pictures),
        versions=versions(),
        device=device,
    )


def hand_out(folder: Path, plan: Plan, record: RunRecord) -> None:
    """Write model and report; the report too where the gate keeps the model back.

    Args:
        folder: The run folder.
        plan: Its plan.
        record: Of the run; the federated arm comes first.

    Raises:
        ReleaseError: See `hand_out_model`.
    """
    try:
        hand_out_model(folder, plan, record.arms[0])
    except ReleaseError as error:
        write_report(record.model_copy(update={"no_model": str(error)}), folder)
        raise
    write_report(record, folder)


def hand_out_run(folder: Path, plan: Plan, start: Start) -> RunRecord:
    """Write model and report of a real federation's run that has ended."""
    arm = read_arm_record(folder)
    rosters = json.loads((folder / ROSTERS_FILE).read_text())
    sites = [
        SiteRecord(
            name=name,
            accepted=roster["accepted"],
            found=roster["found"],
            codes={},  # stay at the hospital
            train=roster["train"],
            validation=roster["validation"],
            test=roster["test"],
        )
        for name, roster in sorted(rosters.items())
    ]
    record = run_record(
        plan,
        start,
        engine="deployment",
        sites=sites,
        arms=[arm],
        device="each hospital's own machine",
    )
    hand_out(folder, plan, record)
    return record
