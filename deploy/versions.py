"""What a run was made with: package versions and the device, for report and model."""

import os
import platform
from importlib.metadata import version

import torch

_PACKAGES = ("fedct", "flwr", "torch", "monai", "numpy", "pydicom", "highdicom")


def versions() -> dict[str, str]:
    """Version of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in _PACKAGES
    }


def device_name(device: torch.device) -> str:
    """The GPU by name, or the CPU by threads and cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads, {os.cpu_count()} cores)"
