"""The exams on real CT: federated, pooled and local models, over seeds, as one table.

    python tests/bench/exam_lidc.py nodules --data-root DATA --out runs/exam
    python tests/bench/exam_lidc.py malignancy --data-root DATA --out runs/exam

Each seed is a run of its own in `OUT/<exam>-<seed>`, begun or gone on with; finished
ones are only read. The seed decides the split by patient, the first weights and every
draw. DATA holds `lidc_nodules/lidc_nodules.zip`.
"""

import argparse
import statistics
import sys
from pathlib import Path

from deploy.progress import show_progress
from deploy.simulate import simulate
from server.record import ArmRecord, RunRecord

PLANS = Path(__file__).resolve().parents[2] / "deploy" / "plans"
MONITOR = {"nodules": "dice", "malignancy": "auc"}


def main() -> int:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exam", choices=sorted(MONITOR))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
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
