"""What a site remembers between rounds, so that a repeated round is the same round.

A state is kept per run and round. The server's order says which round's state to go on
from: the last one that counted. If a round is void, or the server died before it could
write the round down, the same order comes again and starts from the same state, so the
outcome is the same to the bit. Two states are kept: the one gone on from, and the one
just made.
"""

import io
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.private_files import make_private_folder, write_private
from common.errors import StoreError


@dataclass(frozen=True, eq=False)
class SiteState:
    """A site's memory after a round."""

    optimizer: dict[str, Any] | None = None
    """State dict of the optimiser; unset: begin with fresh moments."""
    local: dict[str, Tensor] = field(default_factory=dict)
    """FedBN: tensors that never travel."""
    control: Tensor | None = None
    """SCAFFOLD: the site's control variate c_i, float32 [P]."""


def save_state(folder: Path, number: int, state: SiteState, keep: int) -> None:
    """Write the state after round `number`; drop all but it and round `keep`'s."""
    make_private_folder(folder)
    content = io.BytesIO()
    torch.save(vars(state), content)
    write_private(_path(folder, number), content.getvalue())
    for path in folder.glob("round-*.pt"):
        if path not in (_path(folder, number), _path(folder, keep)):
            path.unlink(missing_ok=True)


def load_state(folder: Path, number: int) -> SiteState:
    """The state after round `number`; an empty one for round 0.

    Raises:
        StoreError: The state is gone or damaged; the run can't go on bit-equal.
    """
    if number == 0:
        return SiteState()
    try:
        content = torch.load(_path(folder, number), weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"site lost its training state of round {number} ({type(error).__name__}), "
            "expected the file it wrote then; this site can rejoin only in a new run"
        ) from error
    return SiteState(**content)


def _path(folder: Path, number: int) -> Path:
    return folder / f"round-{number:06d}.pt"
