"""The whole federation on this machine: intake, arms, report, model.

`simulate` lays out a run folder, takes every site's images in, runs the federated arm
and the baselines that were asked for, and writes what is handed out. It can be called
again on the same folder after any interruption and goes on where it stopped.

    run folder   plan.toml  started.json  arms.json  journal.sqlite  checkpoints/
                 arm.json  final.safetensors  model/  report.json  report.html
                 sites/<name>/  baselines/<arm>/  lock
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch

from client.app import close_sites
from client.intake.run import SiteData
from client.open_site import choose_device, open_cases
from client.site import SiteConfig, write_site
from common.durable import write_whole
from common.errors import FedctError, PlanError, UsageError
from common.networks import check_fits
from common.plan import Plan
from common.plan_file import load_plan, plan_toml
from common.plan_privacy import is_masked
from common.sources import POOLED, PUBLIC, Simulation, Source
from deploy.engine import InProcessGrid, run_in_process, run_on_ray
from deploy.hand_out import hand_out, run_record
from deploy.pictures import draw_pictures
from deploy.run_folder import (
    BASELINES,
    Baseline,
    Start,
    begin,
    finished_record,
    held,
    read_arm_record,
    torch_threads,
)
from deploy.versions import device_name
from server.app import write_arms
from server.federation import Arm
from server.record import ArmRecord, RunRecord, SiteRecord
from server.run_files import PLAN_FILE

log = logging.getLogger("fedct.run")

Engine = Literal["in-process", "ray"]


def parse_baselines(text: str) -> tuple[Baseline, ...]:
    """The baselines in a comma-separated list."""
    chosen = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in chosen:
        if name not in BASELINES:
            raise UsageError(
                f"option --baselines got {name!r}, expected pooled, local or both"
            )
    return cast(tuple[Baseline, ...], chosen)


@dataclass(frozen=True)
class Run:
    """A laid-out run."""

    folder: Path
    """The run folder."""
    plan: Plan
    """The effective plan."""
    sites: tuple[str, ...]
    """Names of the hospitals, in folding order."""
    arms: tuple[Arm, ...]
    """Federated first."""
    has_public: bool
    """Whether there are public cases."""

    def site_folder(self, name: str) -> Path:
        """Where a site of this run works."""
        return self.folder / "sites" / name


def simulate(
    plan_path: Path,
    out: Path,
    *,
    engine: Engine = "in-process",
    baselines: Sequence[Baseline] = (),
    seed: int | None = None,
    resume: bool = False,
    data_root: Path | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> RunRecord:
    """Run or resume a rehearsal and write its report and model.

    Args:
        plan_path: The plan; needs `[simulation]`.
        out: The run folder; must be new or empty unless `resume`.
        engine: What carries the federated arm's messages; baselines always run in
            this process.
        baselines: "pooled" trains one model on all sites' cases, "local" one per site.
            A resumed run keeps those it has.
        seed: Replaces the plan's seed.
        resume: Go on with the run in `out`.
        data_root: Replaces the plan's `data_root`.
        device: Where sites compute.
        threads: CPU threads of torch; unset: one per core. A resumed run keeps those it
            began with, because other ones would round differently.

    Raises:
        FedctError: The plan can't work, or the run can't start; nothing is half done.
    """
    began = time.perf_counter()
    plan = load_plan(plan_path)
    if seed is not None:
        about = plan.plan.model_dump() | {"seed": seed}
        plan = Plan.model_validate(plan.model_dump() | {"plan": about})
    if baselines and not plan.has_global_model:
        raise UsageError(
            "option --baselines got a plan with fedbn, whose models are whole only at "
            "their own sites; expected another algorithm, or no baselines"
        )
    check_fits(plan)
    simulation = _simulation_of(plan, plan_path.name)
    _check_engine(engine, plan, simulation)
    choose_device(device)
    root = (data_root or plan_path.parent / simulation.data_root).resolve()
    with held(out, plan, resume=resume):
        write_whole(out / PLAN_FILE, plan_toml(plan).encode())
        start = begin(out, threads or torch.get_num_threads(), baselines)
        run = _lay_out(plan, simulation, out, start.baselines, root, device)
        data = _take_in(run)
        intake_s = time.perf_counter() - began
        try:
            with torch_threads(start.threads):
                records = _run_arms(run, engine)
                record = _record(run, start, data, records, engine, intake_s, device)
        finally:
            close_sites(out)
        hand_out(run.folder, run.plan, record)
    log.info("finished", extra={"seconds": time.perf_counter() - began})
    return record


def _simulation_of(plan: Plan, name: str) -> Simulation:
    """Where the plan's sites lie."""
    if plan.simulation is None:
        raise PlanError(
            f"plan {name!r} has no [simulation], expected the sites to rehearse with; "
            "see `fedct plan new`"
        )
    return plan.simulation


def _check_engine(engine: Engine, plan: Plan, simulation: Simulation) -> None:
    """Masks need sites that remember from turn to turn; Ray's workers don't."""
    sites = len(simulation.sites)
    if engine == "ray" and is_masked(plan.privacy, plan.federation, sites):
        raise UsageError(
            "option --engine got 'ray', whose workers forget a site's secrets between "
            "the turns of secure aggregation; expected in-process, or a plan with "
            "privacy.secure_aggregation = 'off'"
        )


def _lay_out(
    plan: Plan,
    simulation: Simulation,
    out: Path,
    baselines: Sequence[Baseline],
    root: Path,
    device: str,
) -> Run:
    text = plan_toml(plan)
    run = Run(
        folder=out,
        plan=plan,
        sites=tuple(sorted(site.name for site in simulation.sites)),
        arms=_arms(plan, simulation, out, baselines),
        has_public=simulation.public is not None,
    )
    for name, source in _sources(simulation).items():
        absolute = source.model_copy(update={"source": str(root / source.source)})
        config = SiteConfig(
            name=name, source=absolute, public=name == PUBLIC, device=device
        )
        write_site(run.site_folder(name), config, text, plan.plan.seed)
    members = tuple(str(run.site_folder(name).resolve()) for name in run.sites)
    pooled = SiteConfig(name=POOLED, members=members, device=device)
    write_site(run.site_folder(POOLED), pooled, text, plan.plan.seed)
    write_arms(out, list(run.arms))
    return run


def _sources(simulation: Simulation) -> dict[str, Source]:
    named: dict[str, Source] = {
        site.name: Source(source=site.source, format=site.format, where=site.where)
        for site in simulation.sites
    }
    if simulation.public is not None:
        named[PUBLIC] = simulation.public
    return named


def _arms(
    plan: Plan, simulation: Simulation, out: Path, baselines: Sequence[Baseline]
) -> tuple[Arm, ...]:
    """The federated arm, and one per baseline that was asked for."""
    sites = tuple(sorted(site.name for site in simulation.sites))

    def arm(name: str, train: tuple[str, ...], validate: tuple[str, ...]) -> Arm:
        folder = out if name == "federated" else out / "baselines" / name
        run = f"{plan.digest[:16]}-{name}"
        return Arm(name, plan, train, validate, sites, folder, run)

    arms = [arm("federated", sites, sites)]
    if "pooled" in baselines:
        arms.append(arm(POOLED, (POOLED,), sites))
    if "local" in baselines:
        arms += [arm(f"local-{site}", (site,), (site,)) for site in sites]
    return tuple(arms)


def _take_in(run: Run) -> dict[str, SiteData]:
    """Every site's cases; the store makes a second time quick."""
    data = {}
    for name in run.sites:
        log.info("intake", extra={"site": name})
        data[name] = _open(run, name)
        count = data[name].count
        about = {"site": name, "accepted": count.accepted, "found": count.found}
        log.info("taken in", extra=about)
    if run.has_public:
        _open(run, PUBLIC)
    return data


def _open(run: Run, name: str) -> SiteData:
    """Take a site's images in; a refusal says which site it is."""
    try:
        return open_cases(run.site_folder(name), run.plan).data
    except FedctError as error:
        error.args = (f"site {name!r}: {error}",)
        raise


def _run_arms(run: Run, engine: Engine) -> list[ArmRecord]:
    """Run what is not finished yet; the federated arm first."""
    pooled = (POOLED,) if any(arm.train == (POOLED,) for arm in run.arms) else ()
    public = (PUBLIC,) if run.has_public else ()
    hospitals = [run.site_folder(name) for name in (*run.sites, *public)]
    grid = InProcessGrid([*hospitals, *map(run.site_folder, pooled)])
    records = []
    for arm in run.arms:
        if (record := finished_record(arm.folder)) is None:
            if engine == "ray" and arm.name == "federated":
                run_on_ray(hospitals, run.folder, arm.name)
            else:
                run_in_process(grid, run.folder, arm.name)
            record = read_arm_record(arm.folder)
        records.append(record)
    return records


def _record(
    run: Run,
    start: Start,
    data: dict[str, SiteData],
    arms: list[ArmRecord],
    engine: Engine,
    intake_s: float,
    device: str,
) -> RunRecord:
    shown = run.has_public and run.plan.has_global_model
    public = run.site_folder(PUBLIC) if shown else None
    return run_record(
        run.plan,
        start,
        engine=engine,
        sites=[_site_record(name, data[name]) for name in run.sites],
        arms=arms,
        device=device_name(choose_device(device)),
        intake_s=intake_s,
        pictures=draw_pictures(run.folder, public, run.plan) if public else [],
    )


def _site_record(name: str, data: SiteData) -> SiteRecord:
    codes = Counter(
        finding.code.value for row in data.verdicts for finding in row.findings
    )
    return SiteRecord(
        name=name,
        accepted=data.count.accepted,
        found=data.count.found,
        codes=dict(sorted(codes.items())),
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
    )
