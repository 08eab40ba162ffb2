"""What a site keeps of masked rounds on its disk: what it opened, what rounding lost.

Which sum of a round was opened must outlive the process, or a server could have it
forgotten by waiting for a restart: a round that is repeated, as after a hub's crash,
must open the very same sum, since two sums that differ by one site tell that site's
update.

The secrets of a round are never written down.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32

from client.kept_texts import read_texts, write_texts
from client.private_files import make_private_folder
from client.state import SiteState, load_state, save_state
from common.errors import ContributionError

OPENED = "opened.json"
"""In a run's folder of states: round to the digest of what was opened."""
_CARRIED = "carried"
"""Beside it: what rounding lost (16 bits), by round."""


def note_opening(
    folder: Path, number: int, model: str, survivors: tuple[str, ...]
) -> None:
    """Write down which sum is opened, before a share leaves.

    Args:
        folder: The run's folder of states.
        number: The round.
        model: `digest_of` the model that was trained from.
        survivors: Sites in the sum.

    Raises:
        ContributionError: Another sum of this round was opened before; `code` is
            "spent".
    """
    text = json.dumps([model, sorted(survivors)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    known = read_texts(folder / OPENED)
    if known.get(str(number), digest) != digest:
        raise ContributionError(
            f"round {number} was opened for other sites or another model before, "
            "expected the same; two such sums would tell one site's update",
            code="spent",
        )
    if str(number) not in known:
        make_private_folder(folder)
        write_texts(folder / OPENED, {**known, str(number): digest})


def load_carried(folder: Path, number: int, size: int) -> Float32[np.ndarray, " P"]:
    """What rounding had lost after round `number`; zeros for round 0."""
    carried = load_state(folder / _CARRIED, number).carried
    return np.zeros(size, np.float32) if carried is None else carried.numpy().copy()


def save_carried(
    folder: Path, number: int, carried: Float32[np.ndarray, " P"], keep: int
) -> None:
    """Write what rounding has lost after round `number`; round `keep`'s stays."""
    make_private_folder(folder)  # not open to others as a mere parent would be
    state = SiteState(carried=torch.from_numpy(carried))
    save_state(folder / _CARRIED, number, state, keep)
