"""What a site remembers between rounds, so that a repeated round is the same round.

A state is kept per run and round. The server's order says which round's state to go on
from: the last one that counted. If a round is void, or the server died before it could
write the round down, the same order comes again and starts from the same state, so the
outcome is the same to the bit.

Three states are kept, in files that are overwritten in turn: the one just made, the one
gone on from, and the one before that, in case the server has lost a checkpoint and goes
back a round (`server.rounds`). A file half written when the power failed belongs to a
round whose answer never left, so nobody will ask for it, and its checksum says that it
is torn. Overwriting costs one sync; a new file under a new name would cost two and a
removal.
"""

import io
import os
import pickle
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from client.private_files import FILE_MODE, make_private_folder, sync_folder
from common.errors import ContributionError, StoreError
from common.exchange import RUN_ID

STATES = "state"
"""In a site's folder; holds a folder for each run."""
KEPT_S = 30 * 86_400.0
"""How long a run's states outlive its last round here."""
_SLOTS = ("a.state", "b.state", "c.state")
_ROUND_BYTES, _CRC_BYTES = 8, 4
"""A file begins with its round and the CRC-32 of what follows, little endian."""


@dataclass(frozen=True, eq=False)
class SiteState:
    """A site's memory after a round."""

    optimizer: dict[str, Any] | None = None
    """State dict of the optimiser; unset: begin with fresh moments."""
    local: dict[str, Tensor] = field(default_factory=dict)
    """FedBN: tensors that never travel."""
    scaler: dict[str, Any] = field(default_factory=dict)
    """fp16: state dict of the loss scale."""
    control: Tensor | None = None
    """SCAFFOLD: the site's control variate c_i, float32 [P]."""
    answer: dict[str, Any] = field(default_factory=dict)
    """DP: what was answered, which costs nothing to say again (`client.dp_site`)."""
    carried: Tensor | None = None
    """Masks of 16 bits: what rounding has lost, float32 [P]."""
    lineage: str = ""
    """Masks: of the rounds and models that it stems from (`secagg.lineage`)."""
    grid: tuple[int, ...] = ()
    """Of `carried`: `secagg.terms.Terms.grid` of all the rounds that left it over."""


def save_state(folder: Path, number: int, state: SiteState, keep: int) -> None:
    """Write the state after round `number`; round `keep`'s stays.

    Raises:
        StoreError: It can't be written; the state of round `keep` is as it was.
    """
    content = io.BytesIO()
    torch.save(vars(state), content)
    body = content.getbuffer()
    head = number.to_bytes(_ROUND_BYTES, "little")
    head += zlib.crc32(body).to_bytes(_CRC_BYTES, "little")
    try:
        make_private_folder(folder)
        _write(folder, _slot_to_overwrite(folder, number, keep), head, body)
    except OSError as error:
        raise StoreError(
            f"site can't write its training state of round {number} "
            f"({error.strerror}), expected {(len(body) >> 20) + 1} MB of room in its "
            "folder; free some and go on with the run",
            code="state",
        ) from error


def _write(folder: Path, path: Path, head: bytes, body: memoryview) -> None:
    is_new = not path.exists()
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, FILE_MODE), "wb") as file:
        file.write(head)
        file.write(body)
        file.truncate()
        file.flush()
        os.fdatasync(file.fileno())
    if is_new:
        sync_folder(folder)


def load_state(folder: Path, number: int) -> SiteState:
    """The state after round `number`; an empty one for round 0.

    Raises:
        StoreError: The state is gone or damaged; the run can't go on bit-equal.
    """
    if number == 0:
        return SiteState()
    try:
        content = torch.load(io.BytesIO(_read(folder, number)), weights_only=True)
        return SiteState(**content)
    except (OSError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"site lost its training state of round {number} ({type(error).__name__}), "
            "expected the file it wrote then; this site can rejoin in a new run or, "
            "under masks and without FedBN, where all sites begin anew",
            code="state",
        ) from error


def states_of(site: Path, run: str) -> Path:
    """The folder of a run's states; it may not be there yet.

    Args:
        site: The site's folder.
        run: Id of the run, from a server.

    Raises:
        ContributionError: It names no folder; `code` is "run".
    """
    if not RUN_ID.fullmatch(run):
        raise ContributionError(
            "site got an order of a run whose id is no plain name, expected up to 64 "
            "letters, digits, dots, hyphens and underscores; nothing was done",
            code="run",
        )
    return site / STATES / run


def forget_old_states(site: Path, now: float) -> None:
    """Remove the training states of runs that nobody went on with for a month.

    Only these large files go: which questions of a run were answered, and which sums
    opened, is kept for ever.

    Args:
        site: The site's folder.
        now: Seconds since 1970.
    """
    for run in (site / STATES).glob("*"):
        states = [path for name in _SLOTS for path in run.rglob(name)]
        last = max((path.stat().st_mtime for path in states), default=now)
        if now - last > KEPT_S:
            for path in states:
                path.unlink(missing_ok=True)


def _slot_to_overwrite(folder: Path, number: int, keep: int) -> Path:
    """The file of this very round if it is written again; never that of `keep`.

    Else one that did not count, as nothing goes on from it; else the oldest.
    """
    held = {folder / name: _round_of(folder / name) for name in _SLOTS}
    again = [path for path, there in held.items() if there == number]
    vain = [path for path, there in held.items() if there is not None and there > keep]
    free = [path for path, there in held.items() if there is None]
    oldest = sorted((there, path) for path, there in held.items() if there is not None)
    old = [path for there, path in oldest if there != keep]
    return (again + vain + free + old)[0]


def _read(folder: Path, number: int) -> bytes:
    for name in _SLOTS:
        if _round_of(folder / name) == number:
            content = (folder / name).read_bytes()[_ROUND_BYTES:]
            crc, body = content[:_CRC_BYTES], content[_CRC_BYTES:]
            if zlib.crc32(body).to_bytes(_CRC_BYTES, "little") == crc:
                return body
    raise FileNotFoundError("no whole file of that round")


def _round_of(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            return int.from_bytes(file.read(_ROUND_BYTES), "little")
    except FileNotFoundError:
        return None
