"""Preflight of the machine: room, memory, GPU, decoders, packages.

What may crash or hang in native code (drivers, codecs) runs in a process of its own.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

import client
from client.preflight_row import Check, Row, failed, passed, warned

GB = 1e9
DISK_FAIL, DISK_WARN = 2 * GB, 20 * GB
"""Room for the site's memory between rounds and its logs; for prepared cases too."""
MEMORY_FAIL, MEMORY_WARN = 2 * GB, 8 * GB
"""torch with a small 2-D network takes 0.7 GB; 3-D patches take several more."""
_GPU_S = 120.0
"""The first import of torch after a start of the machine reads it from the disk."""
_CODECS_S = 60.0

_GPU = """
import json, torch
found = {"built": torch.version.cuda, "gpus": []}
if torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        ones = torch.ones(64, 64, device=f"cuda:{index}")
        properties = torch.cuda.get_device_properties(index)
        found["gpus"].append({
            "name": properties.name,
            "bytes": properties.total_memory,
            "right": bool((ones @ ones == 64).all().item()),
        })
print(json.dumps(found))
"""


def machine_checks(folder: Path, device: str) -> list[Check]:
    """Every check of this machine.

    Args:
        folder: The site's folder; its disk is looked at.
        device: What `client.toml` asks for.
    """
    return [
        Check("disk", lambda: check_disk(folder)),
        Check("memory", check_memory),
        Check("GPU", lambda: check_gpu(device), _GPU_S),
        Check("decoders", check_decoders, _CODECS_S),
        Check("packages", check_packages),
    ]


def check_disk(folder: Path) -> Row:
    """Whether the site's folder has room."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GB:.1f} GB free"
    fix = "make room, or put the site's folder on a larger disk"
    if free < DISK_FAIL:
        return failed("disk", found, fix)
    return warned("disk", found, fix) if free < DISK_WARN else passed("disk", found)


def check_memory() -> Row:
    """Whether there is memory to train in, the container's limit included."""
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        total, free = min(total, limit), min(free, limit - used)
    except (OSError, ValueError):  # no limit, or another kind of system
        pass
    found = f"{free / GB:.1f} of {total / GB:.1f} GB available"
    fix = "end what else runs here, or give the machine (or container) more memory"
    if free < MEMORY_FAIL:
        return failed("memory", found, fix)
    if free < MEMORY_WARN:
        return warned("memory", found, fix)
    return passed("memory", found)


def check_gpu(device: str) -> Row:
    """Whether torch can compute on the device that the site asks for."""
    name, driver = "GPU", _driver()
    ran = _child(["-c", _GPU], _GPU_S)
    try:
        found = json.loads(ran.stdout)
    except ValueError:
        return failed(
            name,
            f"torch can't look for a GPU (its process ended with {ran.returncode})",
            "install the packages again; check the driver with nvidia-smi",
        )
    gpus = found["gpus"]
    names = ", ".join(f"{g['name']} ({g['bytes'] / GB:.0f} GB)" for g in gpus)
    if not all(gpu["right"] for gpu in gpus):
        return failed(name, f"{names}: gives wrong results", "check the hardware")
    if gpus:
        said = f"{names}, driver {driver or 'unknown'}, CUDA {found['built']}"
        return passed(name, said)
    if device.startswith("cuda"):
        return failed(
            name,
            f"client.toml asks for {device}, torch finds none",
            _gpu_fix(driver, found["built"]),
        )
    if device == "cpu" and driver is None:
        return passed(name, "none, and client.toml asks for none")
    return warned(
        name, "none: training runs on the CPU", _gpu_fix(driver, found["built"])
    )


def _driver() -> str | None:
    """Version of NVIDIA's driver, if there is one."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(
            asked, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.splitlines()[0].strip() if ran.stdout.strip() else None


def _gpu_fix(driver: str | None, built: str | None) -> str:
    if driver is None:
        return "install the GPU's driver, if there is a GPU (check with nvidia-smi)"
    if built is None:
        return f"the driver is there ({driver}), but this torch is for CPUs: replace it"
    return f"driver {driver} may be too old for CUDA {built}: bring it up to date"


def check_decoders() -> Row:
    """Whether each transfer syntax of DICOM is decoded rightly."""
    ran = _child(["-m", "client.preflight_codecs"], _CODECS_S)
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    bad = [f"{r['syntax']} ({r['wrong']})" for r in results if r["wrong"] is not None]
    if ran.returncode != 0:
        after = results[-1]["syntax"] if results else "the start"
        bad.append(f"crashed after {after}")
    if bad:
        return failed(
            "decoders",
            f"not working: {', '.join(bad)}",
            "install FedCT's packages again, as pinned in constraints.txt",
        )
    return passed("decoders", f"{len(results)} transfer syntaxes decode rightly")


def check_packages() -> Row:
    """Whether the installed packages are those that FedCT asks for."""
    try:
        wanted = [Requirement(text) for text in requires("fedct") or ()]
    except PackageNotFoundError:
        return failed("packages", "fedct itself is not installed", "pip install it")
    needed = [r for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    bad = [said for said in map(_misfit, needed) if said is not None]
    if bad:
        return failed(
            "packages",
            ", ".join(bad),
            "install FedCT again, with its constraints.txt",
        )
    versions = f"fedct {version('fedct')}, flwr {version('flwr')}"
    python = platform.python_version()
    return passed("packages", f"all {len(needed)} fit: {versions}, Python {python}")


def _misfit(wanted: Requirement) -> str | None:
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(found, prereleases=True):
        return None
    return f"{wanted.name} is {found}, expected {wanted.specifier}"


def _child(
    arguments: Sequence[str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run Python with our packages; quietly, and not in the caller's folder."""
    root = str(Path(client.__file__).resolve().parents[1])
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd="/",
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
