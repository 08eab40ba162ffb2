"""Two small phantom hospitals as pictures, and plans that run on them."""

from pathlib import Path

import pytest

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
