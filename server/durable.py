"""Files of the server; those with secrets are closed to others from the start."""

from pathlib import Path

from common.durable import write_whole


def write_durable(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Replace a file, see `common.durable.write_whole`."""
    write_whole(path, content, mode=mode)
