"""Bytes on the wire per site, from the hub's access log.

nginx writes one JSON line per request with what it received and sent: the heads and
bodies of HTTP, without TLS's own bytes and TCP's (together under 4 % of large bodies,
as every packet of 1460 bytes has a head of 40 and every TLS record of 16 KiB 22). Only
requests with a good certificate count for a site.

The log is bounded: past a size it becomes `access.jsonl.1`, which takes the place of
the one before.
"""

import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.gateway import ACCESS_LOG

LOG_BYTES: Final = 64_000_000
"""About 300 000 requests: a day of ten sites that ask every 3 s."""
_LINE_BYTES: Final = 16_384
"""Longer than any line: nginx takes no longer address."""


@dataclass(frozen=True)
class Traffic:
    """What passed between the hub and one site; adding two adds what passed."""

    requests: int = 0
    """Requests that were answered or cut."""
    received_bytes: int = 0
    """Sent by the site, received by the hub."""
    sent_bytes: int = 0
    """Sent by the hub."""

    def __add__(self, other: "Traffic") -> "Traffic":
        """Of two disjoint times."""
        return Traffic(
            self.requests + other.requests,
            self.received_bytes + other.received_bytes,
            self.sent_bytes + other.sent_bytes,
        )


def traffic_by_site(
    folder: Path, since: float = 0.0, until: float = float("inf")
) -> dict[str, Traffic]:
    """What passed in a time, by name of the site.

    Args:
        folder: The hub's nginx folder.
        since: Seconds since 1970; requests that ended then or later count.
        until: Requests that ended before count.
    """
    total: dict[str, Traffic] = {}
    for name in (f"{ACCESS_LOG}.1", ACCESS_LOG):
        path = folder / name
        if not path.exists():
            continue
        with path.open(encoding="utf-8") as file:
            for row in _rows(file):
                site = _known_site(row)
                if site and since <= row["time"] < until:
                    more = Traffic(1, row["bytes_in"], row["bytes_out"])
                    total[site] = total.get(site, Traffic()) + more
    return total


class Meter:
    """Counts what passes, from now on, without reading a line twice.

    A line belongs to the look that found it, whatever its time, so that what nginx
    writes a moment late is counted all the same, once. Look before the log is put
    aside a second time; several threads may.
    """

    def __init__(self, folder: Path) -> None:
        """Begin at the log's present end.

        Args:
            folder: The hub's nginx folder.
        """
        self._folder = folder
        self._lock = threading.Lock()
        self._total: dict[str, Traffic] = {}
        self._inode, self._place = self._end()

    def take(self) -> dict[str, Traffic]:
        """What passed since this was last called, by name of the site."""
        self.look()
        with self._lock:
            taken, self._total = self._total, {}
        return taken

    def look(self) -> None:
        """Count what is new in the log."""
        with self._lock:
            self._look()

    def _look(self) -> None:
        inode, end = self._end()
        parts: list[tuple[str, int, int | None]] = [(ACCESS_LOG, self._place, end)]
        if inode != self._inode:  # put aside meanwhile
            parts = [(f"{ACCESS_LOG}.1", self._place, None), (ACCESS_LOG, 0, end)]
        for name, start, stop in parts:
            for row in _rows(self._lines(name, start, stop)):
                if site := _known_site(row):
                    more = Traffic(1, row["bytes_in"], row["bytes_out"])
                    self._total[site] = self._total.get(site, Traffic()) + more
        self._inode, self._place = inode, end

    def _lines(self, name: str, start: int, stop: int | None) -> list[str]:
        with suppress(OSError), (self._folder / name).open("rb") as file:
            file.seek(start)
            content = file.read() if stop is None else file.read(stop - start)
            return content.decode("utf-8", "replace").splitlines()
        return []

    def _end(self) -> tuple[int, int]:
        """The log's inode, and where its last whole line ends."""
        try:
            with (self._folder / ACCESS_LOG).open("rb") as file:
                status = os.fstat(file.fileno())
                start = max(0, status.st_size - _LINE_BYTES)
                file.seek(start)
                tail = file.read(status.st_size - start)
        except OSError:
            return 0, 0
        return status.st_ino, start + tail.rfind(b"\n") + 1


def bound_log(folder: Path, pid: int, limit_bytes: int = LOG_BYTES) -> bool:
    """Put the log aside if it is too large, and let nginx begin a new one.

    Args:
        folder: nginx's.
        pid: Of the running nginx.
        limit_bytes: The largest it may be.

    Returns:
        Whether it was put aside.
    """
    log = folder / ACCESS_LOG
    if not log.exists() or log.stat().st_size <= limit_bytes:
        return False
    log.replace(folder / f"{ACCESS_LOG}.1")
    os.kill(pid, signal.SIGUSR1)
    return True


def _known_site(row: Mapping[str, Any]) -> str:
    """Whose request it was; empty if it showed no good certificate."""
    return str(row["site"]) if row["certificate"] == "SUCCESS" else ""


def _rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # nginx is at this line, or a full disk cut it
            continue
