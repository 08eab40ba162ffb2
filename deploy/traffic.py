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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.gateway import ACCESS_LOG

LOG_BYTES: Final = 64_000_000
"""About 300 000 requests: a day of ten sites that ask every 3 s."""


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
                site = row["site"] if row["certificate"] == "SUCCESS" else ""
                if site and since <= row["time"] < until:
                    more = Traffic(1, row["bytes_in"], row["bytes_out"])
                    total[site] = total.get(site, Traffic()) + more
    return total


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


def _rows(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # nginx is at this line, or a full disk cut it
            continue
