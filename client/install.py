"""Taking in the hub's join kit, and what the site knows of the hub afterwards.

A kit is believed for one reason: a person compared the fingerprint of its authority
with what the coordinator told by phone. From then on the authority is pinned, and the
next kits are believed for its signature. A kit that is refused leaves no trace.

Not covered here: whether the hub has revoked the site since; nginx at the hub says so
by refusing the connection.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from client.private_files import sweep, write_private
from client.site_file import (
    AUTHORITY,
    KIT,
    SITE_CERTIFICATE,
    TLS_KEY,
    SiteFile,
    read_site_file,
)
from common.certificates import (
    certificate_pem,
    check_time,
    fingerprint_of,
    grouped,
    instant,
    is_issued_by,
    name_in,
    parse_certificate,
    read_certificate,
    same_fingerprint,
)
from common.contract import check_contract
from common.errors import JoinError
from common.joining import (
    Kit,
    KitHub,
    altered,
    is_signed,
    parse,
    read_exchanged,
    signed_bytes,
    to_bytes,
)
from common.keys import MALFORMED, PublicKey, read_ec_key, same_key
from common.signing import public_from_text

_RENEW = "run `fedct client renew`, let the hub enroll it and install its kit"


@dataclass(frozen=True)
class CheckedKit:
    """A kit that is whole and signed by the authority inside, who may be anybody."""

    kit: Kit
    """As the hub wrote it."""
    authority: x509.Certificate
    """The authority inside."""
    certificate: x509.Certificate
    """The site's certificate inside; the authority signed it, for a client."""
    order_key: Ed25519PublicKey | None
    """What verifies the hub's orders in files; the authority signed it with the kit."""

    @property
    def fingerprint(self) -> str:
        """Of the authority, 64 hexadecimal digits, for the phone."""
        return fingerprint_of(self.authority)


@dataclass(frozen=True)
class Membership:
    """What a site that has joined knows."""

    settings: SiteFile
    """Its `client.toml`."""
    hub: KitHub
    """How the hub is known."""
    fingerprint: str
    """Of the hub's authority, 64 hexadecimal digits."""
    not_before: datetime
    """From when the site's certificate is good."""
    not_after: datetime
    """Until when the site's certificate is good."""
    order_key: Ed25519PublicKey | None = None
    """Verifies the hub's orders in files; unset in a kit of an older hub."""

    def is_renewal_due(self, now: datetime) -> bool:
        """Whether less than a third of the certificate's life is left."""
        return self.not_after - now < (self.not_after - self.not_before) / 3


def read_kit(content: bytes) -> CheckedKit:
    """Check a kit for itself: its form, its signature, its certificates.

    Raises:
        JoinError: It is no kit, of another version, or was altered.
    """
    kit = parse(content, Kit)
    try:
        authority = parse_certificate(kit.authority)
        certificate = parse_certificate(kit.certificate)
        sound = _is_authority(authority) and _is_for_a_site(certificate)
        key: object = authority.public_key()
    except MALFORMED as error:
        raise altered("join kit", "hub") from error
    if not (sound and isinstance(key, ec.EllipticCurvePublicKey)):
        raise altered("join kit", "hub")
    if not is_signed(key, signed_bytes(kit), kit.signatures.authority):
        raise altered("join kit", "hub")
    if not is_issued_by(certificate, authority):
        raise JoinError(
            "join kit holds a certificate of another authority than its own, expected "
            "one that its hub signed; ask the hub to enroll the site again"
        )
    orders = None if kit.order_key is None else public_from_text(kit.order_key)
    return CheckedKit(kit, authority, certificate, orders)


def is_pinned(folder: Path, checked: CheckedKit) -> bool:
    """Whether the site trusts the kit's authority already; then no phone is needed.

    Raises:
        JoinError: The site has joined another hub.
    """
    if not (folder / AUTHORITY).exists():
        return False
    pinned = fingerprint_of(read_certificate(folder / AUTHORITY))
    if pinned != checked.fingerprint:
        raise JoinError(
            f"site got a kit of a hub with fingerprint {grouped(checked.fingerprint)}, "
            f"expected the hub it has joined, {grouped(pinned)}; for another hub make "
            "another folder (fedct client request)"
        )
    return True


def install(
    folder: Path, checked: CheckedKit, told: str | None, now: datetime
) -> Membership:
    """Take a kit in, if it is this site's and the hub is the right one.

    Args:
        folder: The site's.
        checked: The kit.
        told: The fingerprint that the coordinator told; needed for the first kit.
        now: This machine's clock, UTC.

    Raises:
        VersionError: The hub does not speak this site's contract; nothing was changed.
        JoinError: The fingerprint differs, or it is another site's or hub's kit, or not
            valid now, or older than what is installed; nothing was changed.
    """
    settings = read_site_file(folder)
    check_contract("hub", checked.kit.contract, checked.kit.fedct)
    _check_is_ours(folder, checked, settings)
    if not is_pinned(folder, checked) or told is not None:
        _check_told(checked, told)
    for one, whose in ((checked.authority, "hub"), (checked.certificate, "site")):
        check_time(one, now, f"kit of the {whose}", "ask the hub for a new kit")
    _check_is_newer(folder, checked.certificate)
    sweep((folder / KIT).parent)
    write_private(folder / AUTHORITY, certificate_pem(checked.authority).encode())
    write_private(folder / KIT, to_bytes(checked.kit))
    text = certificate_pem(checked.certificate)
    write_private(folder / SITE_CERTIFICATE, text.encode())
    return read_membership(folder, now)


def read_membership(folder: Path, now: datetime) -> Membership:
    """What a site knows that has joined, checked: it can connect with what it has.

    Raises:
        JoinError: It has not joined, its certificate is not valid now or does not fit
            its key and hub.
    """
    settings = read_site_file(folder)
    if not (folder / SITE_CERTIFICATE).exists():
        raise JoinError(
            f"site {settings.name!r} has no certificate yet, expected one from its "
            f"hub; give {settings.name}.request.json to the hub's coordinator, then "
            "`fedct client install` the kit"
        )
    certificate = read_certificate(folder / SITE_CERTIFICATE)
    checked = read_kit(read_exchanged(folder / KIT))
    authority = read_certificate(folder / AUTHORITY)
    fits = same_key(certificate.public_key(), _tls_key(folder))
    whole = fits and is_issued_by(certificate, authority)
    if not whole or fingerprint_of(authority) != checked.fingerprint:
        raise JoinError(
            f"site {settings.name!r} has a certificate that does not fit its key or "
            "its hub, expected those of one kit; install the newest kit again"
        )
    if name_in(certificate) != settings.name:
        raise JoinError(
            f"client.toml names the site {settings.name!r}, expected "
            f"{name_in(certificate)!r} as in its certificate; put the name back"
        )
    check_time(certificate, now, f"site {settings.name!r}", _RENEW)
    return Membership(
        settings,
        checked.kit.hub,
        checked.fingerprint,
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        checked.order_key,
    )


def _check_is_ours(folder: Path, checked: CheckedKit, settings: SiteFile) -> None:
    """The name is this site's, and the key too."""
    if (checked.kit.name, name_in(checked.certificate)) != (settings.name,) * 2:
        raise JoinError(
            f"site {settings.name!r} got the kit of site {checked.kit.name!r}, "
            "expected its own; ask the hub which kit is whose"
        )
    if not same_key(checked.certificate.public_key(), _tls_key(folder)):
        raise JoinError(
            f"site {settings.name!r} got a kit for other keys than it has, expected "
            "one for keys/tls.key; install in the folder that the request came from, "
            "or give the hub this folder's request"
        )


def _check_told(checked: CheckedKit, told: str | None) -> None:
    """The fingerprint is the one that the coordinator told, all digits of it."""
    if told is None:
        raise JoinError(
            "site got its first kit and no fingerprint, expected the one that the "
            "hub's coordinator tells by phone; give it with --fingerprint"
        )
    if not same_fingerprint(told, checked.fingerprint):
        raise JoinError(
            f"site got a kit of a hub with fingerprint {grouped(checked.fingerprint)}, "
            "which is not the one that was told; if it was typed rightly, do not "
            "install this kit, and tell the coordinator"
        )


def _tls_key(folder: Path) -> PublicKey:
    return read_ec_key(folder / TLS_KEY).public_key()


def _is_authority(certificate: x509.Certificate) -> bool:
    kind = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    return kind.value.ca and is_issued_by(certificate, certificate)


def _is_for_a_site(certificate: x509.Certificate) -> bool:
    use = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    key = certificate.public_key()
    is_ours = isinstance(key, ec.EllipticCurvePublicKey) and name_in(certificate)
    return bool(is_ours) and list(use.value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def _check_is_newer(folder: Path, certificate: x509.Certificate) -> None:
    if not (folder / SITE_CERTIFICATE).exists():
        return
    had = read_certificate(folder / SITE_CERTIFICATE).not_valid_before_utc
    if certificate.not_valid_before_utc < had:
        raise JoinError(
            f"site got a kit from {instant(certificate.not_valid_before_utc)}, "
            f"expected one not older than what is installed, {instant(had)}; install "
            "the newest kit"
        )
