"""`fedct plan new`: a commented plan that runs on the user's own folders."""

import re
import unicodedata
from pathlib import Path

import tomli_w

from common.durable import write_whole
from common.errors import UsageError
from common.plan_file import parse_plan
from common.plan_privacy import AUTO_SITES
from common.plan_section import NAME_PATTERN

_HEAD = """\
# A federation plan: the whole experiment in one file. `fedct plan schema` lists every
# key, `fedct plan show` prints this plan with all defaults filled in.

[plan]
name = {name}
description = ""
seed = 1                      # root of every random choice

"""

_SEGMENTATION = """\
[task]
kind = "segmentation"
# class name = the label names it is made of (segment label, ROI name, number of a label
# map); "*" takes every label that is found
classes = {{ target = {labels} }}
lesions = false               # true: count connected parts one by one

"""

_VOLUMES = """\
[model]
name = "UNet"                 # UNet, AttentionUnet, DynUNet, SegResNet
dimensions = 3
channels = [16, 32, 64, 128]

[preprocessing]
spacing_mm = [2.0, 2.0, 2.0]  # D, H, W; leave out to keep the scanner's own
window_hu = [-1000.0, 400.0]

[training]
steps = 50                    # optimiser steps per round and hospital
batch_size = 2
patch = [64, 64, 64]          # D, H, W
loss = "dice_ce"
learning_rate = 1e-3
foreground = 0.5              # share of patches that hold a labelled voxel
augmentation = { scale = 0.1, shift = 0.05 }

"""

_PICTURES = """\
[model]
name = "UNet"                 # UNet, AttentionUnet, DynUNet, SegResNet
dimensions = 2
channels = [16, 32, 64, 128]

[preprocessing]
window_hu = [0.0, 255.0]      # grey values of 8-bit pictures

[training]
steps = 50                    # optimiser steps per round and hospital
batch_size = 16
patch = [64, 64]              # H, W
loss = "dice_ce"
learning_rate = 1e-3
foreground = 0.5              # share of patches that hold a labelled pixel
augmentation = { flip = ["H", "W"], scale = 0.1, shift = 0.05 }

[evaluation]
region = "window"             # crops centred on the finding are judged off centre
surface = false               # pictures have no millimetres

"""

_CLASSIFICATION = """\
[task]
kind = "classification"
attribute = "malignancy"      # the column that holds the truth
classes = [
  { name = "benign", below = 3.0 },
  { name = "malignant", above = 3.0 },
]

[model]
name = "ResNet18"             # ResNet10/18/34/50, DenseNet121/169
dimensions = 2
norm = "group"

[preprocessing]
window_hu = [0.0, 255.0]      # grey values of 8-bit pictures

[training]
steps = 50                    # optimiser steps per round and hospital
batch_size = 32
patch = [64, 64]              # H, W
loss = "cross_entropy"
learning_rate = 1e-3
augmentation = { flip = ["H", "W"], scale = 0.1, shift = 0.05 }

[evaluation]
region = "window"             # crops centred on the finding are judged off centre
surface = false

"""

_TAIL = """\
[federation]
rounds = 20
algorithm = "fedavg"          # fedavg, fedprox, fedavgm, fedadam, fedbn, scaffold
min_sites = 2                 # quorum: below it a round is void
deadline_s = 3600.0

[privacy]
secure_aggregation = "{masks}"     # on: the server learns the hospitals' sum alone

[data]
min_cases = 1                 # fewest accepted cases a hospital must have
min_accepted = 0.0            # smallest share of found series that must be accepted
validation = 0.15             # shares of *patients*
test = 0.2

# Where the hospitals of a rehearsal lie on this machine. Not part of the plan's hash:
# in a real federation each hospital keeps its own paths to itself.
[simulation]
data_root = "/"
"""


def write_plan(
    out: Path, sites: list[str], task: str, labels: list[str], source_format: str
) -> None:
    """Write a plan for the given folders; what is written has been validated.

    Args:
        out: The file; must not exist.
        sites: NAME=FOLDER, one per hospital, at least two.
        task: "segmentation" or "classification".
        labels: Label names of the one class to segment.
        source_format: Format of all sources.

    Raises:
        UsageError: A site or the task can't be understood, or the file exists.
        PlanError: The plan that comes out is not valid.
    """
    if out.exists():
        raise UsageError(f"plan file {out.name!r} exists, expected a new name")
    if task not in ("segmentation", "classification"):
        raise UsageError(
            f"option --task got {task!r}, expected segmentation or classification"
        )
    if len(sites) < 2:
        raise UsageError(
            f"option --site was given {len(sites)} times, expected at least two "
            "hospitals; one alone has nobody to federate with"
        )
    if task == "classification" and source_format != "images":
        raise UsageError(
            f"option --task classification got --source-format {source_format}, "
            "expected images, because only their manifest.csv tells a case's class"
        )
    text = _HEAD.format(name=_quoted(_short_name(out.stem)))
    if task == "classification":
        text += _CLASSIFICATION
    else:
        names = ", ".join(_quoted(label) for label in labels)
        text += _SEGMENTATION.format(labels=f"[{names}]")
        text += _PICTURES if source_format == "images" else _VOLUMES
    text += _TAIL.format(masks="on" if len(sites) >= AUTO_SITES else "off")
    text += "".join(_site_table(site, source_format) for site in sites)
    parse_plan(text, out.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text.encode())


def _site_table(site: str, source_format: str) -> str:
    name, equals, folder = site.partition("=")
    if not equals or not folder:
        raise UsageError(f"option --site got {site!r}, expected NAME=FOLDER")
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(
            f"option --site got the name {name!r}, expected lower case letters, "
            "digits, - and _, at most 32"
        )
    source = Path(folder).expanduser().resolve()
    if not source.exists():
        raise UsageError(
            f"option --site got {site!r}, expected a folder that exists; check the path"
        )
    return (
        f"\n[[simulation.sites]]\nname = {_quoted(name)}\n"
        f"source = {_quoted(str(source))}\nformat = {_quoted(source_format)}\n"
    )


def _short_name(stem: str) -> str:
    """A plan's name out of a file's: ASCII, lower case, at most 32."""
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:32] or "plan"


def _quoted(value: str) -> str:
    """As a TOML string, whatever stands in it."""
    try:
        tomli_w.dumps({"value": value}).encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"plan got {value!a}, which is no text in UTF-8; rename the folder"
        ) from error
    return tomli_w.dumps({"value": value}).removeprefix("value = ").strip()
