"""Aggregation of a 50 MB model: peak memory, and rate beside Flower's FedAvg.

    python tests/bench/bench_aggregate.py [--repeats 15]

Both sides begin with replies as the transport hands them over (Flower messages whose
arrays are bytes) and end with the mean. Flower's `FedAvg.aggregate_train` gets all of
them in a list, as its own loop does, with one array per tensor of a U-Net; ours takes
them one by one, reads each vector in place, checks it and folds it.

Memory is the peak of a fresh process above what it takes after its imports. Replies are
read from a file, one model each, and in our case dropped once folded.
"""

import argparse
import itertools
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from common.exchange import Update
from common.wire import from_record, to_record
from server.aggregate import WeightedMean
from tests.bench.side_by_side import alternate, machine

CHANNELS = (20, 40, 80, 160, 320, 480)
"""Of a plain 3D U-Net; its tensors are what Flower's side is cut into."""
PARAMS = 12_500_000
MB = 10**6


def tensor_sizes() -> list[int]:
    """Two 3x3x3 convolutions a level, down and up, filled up to 12.5 M in all."""
    sizes = []
    for low, high in itertools.pairwise((1, *CHANNELS)):
        sizes += [27 * low * high, high, 27 * high * high, high]
    while sum(sizes) > PARAMS:
        sizes.pop()
    return [*sizes, PARAMS - sum(sizes)]


def our_reply(site: str, data: bytes) -> RecordDict:
    """A site's update as it comes off the wire; `data` is not copied."""
    update = Update(site, 1, "", np.zeros(1, np.float32), 10, 0.5, 20, 1.0, 10, 10)
    record = to_record(update)
    [(key, template)] = (
        (key, arrays["delta"])
        for key, arrays in record.items()
        if isinstance(arrays, ArrayRecord)
    )
    vector = Array(template.dtype, (PARAMS,), template.stype, data)
    record[key] = ArrayRecord({"delta": vector})
    return record


def flower_reply(data: bytes) -> Message:
    """The same numbers as Flower sends them: one array per tensor."""
    vector = np.frombuffer(data, np.float32)
    parts = np.split(vector, np.cumsum(tensor_sizes())[:-1])
    arrays = {f"{n}": Array(part) for n, part in enumerate(parts)}
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    )
    return Message(content, 2, "train")


def fold(replies: Iterator[RecordDict]) -> np.ndarray:
    """Our side: what `server.folding` does with each reply's vector."""
    mean = WeightedMean(PARAMS, min_sites=1)
    for record in replies:
        update = from_record(record, Update)
        mean.add(update.site, update.delta, update.cases)
        del record, update
    return mean.mean()


def flower_mean(replies: list[Message]) -> np.ndarray:
    """Flower's side, its own code."""
    arrays, _ = FedAvg().aggregate_train(1, replies)
    assert arrays is not None
    parts = (np.load(BytesIO(array.data)) for array in arrays.values())
    return np.concatenate(list(parts))


def memory_mb(which: str) -> float:
    """This process's VmRSS (now) or VmHWM (peak), from Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) * 1024 / MB
    raise LookupError(which)


def measure_peak(side: str, sites: int, source: Path) -> float:
    """MB above the base that this process takes to aggregate `sites` replies."""
    base = memory_mb("VmRSS")
    if side == "FedCT":
        names = (f"site {n}" for n in range(sites))
        fold(our_reply(name, source.read_bytes()) for name in names)
    else:
        replies = [flower_reply(source.read_bytes()) for _ in range(sites)]
        FedAvg().aggregate_train(1, replies)
    return memory_mb("VmHWM") - base


def in_child(side: str, sites: int, source: Path) -> float:
    """`measure_peak` in a process of its own."""
    command = [sys.executable, __file__, "--child", side, str(sites), str(source)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def print_memory(source: Path) -> None:
    """Peak over base by side and number of sites."""
    size_mb = PARAMS * 4 / MB
    print(f"{'peak memory above the base':28}{'4 sites':>22}{'64 sites':>22}")
    for side in ("FedCT", "Flower"):
        peaks = (in_child(side, sites, source) for sites in (4, 64))
        cells = [f"{peak:5.0f} MB {peak / size_mb:5.2f} models" for peak in peaks]
        print(f"{side:28}{cells[0]:>22}{cells[1]:>22}", flush=True)


def print_rate(sites: int, source: Path, repeats: int) -> None:
    """GB/s of both, in turn, on replies that are in memory already."""
    data = source.read_bytes()
    ours = [our_reply(f"site {n}", data) for n in range(sites)]
    theirs = [flower_reply(data) for _ in range(sites)]
    apart = np.abs(fold(iter(ours)) - flower_mean(theirs)).max()
    assert apart < 1e-5, apart
    pairs = alternate(
        lambda: fold(iter(ours)), lambda: FedAvg().aggregate_train(1, theirs), repeats
    )
    size_gb = sites * PARAMS * 4 / 1e9
    mine, other = (size_gb / median for median in pairs.medians)
    print(
        f"{f'rate, {sites} sites':28}FedCT {mine:5.2f} GB/s   Flower {other:5.2f} GB/s"
        f"   FedCT is {1 / pairs.ratio:.2f} times as fast",
        flush=True,
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    if options.child:
        side, sites, source = options.child
        print(measure_peak(side, int(sites), Path(source)))
        return
    tensors = len(tensor_sizes())
    print(f"{PARAMS / 1e6} million float32 (50 MB) in {tensors} tensors")
    print(f"{machine()}, {os.environ.get('OMP_NUM_THREADS', 'default')} threads")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        values = np.random.default_rng(0).normal(size=PARAMS).astype(np.float32)
        source.write_bytes(values.tobytes())
        print_memory(source)
        for sites in (4, 16):
            print_rate(sites, source, options.repeats)


if __name__ == "__main__":
    main()
