"""The handed-out model: a folder that says by itself what it is and what it is for.

    model/model.safetensors   the weights; a format that can't hold code
    model/model.json          plan, round, metric, versions, sha256 of the weights
    model/README.md           the same for people: a short model card

The folder is written beside its place and renamed, so that a reader finds the old one,
the new one or (between two renames) none, never a mixture. Nothing is unpickled on the
way back: weights are checked against their sha256, the plan against its own digest.

`[simulation]` is left out: it holds folders of the machine that trained.

Not covered here: who made the package. The digests find damage, not forgery, because
whoever can replace the weights can replace `model.json` as well.
"""

import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from safetensors import SafetensorError
from torch import Tensor

from common.durable import sync_folder, write_whole
from common.errors import ModelError
from common.plan import Plan

PACKAGE_VERSION: Final = 1
"""Raise it when `model.json` changes so that older readers would misread it."""
WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
RESEARCH_ONLY: Final = "research use only"
"""What every package, SEG and preview says: no authority has cleared these models."""
MAX_FACTS_BYTES = 4 * 2**20
"""A plan is a few kB; more is no `model.json`."""


class PackageFacts(BaseModel):
    """What is known of a model beside its plan and weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    round: int = Field(ge=0)
    """The round the weights come from; 0 is the untrained model."""
    monitor: str
    """Metric that picked the round."""
    monitor_value: float | None = Field(default=None, allow_inf_nan=False)
    """Its mean over the sites' validation patients; unset if it was not measured."""
    sites: int | None = Field(default=None, ge=1)
    """How many sites trained it; unset if not known."""
    versions: dict[str, str] = {}
    """Package name to version of what trained it."""

    @field_validator("monitor_value", mode="before")
    @classmethod
    def _undefined_is_not_measured(cls, value: object) -> object:
        return None if isinstance(value, float) and math.isnan(value) else value


class PackageRecord(BaseModel):
    """The documented content of `model.json`; keys in this order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fedct-model"] = "fedct-model"
    package_version: Literal[1] = PACKAGE_VERSION
    use: Literal["research use only"] = RESEARCH_ONLY
    class_names: list[str]
    """In the order of their numbers: segmentation from 1, classification from 0."""
    facts: PackageFacts
    plan_digest: str
    """`Plan.digest` of `plan`."""
    weights_sha256: str
    """sha256 (hex) of `model.safetensors`, byte for byte."""
    parameters: int
    """Numbers in the weights."""
    plan: Plan
    """The whole plan without `[simulation]`."""


@dataclass(frozen=True, eq=False)
class ModelPackage:
    """A model that was handed out, read and checked."""

    plan: Plan
    """The plan that trained it, without `[simulation]`."""
    state: Mapping[str, Tensor]
    """Weights by name, on the CPU; they fit `common.networks.build_network(plan)`."""
    facts: PackageFacts
    weights_sha256: str
    """sha256 (hex) of the weights' file: tells one model from another."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their numbers; for segmentation without the background."""
        return class_names_of(self.plan)


def class_names_of(plan: Plan) -> tuple[str, ...]:
    """Names of the plan's classes; for segmentation without the background."""
    if plan.task.kind == "segmentation":
        return tuple(plan.task.classes)
    return tuple(rule.name for rule in plan.task.classes)


def save_package(
    folder: Path, plan: Plan, state: Mapping[str, Tensor], *, facts: PackageFacts
) -> None:
    """Write a package, in place of the one that may be there.

    Args:
        folder: The package itself (`RUN/model`); its parent must exist.
        plan: The effective plan; `[simulation]` is not written.
        state: The network's `state_dict`, on any device; nothing is kept of it.
        facts: Round, metric and versions.

    Raises:
        ModelError: A weight is not finite or there is none; nothing is written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    _check_finite(tensors, "package to be saved")
    weights = safetensors.torch.save(tensors)
    bare = plan.model_copy(update={"simulation": None})
    record = PackageRecord(
        class_names=list(class_names_of(plan)),
        facts=facts,
        plan_digest=plan.digest,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        plan=bare,
    )
    text = json.dumps(record.model_dump(mode="json"), indent=2, allow_nan=False) + "\n"
    _replace_folder(
        folder,
        {WEIGHTS: weights, FACTS: text.encode(), CARD: _card(record).encode()},
    )


def load_package(folder: Path) -> ModelPackage:
    """Read a package; also takes a run folder that holds one in `model/`.

    Raises:
        ModelError: It is absent, foreign, of another version or damaged; the message
            names the check that failed.
    """
    if not (folder / FACTS).is_file() and (folder / "model" / FACTS).is_file():
        folder = folder / "model"
    record = _read_record(folder)
    if record.plan.digest != record.plan_digest:
        raise _refusal(folder, "plan digest", "a plan that is not the one it names")
    if record.class_names != list(class_names_of(record.plan)):
        raise _refusal(folder, "class names", "other classes than its plan has")
    weights = _read(folder, WEIGHTS)
    if hashlib.sha256(weights).hexdigest() != record.weights_sha256:
        raise _refusal(
            folder, "weights sha256", f"{len(weights):,} bytes with another sha256"
        )
    try:
        state = safetensors.torch.load(weights)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _refusal(folder, "weights format", "no safetensors content") from error
    _check_finite(state, f"package {folder.name!r}")
    return ModelPackage(record.plan, state, record.facts, record.weights_sha256)


def _read_record(folder: Path) -> PackageRecord:
    text = _read(folder, FACTS, limit=MAX_FACTS_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _refusal(folder, "facts", f"a {FACTS} that is not JSON") from error
    if not isinstance(content, dict) or content.get("format") != "fedct-model":
        raise _refusal(folder, "format", f"a {FACTS} of something else")
    if content.get("package_version") != PACKAGE_VERSION:
        raise ModelError(
            f"package {folder.name!r} failed its version check: got "
            f"{content.get('package_version')!r}, expected {PACKAGE_VERSION}; "
            "read it with the FedCT that wrote it, or update FedCT"
        )
    try:
        return PackageRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _refusal(folder, "facts", f"{where}: {first['msg']}") from error


def _read(folder: Path, name: str, limit: int | None = None) -> bytes:
    path = folder / name
    try:
        if not path.is_file():
            raise _refusal(folder, "content", f"no file {name}")
        if limit is not None and path.stat().st_size > limit:
            raise _refusal(folder, "size", f"a {name} above {limit:,} bytes")
        return path.read_bytes()
    except OSError as error:
        reason = type(error).__name__
        raise _refusal(folder, "content", f"{name} unread ({reason})") from error


def _refusal(folder: Path, check: str, got: str) -> ModelError:
    return ModelError(
        f"package {folder.name!r} failed its {check} check: got {got}, expected a "
        f"model folder as FedCT writes it; copy the whole folder again"
    )


def _check_finite(state: Mapping[str, Tensor], who: str) -> None:
    if not state:
        raise ModelError(f"{who} got no weights, expected a network's state")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{who} got values in {name!r} that are not finite, expected numbers; "
                "hand out an earlier round"
            )


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write all files beside the folder, make them durable, then rename."""
    mark = secrets.token_hex(4)
    fresh = folder.with_name(f".{folder.name}.new-{mark}")
    old = folder.with_name(f".{folder.name}.old-{mark}")
    fresh.mkdir()
    try:
        for name, content in files.items():
            write_whole(fresh / name, content)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _card(record: PackageRecord) -> str:
    """The model card: what a stranger needs before running it."""
    plan, facts = record.plan, record.facts
    value = (
        "not measured" if facts.monitor_value is None else f"{facts.monitor_value:.4f}"
    )
    spacing = plan.preprocessing.spacing_mm
    low, high = plan.preprocessing.window_hu
    wanted = (
        "the series' own" if spacing is None else " x ".join(f"{s:g}" for s in spacing)
    )
    lines = [
        f"# {plan.plan.name}",
        "",
        f"**For {RESEARCH_ONLY}. Not a medical device; not for diagnosis.**",
        "",
        *([plan.plan.description, ""] if plan.plan.description else []),
        f"- Task: {plan.task.kind} of {', '.join(record.class_names)}",
        f"- Network: {plan.model.name}, {plan.model.dimensions}D, "
        f"{record.parameters:,} parameters",
        f"- Input: CT in HU, window {low:g} to {high:g}, spacing D H W in mm: {wanted}",
        f"- Trained by: {plan.federation.algorithm}"
        + ("" if facts.sites is None else f" over {facts.sites} sites")
        + f"; round {facts.round} of at most {plan.federation.rounds}",
        f"- {facts.monitor} on the sites' validation patients: {value}",
        f"- Plan: {record.plan_digest}",
        f"- Weights (sha256): {record.weights_sha256}",
        *(f"- {name}: {version}" for name, version in sorted(facts.versions.items())),
        "",
        "Scanners, protocols and patients unlike those of the training sites can make",
        "it fail without a sign. Measure it on your own cases first:",
        "",
        "    fedct evaluate MODEL DATA",
        "    fedct predict MODEL SERIES --out OUT",
        "",
        "`model.json` holds the same facts and the whole plan for programs.",
    ]
    return "\n".join(lines) + "\n"
