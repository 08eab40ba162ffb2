"""One key in two places: noticed at the hub, from what nginx logs.

Each process of a site makes a number of its own and says it with every request. A site
that is started again has a new number, and the old one is never heard again. So an old
number that is heard after a newer one means two services with one key: a folder that
was copied, or a key that was stolen. It shows even if the second one was refused, and
even if it took the first one's place, which whoever has the key can give up.

Not covered here: a thief who waits until the hospital's own service is stopped, and
keeps away while it runs. A certificate's short life and `fedct server revoke` bound it.
"""

import json
import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from common.certificates import instant
from common.durable import write_whole
from deploy.gateway import ACCESS_LOG
from server.register import read_register

TWINS_FILE = "twin_keys.json"
LOOK_S = 2.0
"""How often the log is read on."""
FRESH = timedelta(hours=24)
"""How long an alarm is shown after the two were last heard together."""
_MOST_SESSIONS = 64
"""Remembered per site: a service that keeps dying makes one a minute at most."""
_NOTHING_DONE = (400, 401)
"""How the SuperLink answers an echo (`client.echo`), which is no service."""

log = logging.getLogger("fedct.hub")


class Twin(BaseModel):
    """A key that is in use in two places."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    since: AwareDatetime
    """When the second one was first heard, by the hub's clock, UTC."""
    last: AwareDatetime
    """When an older one was last heard after a newer one."""

    def sentence(self, site: str) -> str:
        """For the hub's log, and for whoever asks for its status."""
        return (
            f"site {site}: its key is in use from two places since "
            f"{instant(self.since)}; ask the hospital whether it runs two services, "
            f"and if not, `fedct server revoke` it and let it join with new keys"
        )


class _Twins(BaseModel):
    """The content of `twin_keys.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    twins: dict[str, Twin] = {}
    """By site."""


@dataclass
class Watch:
    """What was heard so far; `hear` it line by line, in the order of the log."""

    twins: dict[str, Twin] = field(default_factory=dict)
    """By site."""
    _began: dict[str, dict[str, float]] = field(default_factory=dict)
    """Site to session to when it was first heard, oldest first."""

    def hear(self, lines: Iterable[str]) -> set[str]:
        """Take in lines of the access log; which sites have a twin key by them."""
        found = set()
        for line in lines:
            try:
                row = json.loads(line)
                site, session = row["site"], row["session"]
                began = float(row["time"]) - float(row["seconds"])
                good = (
                    row["certificate"] == "SUCCESS"
                    and row["request"].startswith("POST /v1/fleet/")
                    and row["status"] not in _NOTHING_DONE
                )
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # cut by a full disk, or of an older hub
            if good and self._heard(site, session, began):
                found.add(site)
        return found

    def _heard(self, site: str, session: str, began: float) -> bool:
        sessions = self._began.setdefault(site, {})
        if session not in sessions:
            sessions[session] = began
            if len(sessions) > _MOST_SESSIONS:
                del sessions[next(iter(sessions))]
            return False
        newer = list(sessions.values())[list(sessions).index(session) + 1 :]
        if not newer or began <= min(newer):
            return False
        last = datetime.fromtimestamp(began, UTC)
        since = datetime.fromtimestamp(min(newer), UTC)
        if (known := self.twins.get(site)) is not None and last - known.last < FRESH:
            since, last = known.since, max(last, known.last)
        self.twins[site] = Twin(since=since, last=last)
        return True


def watch_keys(folder: Path, stop: threading.Event) -> None:
    """Read the hub's access log on and on, and raise the alarm, until `stop` is set.

    Args:
        folder: The hub's folder.
        stop: Set from outside.
    """
    watch = Watch(dict(_read(folder)))
    path, offset = folder / "nginx" / ACCESS_LOG, 0
    while True:
        try:
            size = path.stat().st_size if path.exists() else 0
            offset = offset if size >= offset else 0  # put aside, and begun anew
            lines, offset = _lines(path, offset) if size > offset else ([], offset)
            known = dict(watch.twins)
            for site in watch.hear(lines):
                _keep(folder, site, known.get(site), watch.twins)
        except OSError as error:
            log.warning("access log not read: %s", error)
        if stop.wait(LOOK_S):
            return


def read_twins(folder: Path, now: datetime) -> dict[str, Twin]:
    """Keys that are in use in two places, by site; those of revoked sites left out.

    Args:
        folder: The hub's folder.
        now: The hub's clock.
    """
    active = {
        name
        for name, entry in read_register(folder).latest().items()
        if entry.status(now) == "active"
    }
    return {
        site: twin
        for site, twin in _read(folder).items()
        if site in active and now - twin.last < FRESH
    }


def _keep(
    folder: Path, site: str, known: Twin | None, twins: Mapping[str, Twin]
) -> None:
    """Say and write down what is new; "last" is written once a minute."""
    twin = twins[site]
    if known is None or known.since != twin.since:
        log.warning("%s", twin.sentence(site))
    elif twin.last - _read(folder).get(site, known).last < timedelta(minutes=1):
        return
    content = _Twins(twins=dict(twins)).model_dump_json(indent=1).encode()
    write_whole(folder / TWINS_FILE, content)


def _read(folder: Path) -> Mapping[str, Twin]:
    try:
        return _Twins.model_validate_json((folder / TWINS_FILE).read_bytes()).twins
    except (OSError, ValidationError):
        return {}


def _lines(path: Path, offset: int) -> tuple[list[str], int]:
    """Whole lines from there on, and where they end."""
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), offset + len(whole)
