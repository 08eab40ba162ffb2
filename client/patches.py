"""Training patches out of prepared cases.

Each case is equally likely, whatever its size: a hospital's thousand-slice scan shall
not outweigh its short ones. A share of the patches (`training.foreground`) holds a
foreground voxel, at any place of the patch alike: were it always in the middle, the
network would learn that findings sit there, which is not so when it is slid over a
volume. The rest lie anywhere.
Patches are cut straight from the store's memory maps, so only their pages are read.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8

from client.augment import shade, turn
from common.case import PreparedCase
from common.errors import PlanError
from common.plan import Plan
from common.task import Batch


class PatchSampler:
    """An endless source of batches; the same generator state gives the same ones."""

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        plan: Plan,
        generator: np.random.Generator,
    ) -> None:
        """Check that every patch can be cut.

        Args:
            cases: Training cases in an order that depends on the data alone.
            plan: Gives patch, batch size, foreground share and augmentation.
            generator: All randomness; advanced by a fixed amount per batch.

        Raises:
            PlanError: There is no case, or a case is smaller than the patch.
        """
        if not cases:
            raise PlanError("training got no case, expected at least one")
        self._cases = cases
        self._plan = plan
        self._generator = generator
        patch = np.array(plan.patch, dtype=np.int64)
        self._room = np.array([case.image.shape for case in cases]) - patch
        if (self._room < 0).any():
            small = cases[int(np.argmax((self._room < 0).any(axis=1)))].image.shape
            raise PlanError(
                f"training.patch {plan.patch} is larger than a case of {small} voxels, "
                "expected patches that fit into every case; take in again"
            )

    def batch(self) -> Batch:
        """Draw `training.batch_size` patches, cut and augment them."""
        return self._batch(*self._draw(self._plan.training.batch_size))

    def batch_of(self, picked: Sequence[int]) -> Batch:
        """Draw one patch of each of these cases, in their order, and augment it."""
        return self._batch(*self._draw(len(picked), picked))

    def _batch(self, picked: list[int], starts: list[list[int]]) -> Batch:
        settings = self._plan.training.augmentation
        image, mask, label = self._cut(picked, starts)
        turn(image, mask, settings, self._generator)
        if self._plan.model.dimensions == 2:
            image, mask = image[:, 0], mask[:, 0]
        grey = torch.from_numpy(image).to(torch.float32).unsqueeze(1)
        shade(grey, settings, self._generator)
        classes = torch.from_numpy(mask).to(torch.int64)
        return Batch(grey, classes, torch.from_numpy(label))

    def _cut(
        self, picked: list[int], starts: list[list[int]]
    ) -> tuple[
        Float16[np.ndarray, "B D H W"],
        UInt8[np.ndarray, "B D H W"],
        Int64[np.ndarray, " B"],
    ]:
        """Image, mask and label of drawn patches."""
        p_d, p_h, p_w = self._plan.patch
        image = np.empty((len(picked), p_d, p_h, p_w), dtype=np.float16)
        mask = np.zeros(image.shape, dtype=np.uint8)
        label = np.zeros(len(picked), dtype=np.int64)
        for i, (index, (d, h, w)) in enumerate(zip(picked, starts, strict=True)):
            case = self._cases[index]
            box = slice(d, d + p_d), slice(h, h + p_h), slice(w, w + p_w)
            image[i] = case.image[box]
            if case.mask is not None:
                mask[i] = case.mask[box]
            label[i] = case.label or 0
        return image, mask, label

    def _draw(
        self, count: int, given: Sequence[int] | None = None
    ) -> tuple[list[int], list[list[int]]]:
        """Cases, drawn unless given, and the first voxel (d, h, w) of each patch."""
        chances = self._generator.random((count, 6))
        picked = (chances[:, 0] * len(self._cases)).astype(np.int64)
        if given is not None:
            picked = np.array(given, dtype=np.int64)
        room = self._room[picked]
        starts = (chances[:, 3:] * (room + 1)).astype(np.int64)
        wanted = np.flatnonzero(chances[:, 1] < self._plan.training.foreground)
        for i in wanted:
            found = self._cases[picked[i]].foreground
            if found is not None and len(found):
                voxel = found[int(chances[i, 2] * len(found))]
                before = (chances[i, 3:] * self._plan.patch).astype(np.int64)
                starts[i] = np.minimum(np.maximum(voxel - before, 0), room[i])
        return picked.tolist(), starts.tolist()
