"""The federation plan: one TOML file that is the whole experiment.

The same file runs in simulation and in a real federation, so it holds nothing that
belongs to one hospital (paths, device, policy). The one exception is `[simulation]`,
which says where the sites of a rehearsal lie on this machine; it is left out of the
plan's hash, and hospitals ignore it. A hospital approves the hash: with the same data,
versions and hardware, two plans with one hash train the same model. It does not say
which data that is.

Every key is typed, unknown keys are refused, and errors name the key and its line
(`common.plan_file`).
"""

import hashlib
import json
from functools import cached_property
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from common.plan_dp import dp_disagreements
from common.plan_federation import Federation, federation_disagreements
from common.plan_privacy import (
    AUTO_SITES,
    Privacy,
    is_masked,
    privacy_disagreements,
)
from common.plan_section import (
    Count,
    Finite,
    Fraction,
    Name,
    NotNegative,
    Positive,
    Section,
)
from common.plan_task import ClassificationTask, SegmentationTask
from common.sources import Simulation

PLAN_VERSION: Final = 1


class About(Section):
    """`[plan]`: what this experiment is called."""

    name: Name
    """Short name; run folders are called after it."""
    description: str = ""
    """One sentence for the report's head."""
    version: Literal[1] = PLAN_VERSION
    """Version of the plan format."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Root of the random choices that need no secrecy: split, initial weights; in a
    simulation patches and augmentation, too."""


class Model(Section):
    """`[model]`: a MONAI network by name."""

    name: Literal[
        "UNet",
        "AttentionUnet",
        "DynUNet",
        "SegResNet",
        "ResNet10",
        "ResNet18",
        "ResNet34",
        "ResNet50",
        "DenseNet121",
        "DenseNet169",
        "LinearProbe",
    ]
    """Segmentation: UNet, AttentionUnet, DynUNet, SegResNet. Classification: ResNet*,
    DenseNet*. LinearProbe is one convolution, for rehearsals and benchmarks."""
    dimensions: Literal[2, 3] = 3
    """2: slices (H W) of a volume; 3: whole patches (D H W)."""
    channels: list[Count] = Field(default=[16, 32, 64, 128], min_length=2, max_length=7)
    """Features per level, from full resolution down (U-Nets; SegResNet takes the
    first)."""
    residual_units: int = Field(default=2, ge=0, le=4)
    """Residual units per level (UNet)."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Batch norm keeps running statistics, which do not average well between sites."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping a feature."""


class Preprocessing(Section):
    """`[preprocessing]`: from HU on the scanner's grid to model space."""

    spacing_mm: tuple[Positive, Positive, Positive] | None = None
    """Spacing D, H, W after resampling; unset: the series' own."""
    window_hu: tuple[Finite, Finite] = (-1000.0, 400.0)
    """Values at or below the first become -1, at or above the second +1."""

    @model_validator(mode="after")
    def _window_is_ordered(self) -> Self:
        if not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(
                f"window_hu {self.window_hu} is empty, expected low < high"
            )
        return self


class Augmentation(Section):
    """`[training.augmentation]`: random changes of a training patch."""

    flip: list[Literal["D", "H", "W"]] = []
    """Axes that may be mirrored."""
    transpose: bool = False
    """Whether H and W may be swapped (square patches; slices without a fixed up)."""
    scale: NotNegative = 0.0
    """Standard deviation of a factor on the grey values."""
    shift: NotNegative = 0.0
    """Standard deviation of an offset on the grey values (range -1..1)."""
    noise: NotNegative = 0.0
    """Standard deviation of Gaussian noise on the grey values."""


class Training(Section):
    """`[training]`: what each site does in a round."""

    steps: Count | None = None
    """Optimiser steps per round, the same at every site. Under masks without DP, Adam
    and AdamW take at least 2."""
    epochs: Positive | None = None
    """Instead of steps: as many patches per round as so many passes over a site's
    training cases would have, one patch a case, drawn with replacement. A site with
    more cases takes more steps."""
    batch_size: Count
    """Patches per step."""
    patch: list[Count] = Field(min_length=2, max_length=3)
    """Patch size: H W for two dimensions, D H W for three."""
    loss: Literal["dice_ce", "dice_focal", "cross_entropy", "focal"] = "dice_ce"
    """dice_* for segmentation; cross_entropy and focal for classification."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """Its state stays at the site between rounds, see keep_optimizer_state."""
    learning_rate: Positive = 1e-3
    """Peak rate."""
    weight_decay: NotNegative = 1e-4
    """Decoupled (AdamW) or plain (SGD, Adam) decay."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Momentum of SGD."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Cosine falls to zero over all rounds, not over each round anew."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear rise at the start of the run."""
    keep_optimizer_state: bool = True
    """Whether moments survive at the site from one round to the next."""
    foreground: Fraction = 0.5
    """Share of patches that hold a foreground voxel, anywhere in them."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision of the forward pass; fp16 needs a GPU."""
    max_grad_norm: Positive | None = None
    """Clip the gradient's norm; unset: no clipping."""
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _has_one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("expected either steps or epochs, to say a round's length")
        return self


class Evaluation(Section):
    """`[evaluation]`: how the global model is judged, at every site."""

    every: Count = 1
    """Evaluate on the validation patients every so many rounds (and after the last)."""
    region: Literal["volume", "window"] = "volume"
    """The whole case by sliding window, or one window of patch size at a seeded place
    (crops that are centred on the finding must be judged off centre)."""
    overlap: float = Field(default=0.25, ge=0.0, lt=1.0)
    """Overlap of neighbouring windows."""
    surface: bool = True
    """Whether surface distance and HD95 are measured (needs millimetres)."""
    monitor: str | None = None
    """Metric that picks the best model; unset: Dice, or AUC for two classes, or
    accuracy."""
    final: Literal["best", "last"] = "best"
    """The model that is tested and handed out: the best by `monitor`, or the last
    round's. Few validation patients pick a best round by chance; with a schedule that
    ends at zero the last one is the safer choice (nnU-Net's, Isensee et al. 2021)."""


class Data(Section):
    """`[data]`: the floor of intake, and the split."""

    min_cases: Count = 1
    """Fewest accepted cases a site must have."""
    min_accepted: Fraction = 0.0
    """Smallest share N/M of found series that must be accepted."""
    validation: Fraction = 0.15
    """Share of patients for picking the best model."""
    test: Fraction = 0.2
    """Share of patients never seen before the end."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.validation + self.test >= 1.0:
            raise ValueError("validation + test leave no patient to train on")
        return self


class Plan(Section):
    """The whole experiment; valid once constructed."""

    plan: About
    task: Annotated[SegmentationTask | ClassificationTask, Field(discriminator="kind")]
    model: Model
    preprocessing: Preprocessing = Preprocessing()
    training: Training
    federation: Federation
    evaluation: Evaluation = Evaluation()
    data: Data = Data()
    privacy: Privacy = Privacy()
    simulation: Simulation | None = None

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if said := _disagreements(self):
            raise ValueError("\n".join(said))  # a line each, see `common.plan_file`
        return self

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON without `[simulation]`.

        Tables and keys stand in the order of the schema, whatever the file's; the order
        of `task.classes` is the file's, because it numbers the classes.
        """
        content = self.model_dump(mode="json", exclude={"simulation"})
        text = json.dumps(content, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def fewest_steps(self) -> int:
        """Fewest optimiser steps of a site's round.

        Adam's first step moves each parameter by the learning rate, up or down. From a
        sum of such steps and the sites' weights each site's signs follow: so under
        masks without DP there are two.
        """
        # "auto": as if enough sites came.
        masked = is_masked(self.privacy, self.federation, AUTO_SITES)
        tells = masked and self.privacy.dp is None
        return 2 if tells and self.training.optimizer != "sgd" else 1

    @property
    def has_global_model(self) -> bool:
        """FedBN has none: each site completes the shared part with its own norms."""
        return self.federation.algorithm != "fedbn"

    @property
    def patch(self) -> tuple[int, int, int]:
        """Patch size D, H, W; a slice has D = 1."""
        d, h, w = ([1, *self.training.patch])[-3:]
        return d, h, w


SEGMENTERS = ("UNet", "AttentionUnet", "DynUNet", "SegResNet", "LinearProbe")


def _disagreements(plan: Plan) -> list[str]:
    """What each section allows but the plan as a whole does not."""
    model, training, federation = plan.model, plan.training, plan.federation
    segments = plan.task.kind == "segmentation"
    said: list[str] = []
    if len(training.patch) != model.dimensions:
        said.append(
            f"training.patch has {len(training.patch)} numbers, "
            f"expected {model.dimensions} as in model.dimensions"
        )
    if segments != (model.name in SEGMENTERS) and model.name != "LinearProbe":
        said.append(
            f"model.name {model.name!r} does not fit task.kind {plan.task.kind!r}"
        )
    if segments != training.loss.startswith("dice"):
        said.append(
            f"training.loss {training.loss!r} does not fit task.kind {plan.task.kind!r}"
        )
    said += federation_disagreements(federation)
    sites = len(plan.simulation.sites) if plan.simulation else None
    said += privacy_disagreements(plan.privacy, federation, sites)
    said += dp_disagreements(
        plan.privacy.dp,
        norm=model.norm,
        amp=training.amp,
        max_grad_norm=training.max_grad_norm,
    )
    if training.steps is not None and training.steps < plan.fewest_steps:
        said.append(
            f"training.steps {training.steps} is too few under masks: the first step "
            f"of {training.optimizer!r} moves every parameter by the learning rate, up "
            "or down, so that a sum tells each site's signs; expected 2 or more, "
            "training.optimizer = 'sgd' or [privacy.dp]"
        )
    plain_sgd = training.optimizer == "sgd" and training.momentum == 0.0
    if federation.algorithm == "scaffold" and not plain_sgd:
        said.append(
            "federation.algorithm 'scaffold' corrects plain SGD steps; "
            "set training.optimizer = 'sgd' and training.momentum = 0.0"
        )
    if federation.algorithm == "fedbn" and model.norm == "instance":
        said.append(
            "federation.algorithm 'fedbn' keeps norm layers at the site, but instance "
            "norm has no parameters; set model.norm = 'batch' or 'group'"
        )
    if model.dimensions == 2 and "D" in training.augmentation.flip:
        said.append(
            "training.augmentation.flip names 'D', but slices have only H and W"
        )
    if training.augmentation.transpose and training.patch[-1] != training.patch[-2]:
        said.append("training.augmentation.transpose needs a square patch")
    if plan.simulation and federation.min_sites > len(plan.simulation.sites):
        said.append(
            f"federation.min_sites {federation.min_sites} is above the number of "
            f"sites, {len(plan.simulation.sites)}; no round could ever count"
        )
    return said
