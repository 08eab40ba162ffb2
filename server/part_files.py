"""Parts of large arrays on the hub's disk: laid out for sites, and brought by them.

    nginx/parts/out/DIGEST        what any enrolled site may fetch that knows the digest
    nginx/parts/in/SITE/DIGEST    what that site brought, and nobody else

nginx moves them (`deploy/nginx`), by the certificate that a site shows. Nothing here
outlives the process that sent the orders: what is asked is asked anew after a crash.
"""

import shutil
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from common.errors import EngineError

PARTS: Final = Path("nginx/parts")
"""In the hub's folder."""
_KEPT: Final = 3
"""Orders with a new model that lie ready: who is slower than that is late anyway."""
_OLD_S: Final = 86_400.0
"""After a day, nobody takes what a site brought too late."""


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
        self._out, self._in = hub / PARTS / "out", hub / PARTS / "in"
        self._laid: deque[frozenset[str]] = deque()
        self.clear()

    def clear(self) -> None:
        """Remove all."""
        self._laid.clear()
        for folder in (self._out, self._in):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lay_out(self, digest: str, content: memoryview) -> None:
        """Let sites fetch a part; any thread.

        Raises:
            EngineError: The disk does not take it.
        """
        path = self._out / digest
        if path.exists():
            return
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise EngineError(
                f"hub can't lay out a model ({error.strerror}), expected a disk with "
                "room; make some, and it goes on"
            ) from error

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
