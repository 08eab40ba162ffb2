"""The server's state on disk: one safetensors file per round that closed.

A file is written, synced and renamed before the journal names it, so the journal never
points at a torn one. Its name is its round; its sha256 stands in the journal and is
checked on reading. Only the last and the best are kept.
"""

import hashlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from common.durable import write_whole
from common.errors import RunError
from server.server_step import ServerState


def write_checkpoint(folder: Path, number: int, state: ServerState) -> str:
    """Write the state after round `number`; returns the sha256 (hex) of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: t for name, t in vars(state).items() if t is not None}
    content = save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
    with ThreadPoolExecutor(1) as beside:  # hash while the disk is busy
        digest = beside.submit(lambda: hashlib.sha256(content).hexdigest())
        write_whole(_path(folder, number), content)
    return digest.result()


def read_checkpoint(folder: Path, number: int, sha256: str) -> ServerState:
    """The state after round `number`.

    Raises:
        RunError: The file is gone or is not the one that the journal recorded.
    """
    try:
        content = _path(folder, number).read_bytes()
    except OSError as error:
        raise _lost(number, type(error).__name__) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise _lost(number, "another sha256")
    try:
        return ServerState(**load(content))
    except (SafetensorError, TypeError) as error:  # written by another version
        raise _lost(number, type(error).__name__) from error


def _lost(number: int, why: str) -> RunError:
    return RunError(
        f"run lost its checkpoint of round {number} ({why}), expected the file that "
        "the journal recorded; restore it from a backup, or start a new run"
    )


def prune(folder: Path, keep: Collection[int]) -> None:
    """Drop all checkpoints but those of the given rounds, and half-written ones."""
    wanted = {_path(folder, number) for number in keep}
    for path in folder.glob("round-*"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"round-{number:06d}.safetensors"
