"""A network's state as one flat float32 vector, and back.

One vector per message is what makes the rest simple: an update is a subtraction, a mean
is a sum, and (Flower's wire) one object per hop in place of two requests per tensor.
Adding vectors equals adding networks.

Parameters and floating-point buffers (running statistics) travel; integer buffers
(batch counters) stay. FedBN (Li 2021, arXiv 2102.07623) keeps all of a norm layer at
the site: `is_local` says which names those are.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from common.errors import ModelError


@dataclass(frozen=True)
class Layout:
    """Which tensors make up the vector, in order."""

    names: tuple[str, ...]
    """Keys of the state dict that travel."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes."""
    local: tuple[str, ...] = ()
    """Keys that stay at the site (FedBN)."""

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def digest(self) -> str:
        """sha256 (hex) over names and shapes: both sides must hold the same."""
        return hashlib.sha256(repr((self.names, self.shapes)).encode()).hexdigest()


def layout_of(network: nn.Module, *, keep_norms_local: bool) -> Layout:
    """The layout of a network's travelling state.

    Args:
        network: Any module; its state dict's order is the vector's order.
        keep_norms_local: FedBN: leave out everything that belongs to a norm layer.
    """
    local = set(_norm_names(network)) if keep_norms_local else set()
    state = network.state_dict()
    floating = {name: t for name, t in state.items() if t.is_floating_point()}
    if not floating.keys() - local:
        raise ModelError(
            "network has no floating-point state to share, expected at least one weight"
        )
    shared = {name: t for name, t in floating.items() if name not in local}
    return Layout(
        names=tuple(shared),
        shapes=tuple(tuple(t.shape) for t in shared.values()),
        local=tuple(name for name in state if name in local),
    )


def _norm_names(network: nn.Module) -> Iterator[str]:
    kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
    for prefix, module in network.named_modules():
        if isinstance(module, kinds):
            yield from (f"{prefix}.{name}" for name in module.state_dict())


def to_vector(network: nn.Module, layout: Layout) -> Float32[np.ndarray, " P"]:
    """A fresh copy of the travelling state, on the CPU."""
    state = network.state_dict()
    vector = np.empty(layout.size, dtype=np.float32)
    for name, part in parts_of(vector, layout):
        part[...] = state[name].detach().to("cpu", torch.float32).numpy()
    return vector


def load_vector(
    network: nn.Module, layout: Layout, vector: Float32[np.ndarray, " P"]
) -> None:
    """Write a vector into the network, in place; nothing else changes.

    Raises:
        ModelError: The vector is not float32 of the layout's length.
    """
    if vector.dtype != np.float32 or vector.shape != (layout.size,):
        raise ModelError(
            f"parameters came as {vector.dtype}{list(vector.shape)}, expected "
            f"float32[{layout.size}]; is the model of the plan the same on both sides?"
        )
    state = network.state_dict()
    with torch.no_grad():
        for name, part in parts_of(vector, layout):
            source = torch.from_numpy(part if part.flags.writeable else part.copy())
            state[name].copy_(source)


def to_state(
    layout: Layout, vector: Float32[np.ndarray, " P"], rest: nn.Module
) -> dict[str, Tensor]:
    """A whole state dict: views of the vector, and copies of all others of `rest`."""
    parts = dict(parts_of(vector, layout))
    return {
        name: torch.from_numpy(parts[name])
        if name in parts
        else tensor.detach().cpu().clone()
        for name, tensor in rest.state_dict().items()
    }


def digest_of(vector: Float32[np.ndarray, " P"]) -> str:
    """sha256 (hex) of the little-endian bytes of a vector."""
    return hashlib.sha256(np.ascontiguousarray(vector, dtype="<f4").data).hexdigest()


def parts_of(
    vector: Float32[np.ndarray, " P"], layout: Layout
) -> Iterator[tuple[str, np.ndarray]]:
    """Views of the vector, one per tensor, in the tensor's shape."""
    start = 0
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        size = int(np.prod(shape))
        yield name, vector[start : start + size].reshape(shape)
        start += size
