"""A real federation on one machine: overhead of a round, first step, lidc, memory.

    python tests/bench/bench_federation.py round [--repeats 2]
    python tests/bench/bench_federation.py lidc --data-root DATA [--repeats 3]
    python tests/bench/bench_federation.py memory [--sizes 50 500] [--sites 2 8 32]

`round`: four sites, a model of one convolution, one optimiser step; then stock Flower
with four SuperNodes and four numbers, both with TLS and node keys, ours with client
certificates and nginx besides. Each side is up alone. A round is the time from one line
"round" in the hub's log to the next; the first step is counted from that line to the
site's own line about it, so it holds the end of the round before, the order, the way
to the site and the step itself.

`lidc`: the 2D U-Net of `deploy/plans/lidc_nodules.toml` on real CT, 20 steps of 32, one
thread a site; then as many steps for as many sites in one process, in plain PyTorch on
all cores. Five rounds of either are one pair. The last round of a run, which is judged
too, is left out. Beside the ratio of wall time stands that of CPU time, of all programs
of hub and sites together, the begin of the run included.

`memory`: the real hub with `tests/bench/light_sites.py` as hospitals. Peak resident
memory of each of the hub's processes above what it held after a run of a tiny model,
over the rounds and over the hand-out of the model at the end.
"""

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from common.plan_file import load_plan, plan_toml
from common.sources import Source
from deploy.hub_runs import submit
from deploy.hub_status import hub_status
from deploy.phantom.scanner import HOSPITALS
from deploy.run_state import RUNS, read_run
from deploy.supervisor import read_processes
from server.run_files import ARM_RECORD_FILE
from tests.bench.bench_round import PlainSite
from tests.bench.on_this_machine import (
    ENVIRONMENT,
    Place,
    all_running,
    federate,
    pid_of,
    program,
    rounds_of,
    run,
    running,
    stamps,
    until,
    wait_for_end,
)
from tests.bench.phantom_plan import write_plan
from tests.bench.side_by_side import Pairs, machine, seconds
from tests.bench.stock_flower import stock

ROUNDS = 12
LIDC = Path(__file__).resolve().parents[2] / "deploy" / "plans" / "lidc_nodules.toml"
CHANNELS = {
    50: [44, 88, 176, 352, 704],
    200: [89, 178, 356, 712, 1424],
    500: [140, 280, 560, 1120, 2240],
}
"""Of a 2D U-Net with two residual units, by MB of its parameters."""


def online(place: Place, names: list[str]) -> bool:
    rows = hub_status(place.hub).sites
    return {row.name for row in rows if row.online} >= set(names)


# --- round ------------------------------------------------------------------------


def has_rounds(folder: Path, wanted: int) -> bool:
    return read_run(folder).rounds_done >= wanted


def cpu_s(place: Place) -> dict[str, float]:
    """CPU seconds that the programs of hub and sites have used."""
    ticks = os.sysconf("SC_CLK_TCK")
    used = {}
    for folder in (place.hub, *place.sites.values()):
        for row in read_processes(folder):
            pids = nginx_pids(folder) if row["name"] == "nginx" else [row["pid"]]
            for pid in pids:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
                user, system = fields.split()[11:13]
                name = str(row["name"])
                used[name] = used.get(name, 0.0) + (int(user) + int(system)) / ticks
    return used


def our_rounds(root: Path) -> tuple[list[float], list[float], dict[str, float]]:
    """Seconds of each round, and to each site's first step; CPU seconds of a round.

    Of all rounds from the second to the last but one.
    """
    plan = write_plan(
        root / "plan",
        sites=4,
        model={"name": "LinearProbe"},
        training={"steps": 1, "batch_size": 1, "patch": [16, 16]},
        rounds=ROUNDS,
        every=ROUNDS,
    )
    pictures = str(root / "plan" / "data" / "pictures")
    sources = {
        h.name: Source(
            source=pictures, format="images", where={"vendor": h.scanner.vendor}
        )
        for h in HOSPITALS[:4]
    }
    place = federate(root / "federation", sources)
    with all_running(place):
        until(lambda: online(place, list(sources)), 600.0)
        since = time.time()
        folder = submit(place.hub / RUNS, plan, "trivial", list(sources))
        until(partial(has_rounds, folder, 1), 600.0)
        before = cpu_s(place)
        until(partial(has_rounds, folder, ROUNDS - 1), 600.0, every_s=0.5)
        after = cpu_s(place)
        wait_for_end(folder)
    said = stamps(place.hub, "runner", since)
    ends = [at for at, text in said if text.split()[0] == "round"]
    assert len(ends) == len(rounds_of(folder)) == ROUNDS
    each = [b - a for a, b in itertools.pairwise(ends)][:-1]  # the last is judged
    firsts = []
    for site in place.sites.values():
        steps = [
            at for at, t in stamps(site, "service", since) if t.startswith("first step")
        ]
        assert len(steps) == ROUNDS
        firsts += [step - end for end, step in zip(ends, steps[1:], strict=False)]
    cpu = {name: (after[name] - before[name]) / (ROUNDS - 2) for name in after}
    return each, firsts, cpu


def stock_rounds(root: Path) -> list[float]:
    """Seconds of each round of stock Flower."""
    with stock(root) as deployment:
        ends = deployment.round_ends(8)
    return [b - a for a, b in itertools.pairwise(ends)]


def print_rounds(root: Path, repeats: int, alone: bool) -> None:
    print(f"4 sites, trivial model, {machine()}")
    pairs, firsts = Pairs([], []), []
    for number in range(repeats):
        theirs = [math.nan] if alone else stock_rounds(root / f"stock-{number}")
        ours, steps, cpu = our_rounds(root / f"ours-{number}")
        pairs.ours.append(statistics.median(ours))
        pairs.theirs.append(statistics.median(theirs))
        firsts += steps
        print(
            f"pair {number + 1}: a round {pairs.ours[-1]:.2f} s "
            f"(worst {max(ours):.2f}), stock Flower {pairs.theirs[-1]:.2f} s, "
            f"ratio {pairs.ratios[-1]:.2f}; CPU seconds of a round: "
            + ", ".join(f"{name} {used:.2f}" for name, used in cpu.items()),
            flush=True,
        )
    print(f"median ratio {pairs.ratio:.2f}, a round {pairs.medians[0]:.2f} s")
    tail = statistics.quantiles(firsts, n=20)[-1]
    print(
        f"end of a round to the next one's first step: median "
        f"{statistics.median(firsts):.2f} s, 19 of 20 below {tail:.2f} s, "
        f"worst {max(firsts):.2f} s"
    )


# --- lidc -------------------------------------------------------------------------


def print_lidc(root: Path, data_root: Path, repeats: int) -> None:
    print(f"lidc U-Net, 4 sites, 5 rounds of 20 steps of 32, {machine()}")
    plan = load_plan(LIDC)
    assert plan.simulation is not None
    changed = plan.model_copy(
        update={
            "training": plan.training.model_copy(
                update={"steps": 20, "epochs": None, "batch_size": 32}
            ),
            "federation": plan.federation.model_copy(update={"rounds": 6}),
            "evaluation": plan.evaluation.model_copy(update={"every": 6}),
        }
    )
    path = root / "lidc.toml"
    path.write_text(plan_toml(changed, with_simulation=False))
    sources = {
        site.name: Source(
            source=str((data_root / site.source).resolve()),
            format=site.format,
            where=site.where,
        )
        for site in plan.simulation.sites
    }
    place = federate(root / "federation", sources)
    pairs, cpu = Pairs([], []), []
    with all_running(place):
        until(lambda: online(place, list(sources)), 600.0)
        run(place, path, "warm")
        sites = [PlainSite(load_plan(path), folder) for folder in place.sites.values()]

        def plain() -> None:
            for site in sites:
                site.train()

        plain()
        for number in range(repeats):
            since, before = time.time(), sum(cpu_s(place).values())
            folder = submit(place.hub / RUNS, path, f"lidc-{number}", list(sources))
            until(partial(has_rounds, folder, 5), 3600.0, every_s=1.0)
            ours_cpu = sum(cpu_s(place).values()) - before
            wait_for_end(folder)
            said = stamps(place.hub, "runner", since)
            begin = next(at for at, text in said if text.split()[0] == "arm")
            ends = [at for at, text in said if text.split()[0] == "round"]
            pairs.ours.append((ends[4] - begin) / 5)
            before = time.process_time()
            pairs.theirs.append(seconds(lambda: [plain() for _ in range(5)]) / 5)
            cpu.append(ours_cpu / (time.process_time() - before))
            print(
                f"pair {number + 1}: a round {pairs.ours[-1]:.2f} s, plain PyTorch "
                f"{pairs.theirs[-1]:.2f} s on {torch.get_num_threads()} threads, "
                f"ratio {pairs.ratios[-1]:.2f}, of CPU time {cpu[-1]:.2f}",
                flush=True,
            )
    print(f"median ratio {pairs.ratio:.2f}, of CPU {statistics.median(cpu):.2f}")


# --- memory -----------------------------------------------------------------------


def status_mb(pid: int, which: str) -> float:
    """VmRSS (now) or VmHWM (peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(which)


def nginx_pids(hub: Path) -> list[int]:
    master = pid_of(hub, "nginx")
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [master, *map(int, children)]


class Peak:
    """Peak resident memory of a process above what it holds now; Linux's own count."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.base_mb = status_mb(pid, "VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # forget the peak: proc(5)

    def above_mb(self) -> float:
        return status_mb(self.pid, "VmHWM") - self.base_mb


def big_plan(root: Path, model: dict[str, object], rounds: int) -> Path:
    """A plan for light sites; its pictures are never read."""
    drawn = write_plan(
        root,
        sites=1,
        model=model,
        training={"steps": 1, "batch_size": 1, "patch": [64, 64]},
        rounds=rounds,
        every=rounds,
    )
    plan = load_plan(drawn)
    changes = {"deadline_s": 3600.0, "rejoin_s": 600.0}
    patient = plan.federation.model_copy(update=changes)
    path = root / "patient.toml"
    whole = plan.model_copy(update={"federation": patient})
    path.write_text(plan_toml(whole, with_simulation=False))
    return path


def memory_of(root: Path, size_mb: int, count: int, rounds: int) -> str:
    """One row of the table."""
    model: dict[str, object] = {"name": "UNet", "residual_units": 2}
    tiny = big_plan(root / "tiny", {**model, "channels": [4, 8, 8, 8, 8]}, 1)
    model["channels"] = CHANNELS[size_mb]
    big = big_plan(root / "big", model, rounds)
    names = [f"site-{number:02d}" for number in range(count)]
    source = Source(source=str(root / "big" / "data"), format="images")
    place = federate(root / "federation", dict.fromkeys(names, source))
    script = str(Path(__file__).with_name("light_sites.py"))
    light = [sys.executable, script, str(root / "federation"), *names]
    with (
        running(place.hub, "server"),
        program(light, root / "light.log", env=ENVIRONMENT),
    ):
        until(lambda: online(place, names), 300.0)
        run(place, tiny, "tiny")
        runner, superlink = (
            Peak(pid_of(place.hub, name)) for name in ("runner", "superlink")
        )
        began = time.monotonic()
        folder = submit(place.hub / RUNS, big, "big", names)
        of_rounds = 0.0
        while not (folder / ARM_RECORD_FILE).exists():
            of_rounds = runner.above_mb()
            time.sleep(0.02)
        wait_for_end(folder)
        took = time.monotonic() - began
        whole = runner.above_mb(), superlink.above_mb()
        web = sum(status_mb(p, "VmHWM") for p in nginx_pids(place.hub))
    records = rounds_of(folder)
    assert all(r.outcome == "closed" and len(r.sites) == count for r in records)
    cells = [f"{mb:6.0f} MB {mb / size_mb:5.2f}" for mb in (of_rounds, *whole)]
    each = statistics.median(r.seconds for r in records)
    return (
        f"{size_mb:5} MB{count:4} sites{'':3}"
        + "".join(f"{c:>20}" for c in cells)
        + f"{web:8.0f} MB{each:10.1f} s{took:8.0f} s"
    )


def print_memory(root: Path, sizes: list[int], sites: list[int], rounds: int) -> None:
    print(f"peak memory above a process that is warm, {rounds} rounds, {machine()}")
    heads = ("runner, rounds", "whole run", "SuperLink")
    print(f"{'':20}" + "".join(f"{head:>20}" for head in heads), end="")
    print(f"{'nginx':>11}{'a round':>12}{'all':>10}")
    for size_mb, count in itertools.product(sizes, sites):
        folder = root / f"{size_mb}-{count}"
        print(memory_of(folder, size_mb, count, rounds), flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = ("round", "lidc", "memory")
    parser.add_argument("what", choices=what, nargs="?", default="round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--alone", action="store_true", help="without stock Flower")
    parser.add_argument("--keep", type=Path, help="a new folder that stays")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        root.mkdir(exist_ok=True)
        if options.what == "round":
            print_rounds(root, options.repeats, options.alone)
        elif options.what == "lidc":
            print_lidc(root, options.data_root, options.repeats)
        else:
            print_memory(root, options.sizes, options.sites, options.rounds)


if __name__ == "__main__":
    main()
