"""The Flower ServerApp: one arm of a run, on whatever grid the engine brings.

The engine says which by the run's configuration: `run-folder` and `arm`. The folder
holds `plan.toml` and `arms.json`; what comes out stands in the arm's journal,
checkpoints, `arm.json` and `final.safetensors`.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.durable import write_whole
from common.plan_file import load_plan
from server.admission import Waiting
from server.federation import Arm, Wire, open_federation
from server.rounds import run_arm
from server.run_files import (
    ARM_RECORD_FILE,
    ARMS_FILE,
    FINAL_FILE,
    PLAN_FILE,
    ROSTERS_FILE,
)
from server.vector_file import write_vectors
from server.verifying import Keys, Note

RUN_FOLDER_KEY = "run-folder"
ARM_KEY = "arm"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the arm that the context names, and write down how it went."""
    folder = Path(str(context.run_config[RUN_FOLDER_KEY]))
    execute(grid, folder, str(context.run_config[ARM_KEY]))


def execute(
    grid: Grid,
    folder: Path,
    name: str,
    keys: Keys | None = None,
    tell: Callable[[Waiting], None] = lambda waiting: None,
    wire: Wire | None = None,
    note: Note = lambda site, mark: None,
) -> None:
    """Run an arm to its end, or resume it.

    Args:
        grid: Flower's grid, of any engine.
        folder: The run folder.
        name: The arm.
        keys: Verifying keys of the enrolled sites; unset in a rehearsal.
        tell: Hears who is missing, and why, while sites are waited for.
        wire: Counts the bytes of each site; unset where there is no wire.
        note: Hears how far each site's audit log is.
    """
    arm = read_arm(folder, name)
    federation = replace(open_federation(grid, arm, keys, tell, note), wire=wire)
    record, model = run_arm(federation, arm)
    rosters = {site: asdict(roster) for site, roster in federation.rosters.items()}
    write_whole(arm.folder / ROSTERS_FILE, json.dumps(rosters, indent=1).encode())
    write_vectors(arm.folder / FINAL_FILE, {"model": model})
    write_whole(arm.folder / ARM_RECORD_FILE, record.model_dump_json(indent=1).encode())


def write_arms(folder: Path, arms: list[Arm]) -> None:
    """Say which arms a run has, for `read_arm`."""
    rows = {
        arm.name: {
            "train": arm.train,
            "validate": arm.validate,
            "test": arm.test,
            "folder": str(arm.folder.relative_to(folder)),
            "run": arm.run,
        }
        for arm in arms
    }
    write_whole(folder / ARMS_FILE, json.dumps(rows, indent=1).encode())


def read_arm(folder: Path, name: str) -> Arm:
    """The arm of that name, as `write_arms` wrote it."""
    row = json.loads((folder / ARMS_FILE).read_text())[name]
    return Arm(
        name=name,
        plan=load_plan(folder / PLAN_FILE),
        train=tuple(row["train"]),
        validate=tuple(row["validate"]),
        test=tuple(row["test"]),
        folder=folder / row["folder"],
        run=row["run"],
    )
