"""Who was let in: the register of site certificates, `ca/issued.json`.

It is the one truth about sites: kits (`server.enrol`) and the revocation list
(`server.revocation`) follow from it and can be written again. Entries are added and
marked, never removed, so that it also tells what was.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from common.durable import write_whole
from common.errors import JoinError
from common.joining import SiteName
from server.hub import PRIVATE, REGISTER

Status = Literal["active", "expired", "revoked"]


class Issued(BaseModel):
    """One certificate that the authority signed for a site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    serial: str
    """Serial number, hexadecimal."""
    name: SiteName
    """The site."""
    fingerprint: str
    """SHA-256 of the certificate, hexadecimal."""
    issued: AwareDatetime
    """When it was signed."""
    not_after: AwareDatetime
    """Until when it is good."""
    request: str
    """Fingerprint of the request it answers."""
    tls_key: str
    """The certified key, PEM."""
    node_key: str
    """Flower's node key, one line as OpenSSH writes it."""
    verify_key: str
    """Ed25519 key that updates are verified with, PEM."""
    certificate: str
    """The certificate, PEM."""
    revoked: AwareDatetime | None = None
    """When it was revoked."""

    @property
    def keys(self) -> tuple[str, str, str]:
        """The site's three public keys."""
        return self.tls_key, self.node_key, self.verify_key

    def status(self, now: datetime) -> Status:
        """What the certificate is worth at this instant."""
        if self.revoked is not None:
            return "revoked"
        return "active" if now <= self.not_after else "expired"


class Register(BaseModel):
    """The content of `ca/issued.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fedct-register"] = "fedct-register"
    """What this file is."""
    version: Literal[1] = 1
    """Of the format."""
    crl_number: int = 0
    """Number of the newest revocation list."""
    issued: tuple[Issued, ...] = ()
    """Every certificate there was, oldest first; nothing is ever removed."""

    def latest(self) -> dict[str, Issued]:
        """The newest certificate of each site, in order of names."""
        newest = {entry.name: entry for entry in self.issued}
        return {name: newest[name] for name in sorted(newest)}


@dataclass(frozen=True)
class SiteRow:
    """One line of `fedct server sites`."""

    name: str
    """The site."""
    status: Status
    """Of its newest certificate."""
    not_after: datetime
    """Until when that is good."""
    fingerprint: str
    """SHA-256 of it, hexadecimal."""


def read_register(folder: Path) -> Register:
    """The register of a hub's folder.

    Raises:
        JoinError: It is damaged.
    """
    try:
        return Register.model_validate_json((folder / REGISTER).read_bytes())
    except (OSError, ValidationError) as error:
        raise JoinError(
            f"hub has no readable {REGISTER} ({type(error).__name__}), expected the "
            "register of who was let in; put it back from a backup"
        ) from error


def write_register(folder: Path, register: Register) -> None:
    """Replace the register, durably and as a whole; call it under `locked`."""
    content = register.model_dump_json(indent=1).encode()
    write_whole(folder / REGISTER, content, mode=PRIVATE)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change the register; a killed one lets go."""
    descriptor = os.open(folder / "ca", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def sites(folder: Path, now: datetime) -> list[SiteRow]:
    """Every site that was ever let in, in order of names."""
    return [
        SiteRow(name, entry.status(now), entry.not_after, entry.fingerprint)
        for name, entry in read_register(folder).latest().items()
    ]


def entry_of(folder: Path, site: str) -> Issued:
    """The newest certificate of a site, whatever it is worth.

    Raises:
        JoinError: There is no such site.
    """
    latest = read_register(folder).latest()
    if site not in latest:
        raise unknown_site(site, latest)
    return latest[site]


def unknown_site(site: str, known: dict[str, Issued]) -> JoinError:
    """What to say of a name that is not in the register."""
    names = ", ".join(known) or "none yet"
    return JoinError(
        f"hub was asked for site {site[:64]!r}, expected one that was enrolled "
        f"({names}); see `fedct server sites`"
    )


def verify_key_of(folder: Path, site: str) -> str:
    """The Ed25519 key that a site's updates are verified with, PEM."""
    return entry_of(folder, site).verify_key
