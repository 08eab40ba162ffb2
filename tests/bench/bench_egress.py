"""Gate and audit of an update of 20 M parameters: GB/s on one core, step by step.

    OMP_NUM_THREADS=1 python tests/bench/bench_egress.py [--repeats 9]

What an update costs a site between training and the wire, less the seal and the copy
into Flower's message: the gate's look at every number (range, NaN, length), its norm
for the policy, the digest that audit log and seal share, and a signed line of the audit
log on this disk. SHA-256 in the digest's place is measured beside it.
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.audit import Left, record_left
from client.egress import Told, check_answer, norm_of
from common.canonical import digest_of_answer
from common.exchange import TrainOrder, Update
from tests.bench.side_by_side import machine

PARAMS = 20_000_000
GB = 10**9


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of so many runs, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    delta = rng.normal(scale=0.01, size=PARAMS).astype(np.float32)
    order = TrainOrder("run", "p" * 64, 1, 0, delta, "d" * 64)
    update = Update("north", 1, "p" * 64, delta, 100, 0.4, 9, 1.5, 100, 104)
    told = Told("north", "k" * 64, order)
    key = Ed25519PrivateKey.generate()
    left = Left(
        kind="train",
        run="run",
        round=1,
        plan="p" * 64,
        to="hub.example.org:8443",
        what="Update",
        code=0,
        bytes_in=delta.nbytes,
        bytes_out=delta.nbytes,
        digest="0" * 64,
        policy="0" * 64,
        allowed="approved 2026-03-01 12:00 UTC",
    )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def everything() -> None:
            norm_of(delta)
            check_answer(update, told)
            digest_of_answer(update)
            record_left(folder, left, key)

        parts: dict[str, Callable[[], object]] = {
            "gate: range and NaN of every number": lambda: check_answer(update, told),
            "norm for the policy": lambda: norm_of(delta),
            "digest (BLAKE3), shared with the seal": lambda: digest_of_answer(update),
            "signed line of the audit log": lambda: record_left(folder, left, key),
            "gate and audit together": everything,
            "SHA-256 of the same bytes": lambda: hashlib.sha256(delta.data).digest(),
        }
        print(machine())
        print(f"\n| {delta.nbytes / 1e6:.0f} MB of update | ms | GB/s |\n|---|---|---|")
        for what, work in parts.items():
            took = seconds(work, repeats)
            print(f"| {what} | {1000 * took:.1f} | {delta.nbytes / took / GB:.1f} |")


if __name__ == "__main__":
    main()
