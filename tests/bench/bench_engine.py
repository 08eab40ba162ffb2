"""The in-process engine: time to the first round, and what a round costs.

    python tests/bench/bench_engine.py [--ray] [--repeats 3]

Four phantom hospitals, a model of one convolution, one optimiser step per site and
round: whatever is left is the engine's. It is the whole road all the same: intake,
ServerApp, ClientApp, messages, the sites' states, checkpoints, journal, all synced to
disk. Every figure is a median over fresh processes. The clock starts when modules are
imported, among them torch's compiler, which torch imports at the first optimiser of any
program. `--ray` runs the same plan on Flower's simulation engine.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.side_by_side import machine, seconds

ROUNDS = 60
MEMORY = Path("/dev/shm")


class Clock(logging.Handler):
    """When each round was over."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "round":
            self.rounds.append(time.perf_counter())


def run_once(place: Path, every: int, engine: str) -> dict[str, float]:
    """One rehearsal in this process: seconds to the first round, median ms a round."""
    import torch
    import torch._dynamo

    from deploy.simulate import simulate
    from tests.bench.phantom_plan import write_plan

    clock = Clock()
    log = logging.getLogger("fedct.run")
    log.addHandler(clock)
    log.setLevel(logging.INFO)
    log.propagate = False
    with tempfile.TemporaryDirectory(dir=place) as folder:
        plan = write_plan(
            Path(folder),
            sites=4,
            model={"name": "LinearProbe"},
            training={"steps": 1, "batch_size": 1, "patch": [16, 16]},
            rounds=ROUNDS,
            every=every,
        )
        torch.set_num_threads(1)
        start = time.perf_counter()
        simulate(plan, Path(folder) / "run", engine=engine, device="cpu")
    ends = clock.rounds
    each = [end - begin for begin, end in itertools.pairwise(ends)]
    each = each[:-1]  # the last round is always judged
    return {"first_s": ends[0] - start, "round_ms": 1000 * statistics.median(each)}


def in_child(place: Path, every: int, engine: str) -> dict[str, float]:
    """`run_once` in a process of its own."""
    command = [sys.executable, __file__, "--child", str(place), str(every), engine]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def sync_ms(place: Path) -> float:
    """What this place takes to make one small file durable, median of 20."""

    def write_and_sync() -> None:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

    return 1000 * statistics.median(seconds(write_and_sync) for _ in range(20))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        place, every, engine = options.child
        print(json.dumps(run_once(Path(place), int(every), engine)))
        return
    places = {"disk": Path(tempfile.gettempdir())}
    if MEMORY.is_dir():
        places["memory"] = MEMORY
    print(f"4 sites, trivial model, {ROUNDS} rounds, median of {options.repeats} runs")
    print(machine())
    print("one write and sync: ", end="")
    print(", ".join(f"{name} {sync_ms(path):.1f} ms" for name, path in places.items()))
    print(f"{'':44}{'first round':>12} {'a round':>10}")
    cases = [
        (f"in-process, {name}, {words}", place, every, "in-process")
        for words, every in (("training alone", ROUNDS), ("judged each round", 1))
        for name, place in places.items()
    ]
    if options.ray:
        cases.append(("ray, disk, training alone", places["disk"], ROUNDS, "ray"))
    for title, place, every, engine in cases:
        runs = [in_child(place, every, engine) for _ in range(options.repeats)]
        first, each = (
            statistics.median(run[name] for run in runs)
            for name in ("first_s", "round_ms")
        )
        print(f"{title:44}{first:10.2f} s {each:7.1f} ms", flush=True)


if __name__ == "__main__":
    main()
