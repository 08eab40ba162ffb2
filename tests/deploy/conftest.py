"""Two small phantom hospitals as pictures, plans that run on them, and the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from deploy.cli import main
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS

SEGMENTATION = """
[plan]
name = "pictures"
[task]
kind = "segmentation"
classes = { nodule = ["nodule"] }
[model]
name = "UNet"
dimensions = 2
channels = [4, 8]
residual_units = 0
[preprocessing]
window_hu = [0.0, 255.0]
[training]
steps = 3
batch_size = 4
patch = [32, 32]
learning_rate = 1e-2
[federation]
rounds = 3
min_sites = 2
[evaluation]
region = "window"
surface = false
[data]
validation = 0.2
test = 0.2
"""

CLASSIFICATION = """
[plan]
name = "malignancy"
[task]
kind = "classification"
attribute = "malignancy"
baseline_attribute = "diameter_mm"
classes = [{ name = "benign", below = 3.0 }, { name = "malignant", above = 3.0 }]
[model]
name = "ResNet10"
dimensions = 2
norm = "group"
[preprocessing]
window_hu = [0.0, 255.0]
[training]
steps = 2
batch_size = 4
patch = [32, 32]
loss = "cross_entropy"
[federation]
rounds = 2
min_sites = 2
[evaluation]
region = "window"
surface = false
[data]
validation = 0.2
test = 0.2
"""

SITES = """
[simulation]
data_root = "data"
[[simulation.sites]]
name = "north"
source = "pictures"
format = "images"
where = { vendor = "%s" }
[[simulation.sites]]
name = "south"
source = "pictures"
format = "images"
where = { vendor = "%s" }
"""


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder with `data/pictures` of two hospitals."""
    root = tmp_path_factory.mktemp("hospitals")
    write_images(
        root / "data" / "pictures", hospitals=HOSPITALS[:2], patients=6, seed=1
    )
    return root


@pytest.fixture
def plan_file(pictures, request):
    """Writes a plan beside the pictures; text and replacements are arguments."""

    def write(text: str = SEGMENTATION, *changes: tuple[str, str]) -> Path:
        vendors = tuple(h.scanner.vendor for h in HOSPITALS[:2])
        text += SITES % vendors
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = pictures / f"{request.node.name[:40].replace('[', '-')}.toml"
        path.write_text(text)
        return path

    return write


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def fedct(monkeypatch, capsys) -> Iterator[Callable[..., Said]]:
    """Runs the command in this process, by its own entry point."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*argv: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["fedct", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Said(int(end.value.code or 0), said.out, said.err)

    yield run
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


ZYGOTE = """
import json, os, sys, traceback
import torch, torch._dynamo, torch._decomp  # what a check of a network imports
import deploy.demo, deploy.cli
torch.set_num_threads(1)

def child(order):
    for number, name in enumerate(("/dev/null", order["out"], order["err"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
    os.setsid()
    sys.argv = ["fedct", *order["argv"]]
    try:
        deploy.cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        child(order)
    print(pid, flush=True)
"""
"""Imports everything once, then forks a process per command: a fresh one each time
would spend most of a test on importing torch."""


@dataclass(frozen=True)
class Running:
    """A command at work in a process of its own."""

    pid: int
    folder: Path
    ask: Callable[[object], int]
    ended: list[int]

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, words: str, seconds: float = 60) -> None:
        """Wait until the command has said so on standard error."""
        end = time.monotonic() + seconds
        while words not in self.err:
            assert time.monotonic() < end, self.err
            time.sleep(0.02)

    def end(self) -> Said:
        code = self.ask({"wait": self.pid})
        self.ended.append(self.pid)
        return Said(code, (self.folder / "out").read_text(), self.err)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Callable[[object], int]]:
    """Asks the process that forks commands; answers with a pid or an exit code."""
    process = subprocess.Popen(
        [sys.executable, "-c", ZYGOTE],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def ask(order: object) -> int:
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    yield ask
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


@pytest.fixture
def start(zygote, tmp_path_factory) -> Iterator[Callable[..., Running]]:
    """Starts the command in a process of its own, which ends with the test."""
    started: list[int] = []
    ended: list[int] = []

    def run(*argv: object) -> Running:
        folder = tmp_path_factory.mktemp("said")
        paths = {name: str(folder / name) for name in ("out", "err")}
        for path in paths.values():
            Path(path).touch()
        pid = zygote({"argv": [str(word) for word in argv], **paths})
        started.append(pid)
        return Running(pid, folder, zygote, ended)

    yield run
    for pid in set(started) - set(ended):
        os.kill(pid, signal.SIGKILL)
        zygote({"wait": pid})


def environment(**changes: str) -> dict[str, str]:
    """For a child that imports what this process imports, on one thread."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        **changes,
    }


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB, where we may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a full disk needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
