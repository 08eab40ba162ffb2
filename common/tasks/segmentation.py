"""Segmentation: a class for every voxel.

One class is one channel through a sigmoid; several are a softmax with the background as
channel 0. A case is judged as a whole volume by sliding window, or, where the plan asks
for windows, by one window per slice (2D) or per case (3D) at a seeded place.

Rules for nothing (`common.metrics.overlap`): a volume in which a class is neither there
nor predicted says nothing about that class and does not count; a window that is rightly
called empty counts as Dice 1. Surface distances are measured on whole volumes alone,
and only where both truth and prediction are there; read them beside recall.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor, nn

from common.case import IntakeCase, PreparedCase, Target
from common.drawing import outlines, widest_slice
from common.errors import PlanError
from common.inference import (
    box,
    cut_windows,
    pad_to,
    predict_logits,
    predict_windows,
    seeded_corners,
)
from common.losses import segmentation_loss
from common.metrics.lesions import count_lesions
from common.metrics.overlap import COUNT, MEANS, mean_of, overlap_sums, voxel_pairs
from common.metrics.surface import surface_distance
from common.plan import Plan
from common.plan_task import SegmentationTask
from common.task import Batch, Sums

HIGHER_IS_BETTER = (*MEANS, "f1")
"""Metrics that may pick the best model, also with `/class` behind."""
_OF_LESIONS = "lesion_sensitivity"
"""One more, where the plan has lesions counted."""
_SURFACE = ("assd_mm", "hd95_mm")
_EVERY_LABEL = "*"
TARGET_VERSION = 1


@dataclass(frozen=True)
class Segmentation:
    """`[task] kind = "segmentation"`."""

    plan: Plan
    """The whole experiment; its task is a segmentation."""

    def __post_init__(self) -> None:
        allowed = [*HIGHER_IS_BETTER, *([_OF_LESIONS] if self.settings.lesions else [])]
        allowed += [f"{name}/{c}" for name in allowed for c in self.class_names]
        if self.monitor not in allowed:
            raise PlanError(
                f"plan evaluation.monitor got {self.monitor!r}, expected a metric that "
                "this plan measures and of which more is better: " + ", ".join(allowed)
            )

    @property
    def settings(self) -> SegmentationTask:
        """The plan's `[task]`."""
        assert isinstance(self.plan.task, SegmentationTask)
        return self.plan.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 1, 2, ...; the background has none."""
        return tuple(self.settings.classes)

    @property
    def out_channels(self) -> int:
        """1 for one class, else one more than there are classes."""
        classes = len(self.class_names)
        return 1 if classes == 1 else classes + 1

    @property
    def monitor(self) -> str:
        """The plan's, or Dice."""
        return self.plan.evaluation.monitor or "dice"

    @property
    def target_version(self) -> int:
        """See `Task`; the rules of `target` below."""
        return TARGET_VERSION

    def target(self, case: IntakeCase) -> Target:
        """A class per voxel from the case's labels; the later class wins.

        A label that is there but empty is a statement: the whole mask is background.
        A case without labels, or with none that the plan names, is left out, because
        nobody said that there is nothing.
        """
        if not case.segments:
            return Target(left_out="it has no labels")
        mask = np.zeros(case.volume.grid.shape, dtype=np.uint8)
        overlap, named = 0, False
        for number, wanted in enumerate(self.settings.classes.values(), start=1):
            parts = [s.mask for s in case.segments if _is_named(s.name, wanted)]
            if parts:
                named = True
                inside = np.logical_or.reduce(parts)
                overlap += int(np.count_nonzero(mask[inside]))
                mask[inside] = number
        if not named:
            return Target(
                left_out=f"none of its {len(case.segments)} labels is in task.classes"
            )
        return Target(mask=mask, overlap_voxels=overlap)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Dice plus cross-entropy or focal, as the plan says."""
        return segmentation_loss(self.plan.training.loss, output, batch.mask)

    def judge(
        self, network: nn.Module, case: PreparedCase, seed: int, device: torch.device
    ) -> Sums:
        """Overlap, surfaces, lesions and loss of one case; see the module."""
        assert case.mask is not None
        in_windows = self.plan.evaluation.region == "window"
        if in_windows:
            image = pad_to(case.image, self.plan.patch)
            corners = seeded_corners(box(image), self.plan, seed)
            mask = pad_to(case.mask, self.plan.patch, 0)
            truth = cut_windows(mask, corners, self.plan.patch)
            windows = cut_windows(image, corners, self.plan.patch)
            logits = predict_windows(network, windows, self.plan, device)
            logits = logits.reshape(len(windows), self.out_channels, *truth.shape[1:])
        else:
            truth = np.asarray(case.mask)[None]
            logits = predict_logits(network, case.image, self.plan, device)[None]
        predicted = classes_of(logits).cpu().numpy()
        pairs = voxel_pairs(truth, predicted, len(self.class_names))
        sums: dict[str, np.ndarray] = {
            "cases": np.ones(1),
            "loss": np.array([self._loss_of(logits, truth)]),
            **overlap_sums(pairs, empty_is_right=in_windows),
        }
        if self.plan.evaluation.surface and case.has_spacing and not in_windows:
            sums |= self._surface_sums(truth[0], predicted[0], case.grid.spacing_mm)
        if self.settings.lesions:
            sums |= self._lesion_sums(truth, predicted)
        return sums

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Per metric `name` (mean over classes that have one) and `name/class`."""
        found: dict[str, Float64[np.ndarray, " K"]] = {}
        for name in (*MEANS, *_SURFACE):
            if name in sums:
                found[name] = mean_of(sums, name)
        with np.errstate(invalid="ignore"):  # 0 / 0: no value, left out below
            if "tp" in sums:
                voxels = 2.0 * sums["tp"] + sums["fp"] + sums["fn"]
                found["f1"] = 2.0 * sums["tp"] / voxels
            if "lesions" in sums:
                found[_OF_LESIONS] = sums["lesions_found"] / sums["lesions"]
                false_positives = sums["lesions_false_positive"]
                found["lesion_fp_per_case"] = false_positives / sums["cases"]
        metrics: dict[str, float] = {}
        for name, values in found.items():
            known = ~np.isnan(values)
            if known.any():
                metrics[name] = float(values[known].mean())
            for label, value in zip(self.class_names, values, strict=True):
                if not np.isnan(value):
                    metrics[f"{name}/{label}"] = float(value)
        if "loss" in sums and sums["cases"][0] > 0:
            metrics["loss"] = float(sums["loss"][0] / sums["cases"][0])
        return metrics

    def picture(
        self, network: nn.Module, case: PreparedCase, device: torch.device
    ) -> UInt8[np.ndarray, "H W 3"]:
        """The slice with most truth: truth outlined in blue, prediction in orange."""
        assert case.mask is not None
        d = widest_slice(case.mask)
        depth = self.plan.patch[0]
        first = max(0, min(d - depth // 2, len(case.image) - depth))
        slab = case.image[first : first + depth]
        logits = predict_logits(network, slab, self.plan, device)
        predicted = classes_of(logits[None])[0, d - first].cpu().numpy()
        return outlines(
            np.asarray(case.image[d], dtype=np.float32),
            np.asarray(case.mask[d]),
            predicted,
            case.grid.spacing_mm[1:],
        )

    def _loss_of(
        self, logits: Float32[Tensor, "O C D H W"], truth: UInt8[np.ndarray, "O D H W"]
    ) -> float:
        """Mean over slabs as thick as a patch, as in training (and small)."""
        name, depth = self.plan.training.loss, self.plan.patch[0]
        losses = []
        for d in range(0, truth.shape[1], depth):
            slab = truth[:, d : d + depth].astype(np.int64)
            mask = torch.from_numpy(slab).to(logits.device)
            losses.append(segmentation_loss(name, logits[:, :, d : d + depth], mask))
        return float(torch.stack(losses).mean())

    def _surface_sums(
        self,
        truth: UInt8[np.ndarray, "D H W"],
        predicted: UInt8[np.ndarray, "D H W"],
        spacing_mm: tuple[float, float, float],
    ) -> dict[str, Float64[np.ndarray, " K"]]:
        k = len(self.class_names)
        sums = {name + end: np.zeros(k) for name in _SURFACE for end in ("", COUNT)}
        for i in range(k):
            apart = surface_distance(truth == i + 1, predicted == i + 1, spacing_mm)
            if apart is not None:
                sums["assd_mm"][i] = apart.mean_mm
                sums["hd95_mm"][i] = apart.hd95_mm
                sums["assd_mm" + COUNT][i] = sums["hd95_mm" + COUNT][i] = 1.0
        return sums

    def _lesion_sums(
        self,
        truth: UInt8[np.ndarray, "O D H W"],
        predicted: UInt8[np.ndarray, "O D H W"],
    ) -> dict[str, Float64[np.ndarray, " K"]]:
        k = len(self.class_names)
        names = ("lesions", "lesions_found", "lesions_false_positive")
        sums = {name: np.zeros(k) for name in names}
        for one_truth, one_predicted in zip(truth, predicted, strict=True):
            for i in range(k):
                count = count_lesions(one_truth == i + 1, one_predicted == i + 1)
                sums["lesions"][i] += count.total
                sums["lesions_found"][i] += count.found
                sums["lesions_false_positive"][i] += count.false_positives
        return sums


def classes_of(logits: Float32[Tensor, "O C D H W"]) -> UInt8[Tensor, "O D H W"]:
    """Most likely class per voxel; one channel is foreground above one half."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.argmax(dim=1).to(torch.uint8)


def _is_named(label: str, wanted: list[str]) -> bool:
    """Whether a label is asked for, spaces around and case aside; `*` takes all."""
    names = {name.strip().casefold() for name in wanted}
    return _EVERY_LABEL in names or label.strip().casefold() in names
