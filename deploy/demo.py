"""`fedct demo`: phantom hospitals, then the whole road, then a report to look at.

One hospital's export also holds a folder of awkward series, so that the report shows
what intake refuses and why.
"""

from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path

from common.errors import RunError
from common.sources import PUBLIC
from deploy.phantom.awkward import write_awkward
from deploy.phantom.hospital import write_hospital
from deploy.phantom.scanner import HOSPITALS
from deploy.progress import tell_phantom
from deploy.simulate import simulate
from server.record import RunRecord

AWKWARD_SITE = "west"
"""The hospital whose export holds the awkward series too."""
PUBLIC_PATIENTS = 3


def demo(out: Path, *, patients: int | None = None, seed: int = 1) -> RunRecord:
    """Write phantoms below `out` and federate over them.

    Args:
        out: Must not exist or be empty. Gets `phantoms/`, `demo.toml` and `run/`.
        patients: Per hospital; unset: eight.
        seed: Seed of the phantoms.

    Raises:
        RunError: The folder is not empty.
    """
    plan = out / "demo.toml"
    if out.exists() and not out.is_dir():
        raise RunError(f"demo got a file {out.name!r}, expected a folder for --out")
    if out.exists() and any(out.iterdir()):
        again = f"fedct simulate {plan} --out {out / 'run'} --baselines pooled,local"
        go_on = f", or go on with: {again} --resume" if plan.exists() else ""
        raise RunError(
            f"folder {out.name!r} is not empty, expected a new one; choose another "
            f"--out or delete it{go_on}"
        )
    write_phantoms(out / "phantoms", patients=patients, seed=seed)
    with files("deploy").joinpath("plans/demo.toml").open("rb") as source:
        plan.write_bytes(source.read())
    return simulate(plan, out / "run", baselines=("pooled", "local"))


def write_phantoms(out: Path, *, patients: int | None, seed: int) -> None:
    """The four hospitals, one of them with awkward series, and public cases."""
    public = replace(HOSPITALS[0], name=PUBLIC, patients=PUBLIC_PATIENTS)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        writing = {}
        for hospital in (*HOSPITALS, public):
            chosen = replace(hospital, patients=patients) if patients else hospital
            future = pool.submit(write_hospital, out / hospital.name, chosen, seed=seed)
            writing[future] = chosen
        for future in as_completed(writing):
            future.result()
            count = writing[future].patients
            tell_phantom(writing[future].name, count, count)
    write_awkward(out / "awkward", seed=seed)
    (out / "awkward" / "export").rename(out / AWKWARD_SITE / "AWKWARD")
