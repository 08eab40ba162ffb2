"""The hub's own certificate authority, and the certificates the hub shows.

The authority is made for one federation and trusted by nobody else: who is in it is who
may connect. Its key lies in the hub's folder, so that enrolling needs one command; the
hub's certificates are short-lived and renewed with the keys they have, so that a
certificate and its key never differ, at whatever instant the power fails.

Not covered here: a stolen `ca.key`. Whoever has it can let in anybody; then the hub has
to be made anew and every site has to join again.
"""

import secrets
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.certificates import (
    LONGEST_DAYS,
    LOOPBACK,
    certificate_pem,
    issue,
    issue_authority,
)
from common.durable import write_whole
from common.keys import private_pem, read_ec_key
from common.new_folder import new_folder
from server.hub import (
    CA_CERTIFICATE,
    CA_KEY,
    HUB_CERTIFICATE,
    HUB_FILE,
    HUB_KEY,
    LOOPBACK_CERTIFICATE,
    LOOPBACK_KEY,
    PRIVATE,
    SECRET,
    Hub,
    HubFile,
    hub_toml,
    order_key,
)
from server.revocation import begin_register

AUTHORITY_DAYS = 3650
"""Life of the authority: longer than a study, as its end is the federation's end."""
SECRET_BYTES = 32
"""Flower takes the file's bytes as they are for an HMAC-SHA256 key."""


def create_hub(folder: Path, settings: HubFile, now: datetime) -> Hub:
    """Make a hub's folder with all its keys, and nobody let in.

    Raises:
        JoinError: The folder is in use.
    """
    with new_folder(folder, "hub"):
        for part in ("ca", "tls", "kits", "superlink", "nginx", "runs"):
            (folder / part).mkdir(mode=0o700)
        key = ec.generate_private_key(ec.SECP384R1())
        name = f"FedCT authority of {settings.name}"[:64]
        authority = issue_authority(name, key, now, AUTHORITY_DAYS)
        _write(folder / CA_KEY, private_pem(key))
        _write(folder / CA_CERTIFICATE, certificate_pem(authority).encode())
        for path in (HUB_KEY, LOOPBACK_KEY):
            _write(folder / path, private_pem(ec.generate_private_key(ec.SECP256R1())))
        hub = Hub(folder, settings, authority, key)
        certify_hub(hub, now)
        begin_register(hub, now)
        order_key(folder)
        _write(folder / SECRET, secrets.token_bytes(SECRET_BYTES))
        _write(folder / HUB_FILE, hub_toml(settings).encode())
    return hub


def certify_hub(hub: Hub, now: datetime) -> datetime:
    """Write certificates for the public port and for loopback, with the keys there are.

    Returns:
        When they expire.
    """
    end = min(LONGEST_DAYS, (hub.authority.not_valid_after_utc - now).days)
    hosts = dict.fromkeys((hub.settings.name, hub.settings.tls_name))
    for key_path, path, names in (
        (HUB_KEY, HUB_CERTIFICATE, tuple(hosts)),
        (LOOPBACK_KEY, LOOPBACK_CERTIFICATE, LOOPBACK),
    ):
        key = read_ec_key(hub.folder / key_path)
        name = names[0][:64]  # the longest common name (RFC 5280); SAN has it all
        made = issue(name, key.public_key(), hub.issuer, "server", now, end, names)
        _write(hub.folder / path, certificate_pem(made).encode())
    return made.not_valid_after_utc


def _write(path: Path, content: bytes) -> None:
    write_whole(path, content, mode=PRIVATE)
