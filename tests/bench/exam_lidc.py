"""The exams on real CT: federated, pooled and local models, over seeds, as one table.

    python tests/bench/exam_lidc.py nodules --data-root DATA --out runs/exam
    python tests/bench/exam_lidc.py malignancy --data-root DATA --out runs/exam
    python tests/bench/exam_lidc.py dp --data-root DATA --out runs/exam
    python tests/bench/exam_lidc.py masks --data-root DATA --out runs/exam

`dp` is what privacy costs: Dice of the nodules plan at epsilon 2, at 8 and without, per
patient, by the same epochs and batch size (of patients, with DP); no baselines.
`masks` is what secure aggregation costs: Dice with masks of 32 and 16 bits, and none.
Beside it stands the same plan without masks by another library's convolutions, which
sum in another order: what no one would call a difference in the method. With
`--further N` all arms go on for N rounds from one and the same state, that of the run
without masks at the end of `--rounds`, so that they hardly drift apart by chance.

Each seed is a run of its own in `OUT/<arm>-<seed>`, begun or gone on with; finished
ones are only read, so seeds can be run side by side. The seed decides the split by
patient, the first weights and every draw. DATA holds `lidc_nodules/lidc_nodules.zip`.
"""

import argparse
import shutil
import sqlite3
import statistics
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from client.mask_memory import save_carried
from client.state import load_state, save_state
from common.plan import Plan
from common.plan_file import load_plan, plan_toml
from common.secagg.lineage import FRESH, lineage_after
from common.secagg.terms import masked_weight
from deploy.progress import show_progress
from deploy.simulate import simulate
from server.federation import first_model
from server.journal import read_journal
from server.record import ArmRecord, RunRecord

PLANS = Path(__file__).resolve().parents[2] / "deploy" / "plans"
MONITOR = {"nodules": "dice", "malignancy": "auc"}
DP = {"delta": 1e-4, "clip_norm": 0.5, "patches_per_patient": 2}
"""Below one over the patients of any vendor; the largest has a few hundred."""


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exam", choices=[*sorted(MONITOR), "dp", "masks"])
    parser.add_argument("--epsilons", default="none,8,2", help="of `dp`")
    parser.add_argument("--rounds", type=int, help="of dp, masks; else the plan's")
    parser.add_argument("--further", type=int, help="of masks; see above")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.exam == "dp":
        _exam_dp(chosen)
        return 0
    if chosen.exam == "masks":
        _exam_masks(chosen)
        return 0
    records = {}
    for seed in map(int, chosen.seeds.split(",")):
        out = chosen.out / f"{chosen.exam}-{seed}"
        records[seed] = _record(chosen, seed, out)
    _print(records, MONITOR[chosen.exam])
    return 0


def _record(chosen: argparse.Namespace, seed: int, out: Path) -> RunRecord:
    report = out / "report.json"
    if report.exists():
        return RunRecord.model_validate_json(report.read_bytes())
    with show_progress():
        return simulate(
            PLANS / f"lidc_{chosen.exam}.toml",
            out,
            baselines=("pooled", "local"),
            seed=seed,
            resume=out.exists(),
            data_root=chosen.data_root,
            threads=chosen.threads,
        )


def _exam_dp(chosen: argparse.Namespace) -> None:
    """Run what is missing, then print Dice and what each patient paid at most."""
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    print("| epsilon | " + " | ".join(f"seed {seed}" for seed in seeds), end="")
    print(" | mean Dice | epsilon at each site, PLD / PRV | rounds |")
    print("|---" * (len(seeds) + 4) + "|")
    for epsilon in chosen.epsilons.split(","):
        records = [_private_record(chosen, epsilon, seed) for seed in seeds]
        values = [record.arms[0].test_mean["dice"] for record in records]
        cells = " | ".join(f"{value:.4f}" for value in values)
        paid = [
            f"{row.epsilon_pld} / {row.epsilon_prv}"
            for row in records[0].arms[0].rounds[-1].sites
        ]
        print(
            f"| {epsilon} | {cells} | {statistics.mean(values):.3f} "
            f"| {', '.join(paid)} | {len(records[0].arms[0].rounds)} |"
        )


def _private_record(chosen: argparse.Namespace, epsilon: str, seed: int) -> RunRecord:
    if epsilon == "none":
        return _run(chosen, "plain", seed, {})
    dp = {"epsilon": float(epsilon), **DP}
    return _run(chosen, f"dp-{epsilon}", seed, {"dp": dp})


def _exam_masks(chosen: argparse.Namespace) -> None:
    """Run what is missing, then print Dice, and that less the Dice without masks."""
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    print("| masks | " + " | ".join(f"seed {seed}" for seed in seeds), end="")
    print(" | mean Dice | minus that without, mean |")
    print("|---" * (len(seeds) + 3) + "|", flush=True)
    arms: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("none", "plain", {}),
        ("32 bits", "masks-32", _masks(32)),
        ("16 bits", "masks-16", _masks(16)),
        ("none, other kernels", "plain-native", {}),
    )
    plain: list[float] = []
    for name, folder, privacy in arms:
        native = folder == "plain-native"
        torch.backends.mkldnn.enabled = not native  # type: ignore[assignment]
        records = [_run(chosen, folder, seed, privacy) for seed in seeds]
        values = [record.arms[0].test_mean["dice"] for record in records]
        plain = plain or values
        far = statistics.mean(v - p for v, p in zip(values, plain, strict=True))
        cells = " | ".join(f"{value:.4f}" for value in values)
        mean = statistics.mean(values)
        print(f"| {name} | {cells} | {mean:.4f} | {far:+.4f} |", flush=True)


def _masks(bits: int) -> dict[str, object]:
    return {"secure_aggregation": "on", "mask_bits": bits}


def _run(
    chosen: argparse.Namespace,
    name: str,
    seed: int,
    privacy: dict[str, object],
) -> RunRecord:
    """The nodules plan with another `[privacy]`, run or read."""
    further = chosen.further if chosen.exam == "masks" else None
    start = None
    if further is not None:
        before = argparse.Namespace(**{**vars(chosen), "further": None})
        start = _start_of(before, seed)
        name += f"-{chosen.rounds}+{further}"
    elif chosen.rounds is not None:
        name += f"-{chosen.rounds}"
    out = chosen.out / f"{name}-{seed}"
    report = out / "report.json"
    if report.exists():
        return RunRecord.model_validate_json(report.read_bytes())
    content = load_plan(PLANS / "lidc_nodules.toml").model_dump(
        mode="json", exclude_none=True
    )
    content["privacy"] = {"secure_aggregation": "off", **privacy}
    if chosen.rounds is not None:
        content["federation"]["rounds"] = chosen.rounds + (further or 0)
    plan = chosen.out / f"{name}.toml"
    plan.parent.mkdir(parents=True, exist_ok=True)
    plan.write_text(plan_toml(Plan.model_validate(content)))
    if start is not None and not out.exists():
        _branch(start, out, plan, seed)
    return simulate(
        plan,
        out,
        seed=seed,
        resume=out.exists(),
        data_root=chosen.data_root,
        threads=chosen.threads,
    )


def _start_of(chosen: argparse.Namespace, seed: int) -> Path:
    """The finished run without masks from whose state all arms go on."""
    native = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
    _run(chosen, "plain", seed, {})
    torch.backends.mkldnn.enabled = native
    return Path(chosen.out) / f"plain-{chosen.rounds}-{seed}"


def _branch(start: Path, out: Path, plan: Path, seed: int) -> None:
    """Copy a finished run as the beginning of a longer one by another plan."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(start, partial)
    loaded = load_plan(plan)
    about = loaded.plan.model_copy(update={"seed": seed})
    seeded = loaded.model_copy(update={"plan": about})
    (partial / "plan.toml").write_text(plan_toml(seeded))
    for name in ("arm.json", "report.json", "report.html", "final.safetensors"):
        (partial / name).unlink()
    shutil.rmtree(partial / "model")
    run = f"{seeded.digest[:16]}-federated"
    last = read_journal(partial / "journal.sqlite")[1][-1].record
    # As if these rounds had been under masks, so that nobody begins anew.
    cases = [masked_weight(seeded.federation, row.cases) for row in last.sites]
    grid, lineage = (max(cases), len(cases)), lineage_after(FRESH, last.number, "")
    nothing = np.zeros(first_model(seeded)[1].size, np.float32)
    for before in partial.glob("sites/*/state/*-federated"):
        states = before.rename(before.with_name(run))
        state = replace(load_state(states, last.number), lineage=lineage)
        save_state(states, last.number, state, last.number - 1)
        save_carried(states, last.number, nothing, grid, 0)
    last = last.model_copy(update={"lineage": lineage, "weight_cap": grid[0]})
    with closing(sqlite3.connect(partial / "journal.sqlite")) as journal, journal:
        for key, value in (("plan", seeded.digest), ("run", run)):
            journal.execute("UPDATE run SET value = ? WHERE key = ?", (value, key))
        row = last.model_dump_json(), last.number
        journal.execute("UPDATE round SET record = ? WHERE number = ?", row)
    partial.rename(out)


def _print(records: dict[int, RunRecord], metric: str) -> None:
    """One row per arm: the mean over the sites for each seed, and the mean of those."""
    first = next(iter(records.values()))
    print(f"{metric} on test patients, mean over {len(first.sites)} sites\n")
    heads = [f"seed {seed}" for seed in records]
    print("| arm | " + " | ".join(heads) + " | mean | steps |")
    print("|---" * (len(heads) + 3) + "|")
    means: dict[str, list[float]] = {}
    for index, arm in enumerate(first.arms):
        arms = [record.arms[index] for record in records.values()]
        values = means[arm.name] = [a.test_mean[metric] for a in arms]
        steps = " / ".join(f"{a.steps:,}" for a in arms)
        cells = " | ".join(f"{value:.4f}" for value in values)
        print(f"| {arm.name} | {cells} | {statistics.mean(values):.3f} | {steps} |")
    baseline = f"baseline_{metric}"
    if baseline in first.arms[0].test_mean:
        values = [r.arms[0].test_mean[baseline] for r in records.values()]
        cells = " | ".join(f"{value:.4f}" for value in values)
        print(f"| diameter alone | {cells} | {statistics.mean(values):.3f} | |")
    gap = [p - f for p, f in zip(means["pooled"], means["federated"], strict=True)]
    print(f"\npooled minus federated: {', '.join(f'{g:.4f}' for g in gap)};", end=" ")
    print(f"mean {statistics.mean(gap):.4f}")
    for seed, record in records.items():
        print(f"seed {seed}: {_minutes(record.arms[0])} federated, {record.device}")


def _minutes(arm: ArmRecord) -> str:
    return f"{arm.seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
