"""Phantom hospitals as pictures, and a plan over them, for the benchmarks."""

from collections.abc import Mapping
from pathlib import Path

from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS

PLAN = """
[plan]
name = "bench"
[task]
kind = "segmentation"
classes = {{ nodule = ["nodule"] }}
[model]
dimensions = 2
{model}
[preprocessing]
window_hu = [0.0, 255.0]
[training]
{training}
[federation]
rounds = {rounds}
min_sites = {sites}
[evaluation]
every = {every}
region = "window"
surface = false
[data]
validation = 0.2
test = 0.2
[simulation]
data_root = "data"
"""
SITE = """[[simulation.sites]]
name = "{name}"
source = "pictures"
format = "images"
where = {{ vendor = "{vendor}" }}
"""


def write_plan(root: Path, sites: int, **settings: Mapping[str, object] | int) -> Path:
    """Pictures of the first `sites` phantom hospitals, and the plan's file.

    Args:
        root: A new folder.
        sites: 1 to 4.
        settings: model and training as tables; rounds and every as numbers.
    """
    hospitals = HOSPITALS[:sites]
    write_images(root / "data" / "pictures", hospitals=hospitals, patients=4, seed=1)
    filled = {
        name: value if isinstance(value, int) else _lines(value)
        for name, value in settings.items()
    }
    rows = [SITE.format(name=h.name, vendor=h.scanner.vendor) for h in hospitals]
    path = root / "plan.toml"
    path.write_text(PLAN.format(sites=sites, **filled) + "".join(rows))
    return path


def _lines(table: Mapping[str, object]) -> str:
    return "\n".join(
        f"{key} = {value!r}".replace("True", "true") for key, value in table.items()
    )
