"""One federated round against the same optimiser steps in a plain PyTorch loop.

    python tests/bench/bench_round.py [--sites 1 4] [--rounds 12] [--threads 1]

The 2D U-Net and the training of `deploy/plans/lidc_nodules.toml` (20 steps of 16
patches of 64 x 64) on phantom pictures. After each round of the federation the plain
loop takes as many steps, for as many sites, on batches of the same sampler over the
same prepared cases, then the federation goes on: so both meet the same other load. A
round runs from the last one's end to its own row in the journal: orders, training,
states synced, replies folded, server step, checkpoint synced. No round but the last is
judged.

Beside wall time stands CPU time, which other load disturbs less, and the share of the
round in which no site was taking steps.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from client.open_site import open_cases
from client.patches import PatchSampler
from client.train import rate_at
from common.networks import build_network
from common.plan import Plan
from common.plan_file import load_plan
from common.tasks.catalog import task_of
from deploy.simulate import simulate
from tests.bench.phantom_plan import write_plan
from tests.bench.side_by_side import Pairs, machine

MODEL = {"name": "UNet", "channels": [16, 32, 64, 128, 256], "residual_units": 2}
TRAINING = {
    "steps": 20,
    "batch_size": 16,
    "patch": [64, 64],
    "learning_rate": 4e-3,
    "foreground": 0.0,
}


class PlainSite:
    """One site's training as anybody would write it, in twenty lines."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        cases = open_cases(folder, plan)
        opened = [cases.store.open(record) for record in cases.data.train]
        self.plan, self.task = plan, task_of(plan)
        self.sampler = PatchSampler(opened, plan, np.random.default_rng(0))
        self.network = build_network(plan, self.task.out_channels, 0)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=plan.training.learning_rate, fused=True
        )
        self.step = 0

    def train(self) -> None:
        training = self.plan.training
        self.network.train()
        for _ in range(training.steps):
            batch = self.sampler.batch()
            total = training.steps * self.plan.federation.rounds
            self.optimizer.param_groups[0]["lr"] = rate_at(self.step, total, training)
            self.step += 1
            loss = self.task.loss(self.network(batch.image), batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if training.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    self.network.parameters(), training.max_grad_norm
                )
            self.optimizer.step()


class InTurn(logging.Handler):
    """Runs and times `plain` after each round; hears of rounds through the log."""

    def __init__(self, plain: Callable[[], None]) -> None:
        super().__init__()
        self.plain = plain
        self.began: tuple[float, float] | None = None
        self.wall = Pairs([], [])
        self.cpu = Pairs([], [])
        self.idle: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() != "round":
            return
        wall, cpu = now()
        self.plain()
        after = now()
        if self.began is not None:  # the first round also opens the sites
            self.wall.ours.append(wall - self.began[0])
            self.wall.theirs.append(after[0] - wall)
            self.cpu.ours.append(cpu - self.began[1])
            self.cpu.theirs.append(after[1] - cpu)
            steps_s = sum(row.train_s for row in record.__dict__["record"].sites)
            self.idle.append(1.0 - steps_s / (wall - self.began[0]))
        self.began = now()


def now() -> tuple[float, float]:
    """Wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def compare(sites: int, rounds: int) -> InTurn:
    """Rounds and plain loops in turn; the last round is judged too and left out."""
    log = logging.getLogger("fedct.run")
    log.setLevel(logging.INFO)
    log.propagate = False
    with tempfile.TemporaryDirectory() as folder:
        path = write_plan(
            Path(folder),
            sites=sites,
            model=MODEL,
            training=TRAINING,
            rounds=rounds,
            every=rounds,
        )
        run = Path(folder) / "run"
        plan = load_plan(path)
        assert plan.simulation is not None
        names = [site.name for site in plan.simulation.sites]
        others: list[PlainSite] = []

        def plain() -> None:
            if not others:
                folders = (run / "sites" / name for name in names)
                others.extend(PlainSite(plan, folder) for folder in folders)
            for other in others:
                other.train()

        turns = InTurn(plain)
        log.addHandler(turns)
        try:
            simulate(path, run, device="cpu")
        finally:
            log.removeHandler(turns)
    for column in (*vars(turns.wall).values(), *vars(turns.cpu).values(), turns.idle):
        column.pop()
    return turns


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"20 steps of 16 a site and round, {options.rounds - 2} pairs")
    print(f"{machine()}, {options.threads} threads")
    print(f"{'':10}{'round':>10}{'plain loop':>12}{'ratio':>8}", end="")
    print(f"{'half of the pairs':>20}{'ratio of CPU':>14}{'no steps':>10}")
    for sites in options.sites:
        turns = compare(sites, options.rounds)
        mine, other = turns.wall.medians
        low, high = turns.wall.middle_half
        print(
            f"{sites} site{'s' * (sites > 1):4}{mine:10.3f} s{other:10.3f} s"
            f"{turns.wall.ratio:8.3f}{low:12.3f} - {high:.3f}{turns.cpu.ratio:14.3f}"
            f"{statistics.median(turns.idle):10.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
