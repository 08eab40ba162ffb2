"""The server's state on disk: one safetensors file per round that closed.

A file is written, synced and renamed before the journal names it, so the journal never
points at a torn one. Its name is its round; its sha256 stands in the journal and is
checked on reading. Kept are the last, the one before it, in case the last is damaged,
and the best.
"""

from collections.abc import Collection
from pathlib import Path

from common.durable import sync_folder
from common.errors import RunError
from server.server_step import ServerState
from server.vector_file import read_vectors, write_vectors


def write_checkpoint(folder: Path, number: int, state: ServerState) -> str:
    """Write the state after round `number`; returns the sha256 (hex) of the file."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)  # or the power takes its name, and all that is in it
    vectors = {name: v for name, v in vars(state).items() if v is not None}
    return write_vectors(_path(folder, number), vectors)


def read_checkpoint(folder: Path, number: int, sha256: str) -> ServerState:
    """The state after round `number`.

    Raises:
        RunError: The file is gone or is not the one that the journal recorded.
    """
    try:
        vectors, found = read_vectors(_path(folder, number))
        if found != sha256:
            raise _lost(number, "another sha256")
        return ServerState(**vectors)
    except (OSError, ValueError, TypeError) as error:  # TypeError: another version's
        raise _lost(number, type(error).__name__) from error


def _lost(number: int, why: str) -> RunError:
    return RunError(
        f"run lost its checkpoint of round {number} ({why}), expected the file that "
        "the journal recorded; put it back from a backup, or start a new run"
    )


def prune(folder: Path, keep: Collection[int]) -> None:
    """Drop all checkpoints but those of the given rounds, and half-written ones."""
    wanted = {_path(folder, number) for number in keep}
    for path in folder.glob("round-*"):
        if path not in wanted:
            path.unlink(missing_ok=True)


def _path(folder: Path, number: int) -> Path:
    return folder / f"round-{number:06d}.safetensors"
