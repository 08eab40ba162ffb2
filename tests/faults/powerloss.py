"""A run folder as the disk holds it after a power loss: what was not synced is gone.

The hub's runner is started with `powerloss.c` before it (LD_PRELOAD), which notes each
fsync and fdatasync, SQLite's own ones too. From that the folder is built as it was
after any of them, by the harshest reading of POSIX: a file holds what it held at its
last sync and is empty without one; a name is there if its folder was synced with it,
and points at the file that it pointed at then. No rename, removal or new folder
survives by luck, as it may on a journalling file system.

Not covered here: a disk that says it has synced and has not, and SuperLink's database,
which nothing rests on: a run's channel is opened anew.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
SYNCS = "FEDCT_FAULTS_SYNCS"
_SYNC = "[0-9]*.[df]i*"
COMPILER = shutil.which("cc") or shutil.which("gcc")


@dataclass(frozen=True)
class Sync:
    """One sync of a file or folder."""

    path: Path
    """Of what was synced, as it was called then."""
    identity: str
    """Of the file: device, inode and birth, which no other file has ever."""
    content: bytes
    """Of the file."""
    names: dict[str, str] | None
    """Of the folder: name to identity; unset for a file."""


def compile_shim(to: Path) -> Path:
    """The library to preload."""
    assert COMPILER is not None
    flags = ("-shared", "-fPIC", "-O1", "-Wall")
    subprocess.run(
        [COMPILER, *flags, "-o", str(to), str(SOURCE), "-ldl"],
        check=True,
        capture_output=True,
    )
    return to


def read_syncs(folder: Path) -> list[Sync]:
    """All syncs so far, in order."""
    return [_read(path) for path in sorted(folder.glob(_SYNC))]


def count_syncs(folder: Path) -> int:
    """How many syncs were done so far."""
    return len([*folder.glob(_SYNC)])


def _read(path: Path) -> Sync:
    head, _, rest = path.read_bytes().partition(b"\n")
    if path.suffix == ".file":
        identity, _, name = head.decode().partition(" ")
        return Sync(Path(name), identity, rest, None)
    rows = [line.partition(" ") for line in rest.decode().splitlines()]
    return Sync(Path(head.decode()), "", b"", {name: i for i, _, name in rows})


def after(syncs: list[Sync], run: Path, first: dict[str, bytes], to: Path) -> None:
    """Build what the disk holds of a run folder after these syncs.

    Args:
        syncs: As many as were done.
        run: The run folder, as the runner calls it.
        first: Files that were on the disk before the runner began, by name.
        to: Where to build it; must not exist.
    """
    files = {sync.identity: sync.content for sync in syncs if sync.names is None}
    folders = {sync.path: sync.names for sync in syncs if sync.names is not None}
    to.mkdir(mode=0o700)
    for name, content in first.items():
        (to / name).write_bytes(content)
    _build(run, to, files, folders, set(first))


def _build(
    path: Path,
    to: Path,
    files: dict[str, bytes],
    folders: dict[Path, dict[str, str]],
    first: set[str],
) -> None:
    for name, identity in folders.get(path, {}).items():
        if name.endswith("/"):
            (to / name).mkdir(mode=0o700)
            _build(path / name, to / name, files, folders, set())
        elif name not in first:
            (to / name).write_bytes(files.get(identity, b""))
