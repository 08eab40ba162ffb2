"""What a site keeps of masked rounds on its disk: whom it knows, and what it opened.

Two things must outlive the process, or a server could have them forgotten by waiting
for a restart. The keys of the other sites: whoever was met first under a name is
known by that key from then on, so that a site can't be replaced by one that the server
made up. And which sum of a round was opened: a round that is repeated, as after a hub's
crash, must open the very same sum, since two sums that differ by one site tell that
site's update.

The secrets of a round are never written down.

Not covered here: whether the first key under a name is the right one. That is for the
hospitals' engineers to compare, by telephone say.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import TypeAdapter, ValidationError

from client.private_files import make_private_folder, write_private
from client.state import SiteState, load_state, save_state
from common.errors import ContributionError, StoreError

PEERS = "peers.json"
"""In a site's folder: name of each site it was ever grouped with, to its key."""
OPENED = "opened.json"
"""In a run's folder of states: round to the digest of what was opened."""
_CARRIED = "carried"
"""Beside it: what rounding lost (16 bits), by round."""

_TEXTS = TypeAdapter(dict[str, str])


def check_peers(folder: Path, members: Mapping[str, str]) -> None:
    """Refuse a roster that has a known site under another key; learn the others.

    Args:
        folder: The site's folder.
        members: Site to verifying key, 64 hexadecimal digits.

    Raises:
        ContributionError: A key differs; `code` is "roster". Nothing was learnt.
        StoreError: The file can't be read.
    """
    known = _read(folder / PEERS)
    for name, key in members.items():
        if known.get(name, key) != key:
            raise ContributionError(
                f"roster has site {name!r} under another key than the one it is known "
                f"by here; has that hospital a new key? then take it out of {PEERS}",
                code="roster",
            )
    if not members.items() <= known.items():
        _write(folder / PEERS, {**known, **members})


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
    known = _read(folder / OPENED)
    if known.get(str(number), digest) != digest:
        raise ContributionError(
            f"round {number} was opened for other sites or another model before, "
            "expected the same; two such sums would tell one site's update",
            code="spent",
        )
    if str(number) not in known:
        make_private_folder(folder)
        _write(folder / OPENED, {**known, str(number): digest})


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


def _read(path: Path) -> dict[str, str]:
    try:
        return _TEXTS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise StoreError(
            f"site found a {path.name} that can't be read ({type(error).__name__}), "
            "expected what FedCT wrote; put it back from a backup"
        ) from error


def _write(path: Path, content: Mapping[str, str]) -> None:
    try:
        write_private(path, json.dumps(content, indent=1, sort_keys=True).encode())
    except OSError as error:
        raise StoreError(
            f"site can't write {path.name} ({error.strerror}), expected a disk with "
            "room; nothing was sent"
        ) from error
