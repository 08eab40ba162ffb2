"""Speed, memory and disk of the robust rules, on updates of 12.5 million parameters.

    python tests/bench/bench_robust.py [--sites 5,20] [--params N]

Memory is the peak of a fresh process above what it takes after its imports; disk is the
file that holds the updates until the round ends.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from common.plan_federation import Federation
from server.robust import HeldUpdates, open_aggregate
from tests.bench.bench_aggregate import MB, PARAMS, memory_mb
from tests.bench.side_by_side import machine

RULES = (
    "mean",
    "clipped_mean",
    "median",
    "trimmed_mean",
    "krum",
    "multi_krum",
    "geometric_median",
)


def measure(rule: str, sites: int, params: int, folder: Path) -> tuple[float, ...]:
    """Seconds from the first update to the result, peak MB, MB on disk."""
    update = np.random.default_rng(0).normal(size=params).astype(np.float32)
    federation = Federation(rounds=1, aggregation=rule, min_sites=sites)
    base = memory_mb("VmRSS")
    began = time.perf_counter()
    held = open_aggregate(
        federation,
        params,
        min_sites=sites,
        folder=folder,
        usual_norm=None,
        last_norm=float(np.linalg.norm(update)),
    )
    for n in range(sites):
        held.add(f"site {n:02}", np.roll(update, n), 1)
    on_disk = 0.0
    if isinstance(held, HeldUpdates):
        on_disk = os.fstat(held._file.fileno()).st_size / MB
    held.mean()
    return time.perf_counter() - began, memory_mb("VmHWM") - base, on_disk


def main() -> None:
    """Print a row per rule and number of sites."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", default="5,20")
    parser.add_argument("--params", type=int, default=PARAMS)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.child:
            rule, sites = options.child
            print(*measure(rule, int(sites), options.params, Path(folder)))
            return
    print(f"{options.params / 1e6} million float32, {machine()}")
    print(f"{'rule':18}{'sites':>6}{'s':>8}{'memory':>18}{'disk':>10}")
    model = options.params * 4 / MB
    for sites in map(int, options.sites.split(",")):
        for rule in RULES:
            command = [sys.executable, __file__, "--params", str(options.params)]
            command += ["--child", rule, str(sites)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak, disk = map(float, done.stdout.split())
            memory = f"{peak:.0f} MB {peak / model:.1f} models"
            print(
                f"{rule:18}{sites:>6}{seconds:>8.2f}{memory:>18}{disk:>7.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
