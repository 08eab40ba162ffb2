"""A private step against a plain one, at equal batch: time and memory.

    python tests/bench/bench_dp.py [--repeats 7] [--threads 1]

Both sides are the product's own loops (`client.train`, `client.dp_train`) over the same
batches: as many patches of those drawn for the private step as the plain batch has. The
third column is the road not taken: gradients of all patients at once by
`torch.func.vmap`, clipped and added, without noise or optimiser. Memory is the peak of
a fresh process above what it held after its imports.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.func import functional_call, grad, vmap

from client.dp_train import train_privately
from client.secret_random import SecretStream
from client.train import Correction, build_optimizer, train_round
from common.networks import build_network
from common.plan import Plan
from common.plan_file import load_plan
from common.task import Batch
from common.tasks.catalog import task_of
from tests.bench.side_by_side import Pairs, alternate, machine

PLANS = Path(__file__).resolve().parents[2] / "deploy" / "plans"
SUBJECTS: dict[str, tuple[str, dict[str, object], int]] = {
    "UNet 2D, lidc_nodules": ("lidc_nodules", {}, 1),
    "the same, 2 patches a patient": ("lidc_nodules", {}, 2),
    "SegResNet 2D": ("lidc_nodules", {"name": "SegResNet"}, 1),
    "DynUNet 2D": ("lidc_nodules", {"name": "DynUNet"}, 1),
    "ResNet10 2D, lidc_malignancy": ("lidc_malignancy", {}, 1),
    "UNet 3D, demo": ("demo", {}, 1),
}
"""Plan, changes to its model, and patches of each patient."""
STEPS = 5
"""Of a round, which is set up once; the plan on real CT takes 20 at a site."""
CPU = torch.device("cpu")


@dataclass
class Everybody:
    """A sampler that draws the same patients in every step."""

    batches: list[Batch]
    rate: float = 0.5
    stream: SecretStream = field(default_factory=SecretStream)

    @property
    def patients(self) -> list[tuple[int, ...]]:
        return [(n,) for n in range(2 * len(self.batches))]

    def draw(self) -> list[Batch]:
        return self.batches


def plan_of(name: str) -> Plan:
    file, changes, each = SUBJECTS[name]
    content = load_plan(PLANS / f"{file}.toml").model_dump(
        mode="json", exclude_none=True
    )
    content["model"] |= changes
    content["training"].pop("max_grad_norm", None)
    content["privacy"]["dp"] = {"noise_multiplier": 1.0, "patches_per_patient": each}
    return Plan.model_validate(content)


def batch_of(plan: Plan) -> Batch:
    size = (plan.training.batch_size, *plan.training.patch)
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, 2, size[:1], generator=rng)
    mask = (torch.rand(size, generator=rng) > 0.9).long()
    return Batch(torch.randn(size, generator=rng).unsqueeze(1), mask, label)


def sides(plan: Plan) -> dict[str, Callable[[], object]]:
    """What is compared, each as a call that takes `STEPS` steps."""
    task, batch = task_of(plan), batch_of(plan)
    network = build_network(plan, task.out_channels, 1)
    optimizer = build_optimizer(network, plan.training)
    shared = {
        "steps": STEPS,
        "first_step": 0,
        "total_steps": 1000,
        "correction": Correction(),
        "device": CPU,
        "progress": lambda done, steps: None,
    }
    parts = (batch.image, batch.mask, batch.label)
    assert plan.privacy.dp is not None
    each = plan.privacy.dp.patches_per_patient
    ones = [Batch(*one) for one in zip(*(p.split(each) for p in parts), strict=True)]

    def plain() -> None:
        train_round(
            network, optimizer, [batch] * STEPS, task, plan, scaler={}, **shared
        )

    def private() -> None:
        sampler = Everybody(ones)
        train_privately(
            network, optimizer, sampler, task, plan, noise_multiplier=1.0, **shared
        )

    def loss(parameters, image, mask, label):  # type: ignore[no-untyped-def]
        one = Batch(image, mask, label)
        return task.loss(functional_call(network, parameters, (one.image,)), one)

    def vectorised() -> None:
        parameters = {k: v.detach() for k, v in network.named_parameters()}
        grouped = [part.unflatten(0, (-1, each)) for part in parts]
        every = vmap(grad(loss), in_dims=(None, 0, 0, 0), randomness="different")
        for _ in range(STEPS):
            flat = [g.flatten(1) for g in every(parameters, *grouped).values()]
            norm = torch.stack([g.norm(dim=1) for g in flat]).norm(dim=0)
            share = (1.0 / norm).clamp(max=1.0)
            torch.cat([share @ g for g in flat])

    return {"plain": plain, "private": private, "vectorised": vectorised}


def peak_mb(name: str, side: str) -> float:
    argv = [sys.executable, __file__, "--one", name, "--side", side]
    said = subprocess.run(argv, capture_output=True, text=True, check=True)
    return float(said.stdout)


def measure_one(name: str, side: str) -> None:
    """In a fresh process: print its peak above what the imports hold, in MB."""
    torch.set_num_threads(1)
    plan = plan_of(name)
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports torch's compiler
    before = _peak_kb()  # not getrusage, which a child has from its parent
    action = sides(plan)[side]
    action(), action()
    print((_peak_kb() - before) / 1024)


def _peak_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith("VmHWM")]
    return int(found)


def _best(pairs: Pairs) -> float:
    """Ratio of the shortest times: what a machine without other load would show."""
    return min(pairs.ours) / min(pairs.theirs)


def main() -> int:
    """Measure every network and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        measure_one(chosen.one, chosen.side)
        return 0
    torch.set_num_threads(chosen.threads)
    print(machine())
    print("| network | parameters | plain step | private | vectorised | peak memory |")
    print("|---|---|---|---|---|---|")
    for name in SUBJECTS:
        plan = plan_of(name)
        size = sum(
            p.numel()
            for p in build_network(plan, task_of(plan).out_channels, 1).parameters()
        )
        three = sides(plan)
        pairs = alternate(three["private"], three["plain"], chosen.repeats)
        other = alternate(three["vectorised"], three["plain"], chosen.repeats)
        plain_s = pairs.medians[1]
        ours, theirs, vmapped = (
            peak_mb(name, side) for side in ("private", "plain", "vectorised")
        )
        print(
            f"| {name} | {size / 1e6:.2f} M | {1e3 * plain_s / STEPS:.0f} ms "
            f"| {pairs.ratio:.2f}x, at best {_best(pairs):.2f}x "
            f"| {other.ratio:.2f}x, at best {_best(other):.2f}x "
            f"| {ours:.0f} MB, plain {theirs:.0f} MB: {ours / theirs:.2f}x, "
            f"vectorised {vmapped:.0f} MB |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
