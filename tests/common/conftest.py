"""Plans and blob phantoms that the tests of `common` share."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch

from common.case import PreparedCase
from common.plan import Plan
from common.volume import Grid

SEGMENTS = {"kind": "segmentation", "classes": {"nodule": ["nodule"]}}


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_plan() -> Callable[..., Plan]:
    """A small plan; keyword arguments replace keys of its sections."""

    def make(
        *,
        task: Mapping = SEGMENTS,
        model: Mapping = {},
        training: Mapping = {},
        evaluation: Mapping = {},
    ) -> Plan:
        model = {"name": "UNet", "dimensions": 2, "channels": [4, 8, 8], **model}
        segments = task["kind"] == "segmentation"
        training = {
            "steps": 1,
            "batch_size": 2,
            "patch": [16] * model["dimensions"],
            "loss": "dice_ce" if segments else "cross_entropy",
            **training,
        }
        return Plan.model_validate(
            {
                "plan": {"name": "test"},
                "task": task,
                "model": model,
                "training": training,
                "federation": {"rounds": 1},
                "evaluation": evaluation,
            }
        )

    return make


@pytest.fixture
def make_case() -> Callable[..., PreparedCase]:
    """A bright ball in noise, with its exact mask."""

    def make(
        shape: tuple[int, int, int] = (3, 24, 24),
        radius: float = 5.0,
        spacing_mm: tuple[float, float, float] = (2.0, 1.0, 1.0),
        label: int | None = None,
        seed: int = 0,
        **more,
    ) -> PreparedCase:
        centre = (np.array(shape) - 1) / 2
        offsets = np.moveaxis(np.indices(shape), 0, -1) - centre
        mask = (np.linalg.norm(offsets * spacing_mm, axis=-1) < radius).astype(np.uint8)
        noise = np.random.default_rng(seed).normal(0, 0.1, shape)
        grid = Grid(shape, np.diag([*spacing_mm, 1.0]))
        return PreparedCase(
            case_id="0a",
            patient_id="0b",
            image=(mask - 0.5 + noise).astype(np.float16),
            grid=grid,
            source_grid=grid,
            mask=mask,
            label=label,
            **more,
        )

    return make
