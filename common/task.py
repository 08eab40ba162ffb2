"""The task protocol: all that differs between segmentation, classification and others.

A task is one readable module in `common.tasks`: what the network puts out, the loss,
how labels become targets, how a case is judged, and how it is drawn. Everything else
(intake, store, training loop, federation, report) is the same for all tasks and knows
only this protocol. A new task is a new module, a section of the plan and a line in
`common.tasks.catalog`.

Judgements travel as *sums*: a mapping from name to a float vector such that adding the
vectors of two sets of cases gives the vector of their union. So a mean over sites is
right by construction, and a site never sends a value per patient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from common.case import IntakeCase, PreparedCase, Target

Sums = Mapping[str, Float64[np.ndarray, " N"]]
"""Name to additive vector; scalars are vectors of one."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Training patches of one step, on the training device."""

    image: Float32[Tensor, "B 1 *S"]
    """Grey values -1..1; S is D H W, or H W for two-dimensional networks."""
    mask: Int64[Tensor, "B *S"]
    """Class per voxel (zeros where the task has no voxel labels)."""
    label: Int64[Tensor, " B"]
    """Class per case (zeros where the task has no case labels)."""


class Task(Protocol):
    """What a plan's `[task]` means; see `common.tasks` for the instances."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; for segmentation without the background."""
        ...

    @property
    def out_channels(self) -> int:
        """Channels that the network puts out."""
        ...

    @property
    def monitor(self) -> str:
        """Key of `summarise` that picks the best model; higher is better."""
        ...

    @property
    def target_version(self) -> int:
        """Raised when `target` gives another answer on the same case and plan.

        It is part of the recipe, so stores prepare anew what was made by older rules.
        """
        ...

    def target(self, case: IntakeCase) -> Target:
        """What is to be learnt from a case, on its own grid."""
        ...

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Scalar loss of a batch; `output` is what the network gave, in float32."""
        ...

    def judge(
        self, network: nn.Module, case: PreparedCase, seed: int, device: torch.device
    ) -> Sums:
        """Run the network on one case and measure it.

        Args:
            network: In evaluation mode, on `device`.
            case: Needs its truth (mask or label).
            seed: Places the evaluation window where the plan asks for windows; the
                same for every model, so that models are compared on the same voxels.
            device: Where the network lives.
        """
        ...

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Metrics by name, from sums; only those that the sums can give."""
        ...

    def picture(
        self, network: nn.Module, case: PreparedCase, device: torch.device
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The case with truth and prediction drawn in, for phantom or public cases."""
        ...


def add_sums(a: Sums, b: Sums) -> dict[str, Float64[np.ndarray, " N"]]:
    """Sums of the union of two disjoint sets of cases."""
    return {
        name: a[name] + b[name]
        if name in a and name in b
        else (a[name] if name in a else b[name])
        for name in sorted({*a, *b})
    }
