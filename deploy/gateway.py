"""The hub's public port: settings in, a configuration for nginx out.

The TLS that the internet meets is nginx's, not ours: it asks for client certificates,
reads the revocation list, and lets nothing through but the Fleet API, parts of models
and health.
`install` has nginx itself test a configuration before it takes the place of the old
one, so that what lies in the folder can always be started (`deploy.nginx_run`).

A certificate that is revoked loses its idle connections with the reload, and those with
a request under way `shutdown_s` later at the latest. Sessions can't be resumed, so
nobody comes back without being judged anew.

Not covered here: who holds a good certificate and means ill. Flower's node key and the
signature on each answer say who speaks, and the plan what is taken.
"""

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from common.errors import TransportError
from deploy.nginx_run import CONFIG, check
from server.part_files import make_for_nginx

ACCESS_LOG: Final = "access.jsonl"
SHUTDOWN_S: Final = 45
"""A part of 4 MiB takes 34 s at 1 Mbit/s, so a reload harms no slow hospital's upload;
with a look at the revocation list every few seconds, a revocation still takes effect
within a minute."""
_TEMPLATES: Final = Path(__file__).parent / "nginx"
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")
_PATH: Final = re.compile(r"/[^\x00-\x1f\"\\$]*")
"""What nginx takes in quotes as it stands: no quote, backslash or variable."""


@dataclass(frozen=True, kw_only=True)
class HubGateway:
    """What nginx has to know."""

    folder: Path
    """nginx's own: configuration, process id, access log. Absolute."""
    port: int
    """TCP port to listen on."""
    certificate: Path
    """PEM, shown to whoever connects."""
    key: Path
    """Its key, PEM."""
    ca: Path
    """Certificate of the federation's authority, PEM; no other is trusted."""
    crl: Path
    """Revocation list of the authority, PEM. Once its next update is overdue nobody is
    let in."""
    superlink_port: int
    """Where the SuperLink listens on 127.0.0.1; its certificate is the authority's."""
    superlink_name: str = "localhost"
    """DNS name in that certificate."""
    listen: tuple[str, ...] = ("0.0.0.0",)
    """Addresses to listen on; IPv6 ones in brackets."""
    connections_per_site: int = 32
    """How many requests one site may have under way."""
    shutdown_s: int = SHUTDOWN_S
    """How long a request may go on after a reload or a graceful stop."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path) and not _PATH.fullmatch(str(value)):
                raise TransportError(
                    f"gateway got the path {str(value)!r} for its {field.name}, "
                    "expected an absolute one without quotes, backslashes, dollar "
                    "signs and control characters; move the folder"
                )
        for host in (*self.listen, self.superlink_name):
            if not _HOST.fullmatch(host):
                raise TransportError(
                    f"gateway got the address {host[:64]!r}, expected a name or an IP "
                    "address; mend `listen` in hub.toml"
                )


def render(settings: HubGateway, user: str | None = None) -> str:
    """The configuration as nginx reads it.

    Args:
        settings: Of the hub's public port.
        user: Whom nginx's workers are to be; only root may choose.
    """
    import jinja2  # not needed to start nginx

    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return templates.get_template("hub.conf.j2").render(**values, user=user)


def install(settings: HubGateway) -> bool:
    """Write the configuration into its folder, once nginx itself has found it good.

    Returns:
        Whether it differs from the one before, so that a running nginx needs `reload`.

    Raises:
        TransportError: nginx is absent or refuses it; the one before stays.
    """
    folder = settings.folder
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_for_nginx(folder / "temp")
        make_for_nginx(folder / "parts")
        text = render(settings, _owner(folder) if os.geteuid() == 0 else None)
        new = folder / f"{CONFIG}.new"
        new.write_text(text)
        check(folder, new.name)
        old = folder / CONFIG
        changed = not old.exists() or old.read_text() != text
        new.replace(old)
    except OSError as error:
        raise TransportError(
            f"gateway can't write its configuration ({error.strerror}), expected a "
            "folder that this user may write to and a disk with room"
        ) from error
    return changed


def watched(settings: HubGateway) -> tuple[Path, ...]:
    """The files whose change calls for a reload."""
    paths = (getattr(settings, field.name) for field in fields(settings))
    files = (p for p in paths if isinstance(p, Path) and p != settings.folder)
    return (settings.folder / CONFIG, *files)


def _owner(folder: Path) -> str:
    try:
        return f"{folder.owner()} {folder.group()}"
    except KeyError:  # a mounted folder of a user whom this machine does not know
        return "root"
