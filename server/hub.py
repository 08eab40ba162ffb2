"""The hub's folder: where things lie in it, and `hub.toml`.

hub.toml        name and ports
ca/             the authority: key, certificate, register, revocation list; the key
                that signs orders in files
tls/            certificates of the public port and of the SuperLink on loopback
kits/           join kits that were written
secret          by which our processes know each other at the SuperLink
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, field_validator

from common.certificates import Issuer, check_time, host_of, read_certificate
from common.errors import JoinError
from common.keys import read_ec_key, read_signing_key, same_key
from common.new_folder import check_finished
from common.settings_file import read_settings
from common.signing import make_signing_key

HUB_FILE: Final = "hub.toml"
CA_KEY: Final = Path("ca/ca.key")
CA_CERTIFICATE: Final = Path("ca/ca.crt")
CA_CRL: Final = Path("ca/ca.crl")
REGISTER: Final = Path("ca/issued.json")
HUB_KEY: Final = Path("tls/hub.key")
HUB_CERTIFICATE: Final = Path("tls/hub.crt")
LOOPBACK_KEY: Final = Path("tls/loopback.key")
LOOPBACK_CERTIFICATE: Final = Path("tls/loopback.crt")
ORDER_KEY: Final = Path("ca/orders.key")
"""Ed25519; signs orders that go out as files."""
KITS: Final = Path("kits")
SECRET: Final = Path("secret")
PRIVATE: Final = 0o600
INIT: Final = "fedct server init"
NUMERIC_HUB: Final = "fedct-hub"
"""Stands in the certificate of a hub that has an IP address for a name: nginx compares
what it verifies with DNS names only."""

_TEMPLATE = """\
# The hub: how hospitals reach it, and the ports of this machine.
# DNS name or IP address by which hospitals reach it; after a change: fedct server renew
{name}
# the one port that hospitals need
{port}
# address of this machine that the port is opened on
{listen}
# port of Flower's SuperLink, on loopback
{superlink_port}
"""

Port = Annotated[int, Field(ge=1, le=65535)]


class HubFile(BaseModel):
    """The content of `hub.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """DNS name or IP address by which hospitals reach the hub."""
    port: Port = 8443
    """The one port that hospitals need."""
    listen: str = "0.0.0.0"
    """Address of this machine that the port is opened on."""
    superlink_port: Port = 18443
    """Port of the SuperLink, on loopback."""

    @field_validator("name")
    @classmethod
    def _is_a_host(cls, name: str) -> str:
        try:
            host_of(name)
        except JoinError as error:
            raise ValueError(str(error)) from error
        return name

    @property
    def address(self) -> str:
        """As hospitals write it, host:port."""
        host = f"[{self.name}]" if ":" in self.name else self.name
        return f"{host}:{self.port}"

    @property
    def tls_name(self) -> str:
        """The name that sites check the hub's certificate for."""
        numeric = isinstance(host_of(self.name), x509.IPAddress)
        return NUMERIC_HUB if numeric else self.name


def hub_toml(settings: HubFile) -> str:
    """The settings as a commented file."""
    lines = {
        key: tomli_w.dumps({key: value}).strip()
        for key, value in settings.model_dump().items()
    }
    return _TEMPLATE.format(**lines)


def read_hub_file(folder: Path) -> HubFile:
    """The settings of a hub's folder.

    Raises:
        JoinError: It is none, or is unfinished.
    """
    check_finished(folder, INIT)
    return read_settings(folder / HUB_FILE, HubFile, INIT)


@dataclass(frozen=True)
class Hub:
    """A hub's folder, opened to sign."""

    folder: Path
    """Of mode 0700."""
    settings: HubFile
    """Its `hub.toml`."""
    authority: x509.Certificate
    """Its authority's certificate."""
    key: ec.EllipticCurvePrivateKey
    """Its authority's key."""

    @property
    def issuer(self) -> Issuer:
        """The authority, to sign with."""
        return Issuer(self.authority.subject, self.key)


def open_hub(folder: Path, now: datetime) -> Hub:
    """Open a hub's folder to sign with its authority.

    Raises:
        JoinError: It is none, is damaged, or its authority is not valid now.
    """
    settings = read_hub_file(folder)
    authority = read_certificate(folder / CA_CERTIFICATE)
    key = read_ec_key(folder / CA_KEY)
    if not same_key(authority.public_key(), key.public_key()):
        raise JoinError(
            "hub has a ca.key that is not the key of its ca.crt, expected a pair; put "
            "both back from one backup"
        )
    check_time(authority, now, "hub's authority", "make a new hub and join it anew")
    return Hub(folder, settings, authority, key)


def order_key(folder: Path) -> Ed25519PrivateKey:
    """The key that signs orders in files; made at first need in an older hub.

    Raises:
        JoinError: It is damaged, or others may read it.
    """
    path = folder / ORDER_KEY
    return read_signing_key(path) if path.exists() else make_signing_key(path)
