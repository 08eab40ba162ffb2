"""Parts of large arrays on the hub's disk: laid out for sites, and brought by them.

    nginx/parts/out/DIGEST        what any enrolled site may fetch that knows the digest
    nginx/parts/in/SITE/DIGEST    what that site brought, and nobody else

nginx moves them (`deploy/nginx`), by the certificate that a site shows. Nothing here
outlives the process that sent the orders: what is asked is asked anew after a crash.
"""

import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PARTS: Final = Path("nginx/parts")
"""In the hub's folder."""
_KEPT: Final = 3
"""Orders with a new model that lie ready: who is slower than that is late anyway."""
_OLD_S: Final = 86_400.0
"""After a day, nobody takes what a site brought too late."""


def make_for_nginx(folder: Path) -> None:
    """Make a folder whose parent is there, for nobody but the parent's owner.

    Where root starts the hub, nginx works as the owner of the hub's folder.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    owner, now = folder.parent.stat(), folder.stat()
    if (owner.st_uid, owner.st_gid) != (now.st_uid, now.st_gid):
        os.chown(folder, owner.st_uid, owner.st_gid)


def sweep(hub: Path) -> None:
    """Remove all: what a run left that was killed, and what came after one's end."""
    for name in ("in", "out"):
        for left in (hub / PARTS / name).glob("*"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


@contextmanager
def part_files(hub: Path) -> Iterator["PartFiles"]:
    """The parts of a run, until it ends or is left.

    Args:
        hub: The hub's folder.
    """
    files = PartFiles(hub)
    try:
        yield files
    finally:
        files.clear()


class PartFiles:
    """The parts of the run that is going on; one thread."""

    def __init__(self, hub: Path) -> None:
        """Begin with none.

        Args:
            hub: The hub's folder.
        """
        self._hub = hub
        self._out, self._in = hub / PARTS / "out", hub / PARTS / "in"
        (hub / PARTS).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (hub / PARTS, self._out, self._in):
            make_for_nginx(folder)
        self._laid: deque[frozenset[str]] = deque()
        self.clear()

    def clear(self) -> None:
        """Remove all."""
        self._laid.clear()
        sweep(self._hub)

    def lay_out(self, digest: str, content: memoryview) -> None:
        """Let sites fetch a part; any thread.

        One that lies there already is written anew: a site that is asked again may
        have found it damaged.

        Raises:
            OSError: The disk does not take it.
        """
        path = self._out / digest
        temporary = path.with_suffix(f".{threading.get_ident()}.tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def keep_newest(self, laid: Collection[str]) -> None:
        """Remove what was laid out for older orders.

        Args:
            laid: Parts of the orders that go out now.
        """
        if not laid:
            return
        now = frozenset(laid)
        if now in self._laid:
            self._laid.remove(now)
        self._laid.append(now)
        while len(self._laid) > _KEPT:
            for digest in self._laid.popleft() - frozenset().union(*self._laid):
                (self._out / digest).unlink(missing_ok=True)

    def take(self, site: str, digest: str) -> bytes:
        """A part that a site brought, of at most its size by `common.parts`.

        Raises:
            FileNotFoundError: It did not.
        """
        return (self._in / site / digest).read_bytes()

    def drop(self, site: str, digests: Collection[str]) -> None:
        """Remove what a site brought and was read, and what lies there for a day."""
        for digest in digests:
            (self._in / site / digest).unlink(missing_ok=True)
        too_old = time.time() - _OLD_S
        for path in (self._in / site).glob("*"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < too_old:
                    path.unlink()
