"""Classification: a class for every case.

The truth is an attribute of the case (a column of a manifest), sorted into classes by
the plan's rules. A case is judged by the mean logits over its windows and slices. AUC
is that of class against rest, from histograms that add up over sites
(`common.metrics.ranking`); for two classes that of the second, the positive one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor, nn

from common.case import IntakeCase, PreparedCase, Target
from common.drawing import heat
from common.errors import PlanError
from common.gradcam import grad_cam
from common.inference import box, pad_to, predict_class_logits, window_at
from common.losses import classification_loss
from common.metrics.ranking import BINS, auc_of, score_bins
from common.plan import Plan
from common.plan_task import ClassificationTask, ClassRule
from common.task import Batch, Sums

_RATES = ("precision", "recall", "f1")
HIGHER_IS_BETTER = ("accuracy", "balanced_accuracy", "auc", *_RATES)
"""Metrics that may pick the best model; the rates also with `/class`, and auc for
classes that are ranked."""
_SCORE = {"fine": 0.01, "limit": 20.0}
"""Scores are log odds; 20 is a probability of 1 - 2e-9."""
TARGET_VERSION = 1
_ATTRIBUTE = {"fine": 1e-3, "limit": 1e6}
"""Baseline numbers, told apart from 4 % on, between 0.001 and a million."""


@dataclass(frozen=True)
class Classification:
    """`[task] kind = "classification"`."""

    plan: Plan
    """The whole experiment; its task is a classification."""

    def __post_init__(self) -> None:
        allowed = [*HIGHER_IS_BETTER]
        allowed += [f"auc/{self.class_names[c]}" for c in self._ranked]
        allowed += [f"{n}/{c}" for n in _RATES for c in self.class_names]
        if self.monitor not in allowed:
            raise PlanError(
                f"plan evaluation.monitor got {self.monitor!r}, expected a metric that "
                "this plan measures and of which more is better: " + ", ".join(allowed)
            )

    @property
    def settings(self) -> ClassificationTask:
        """The plan's `[task]`."""
        assert isinstance(self.plan.task, ClassificationTask)
        return self.plan.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of classes 0, 1, ..."""
        return tuple(rule.name for rule in self.settings.classes)

    @property
    def out_channels(self) -> int:
        """One per class."""
        return len(self.class_names)

    @property
    def monitor(self) -> str:
        """The plan's; else AUC for two classes, accuracy for more."""
        default = "auc" if self.out_channels == 2 else "accuracy"
        return self.plan.evaluation.monitor or default

    @property
    def target_version(self) -> int:
        """See `Task`; the rules of `target` below."""
        return TARGET_VERSION

    def target(self, case: IntakeCase) -> Target:
        """The first class whose rule the attribute fits; left out where none does."""
        task = self.settings
        text = case.attributes.get(task.attribute, "").strip()
        if not text:
            return Target(left_out=f"it has no attribute {task.attribute!r}")
        for number, rule in enumerate(task.classes):
            if _fits(text, rule):
                known = _number(case.attributes.get(task.baseline_attribute or "", ""))
                baseline = (
                    {task.baseline_attribute: known}
                    if task.baseline_attribute and known is not None
                    else {}
                )
                return Target(label=number, attributes=baseline)
        return Target(left_out=f"its {task.attribute!r} fits no class of the plan")

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy or focal, as the plan says."""
        return classification_loss(self.plan.training.loss, output, batch.label)

    def judge(
        self, network: nn.Module, case: PreparedCase, seed: int, device: torch.device
    ) -> Sums:
        """Confusion, scores and loss of one case; see the module."""
        assert case.label is not None
        k, label = self.out_channels, case.label
        place = seed if self.plan.evaluation.region == "window" else None
        logits = predict_class_logits(network, case.image, self.plan, device, place)
        truth = torch.tensor([label], device=logits.device)
        confusion = np.zeros((k, k))
        confusion[label, int(logits.argmax())] = 1.0
        loss = classification_loss(self.plan.training.loss, logits[None], truth)
        sums = {
            "cases": np.ones(1),
            "loss": np.array([float(loss)]),
            "confusion": confusion.ravel(),
            "scores": self._histograms(label, _log_odds(logits), _SCORE),
        }
        baseline = case.attributes.get(self.settings.baseline_attribute or "")
        if baseline is not None:
            same = np.full(k, baseline)
            sums["baseline"] = self._histograms(label, same, _ATTRIBUTE)
        return sums

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Per metric `name` (mean over classes) and, where it has one, `name/class`."""
        k = self.out_channels
        metrics = _rates(sums["confusion"].reshape(k, k), self.class_names)
        metrics |= self._aucs(sums, "scores", "auc")
        metrics |= self._aucs(sums, "baseline", "baseline_auc")
        if sums["cases"][0] > 0:
            metrics["loss"] = float(sums["loss"][0] / sums["cases"][0])
        return metrics

    def picture(
        self, network: nn.Module, case: PreparedCase, device: torch.device
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Grad-CAM of the predicted class on the middle of the case."""
        image = pad_to(case.image, self.plan.patch)
        size = self.plan.patch
        middle = [(have - n) // 2 for have, n in zip(box(image), size, strict=True)]
        place = window_at((middle[0], middle[1], middle[2]), size)
        window = np.array(image[place], dtype=np.float32)
        batch = torch.from_numpy(window)[None].to(device)
        if self.plan.model.dimensions == 3:
            batch = batch[None]
        with torch.inference_mode():
            predicted = int(network(batch).argmax())
        warmth = grad_cam(network, batch, predicted).cpu().numpy()
        d = len(window) // 2
        return heat(
            window[d],
            warmth if self.plan.model.dimensions == 2 else warmth[d],
            case.grid.spacing_mm[1:],
            right=predicted == case.label,
        )

    @property
    def _ranked(self) -> range:
        """Classes that have an AUC of their own."""
        return range(1, 2) if self.out_channels == 2 else range(self.out_channels)

    def _histograms(
        self, label: int, values: Float64[np.ndarray, " K"], bins: dict[str, float]
    ) -> Float64[np.ndarray, " N"]:
        """Per ranked class the histogram of the rest and that of the class, flat."""
        counts = np.zeros((len(self._ranked), 2, BINS))
        for row, c in enumerate(self._ranked):
            counts[row, int(label == c)] = score_bins(values[c : c + 1], **bins)
        return counts.ravel()

    def _aucs(self, sums: Sums, key: str, name: str) -> dict[str, float]:
        if key not in sums:
            return {}
        found: dict[str, float] = {}
        for c, (rest, own) in zip(
            self._ranked, sums[key].reshape(-1, 2, BINS), strict=True
        ):
            auc = auc_of(own, rest)
            if auc is not None:
                found[f"{name}/{self.class_names[c]}"] = auc[0]
        return {name: _mean(found.values()), **found} if found else {}


def _rates(
    confusion: Float64[np.ndarray, "K K"], names: tuple[str, ...]
) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 per class where they have a value."""
    if not confusion.sum():
        return {}
    hits, called, true = np.diag(confusion), confusion.sum(0), confusion.sum(1)
    fractions = {
        "precision": (hits, called),
        "recall": (hits, true),
        "f1": (2.0 * hits, called + true),
    }
    metrics = {"accuracy": float(hits.sum() / confusion.sum())}
    for name, (above, below) in fractions.items():
        found = {
            f"{name}/{label}": float(a / b)
            for label, a, b in zip(names, above, below, strict=True)
            if b > 0
        }
        metrics |= {name: _mean(found.values()), **found}
    metrics["balanced_accuracy"] = metrics["recall"]
    return metrics


def _log_odds(logits: Float32[Tensor, " K"]) -> Float64[np.ndarray, " K"]:
    """Per class, the log of its probability over that of the rest."""
    values = logits.double().cpu()
    rest = [
        values[torch.arange(len(values)) != c].logsumexp(0) for c in range(len(values))
    ]
    return (values - torch.stack(rest)).numpy()


def _fits(text: str, rule: ClassRule) -> bool:
    if rule.equals is not None:
        return text.casefold() in {one.strip().casefold() for one in rule.equals}
    value = _number(text)
    if value is None:
        return False
    if rule.below is not None:
        return value < rule.below
    return rule.above is not None and value > rule.above


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
