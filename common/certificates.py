"""Certificates, as hub and sites both make, read and compare them.

One place for both sides, so that what one writes the other takes. A certificate says
what it may be used for (client or server, never both), and hub and site certificates
can't sign others.

Not covered here: revocation (`server.register`, and nginx, which checks the list).
"""

import ipaddress
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import JoinError
from common.keys import MALFORMED, damaged, read_pem
from common.sources import POOLED, PUBLIC

SITE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
"""A site's name: a folder, a certificate's common name and a host label at once."""
RESERVED: Final = {POOLED, PUBLIC}
HOST_NAME: Final = re.compile(
    r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*"
)
"""A DNS name (RFC 1123), lower case."""
LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
"""What a service on loopback is called."""
BACKDATED: Final = timedelta(days=1)
"""Certificates begin this much earlier, for clocks that are slow, be it by a time zone:
a site whose clock is an hour behind takes part on the day the hub was made, too."""
LONGEST_DAYS: Final = 397
"""Life of hub and loopback certificates, and the most a site's may have: what browsers
allow of a public certificate (CA/Browser Forum, 2020)."""


def check_site_name(name: str) -> str:
    """The name, if it may be a site's.

    Raises:
        JoinError: It may not.
    """
    if name in RESERVED:
        raise JoinError(
            f"site got the name {name!r}, which has another meaning in plans and "
            "reports; choose another name"
        )
    if not SITE_NAME.fullmatch(name):
        raise JoinError(
            f"site got the name {name[:64]!r}, expected 1 to 32 lower case letters, "
            "digits and hyphens, with no hyphen at either end; choose another name"
        )
    return name


def host_of(name: str) -> x509.GeneralName:
    """A host's name or IP address, as certificates hold it.

    Raises:
        JoinError: It is neither.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not HOST_NAME.fullmatch(name) or len(name) > 253:
        raise JoinError(
            f"hub got the name {name[:64]!r}, expected a DNS name in lower case or an "
            "IP address by which hospitals reach it"
        )
    return x509.DNSName(name)


# --- fingerprints -----------------------------------------------------------------


def fingerprint_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, 64 hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def grouped(fingerprint: str) -> str:
    """A fingerprint to read out: upper case, in groups of four."""
    digits = fingerprint.upper()
    return " ".join(digits[i : i + 4] for i in range(0, len(digits), 4))


def same_fingerprint(told: str, fingerprint: str) -> bool:
    """Whether what a person typed is the fingerprint, all 64 digits of it."""
    return re.sub(r"[\s:-]", "", told).lower() == fingerprint.lower()


# --- certificates -----------------------------------------------------------------


@dataclass(frozen=True)
class Issuer:
    """Who signs a certificate."""

    name: x509.Name
    """Its subject."""
    key: ec.EllipticCurvePrivateKey
    """Its key."""


def common_name(name: str) -> x509.Name:
    """A subject that is a common name alone."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def name_in(certificate: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The common name of a subject that is nothing else; else empty, no site's name."""
    attributes = list(certificate.subject)
    if len(attributes) != 1 or attributes[0].oid != NameOID.COMMON_NAME:
        return ""
    return str(attributes[0].value)


def issue(
    name: str,
    key: ec.EllipticCurvePublicKey,
    issuer: Issuer,
    use: Literal["client", "server"],
    now: datetime,
    days: int,
    hosts: Iterable[str] = (),
) -> x509.Certificate:
    """A certificate that signs no others.

    Args:
        name: Its common name.
        key: The key it certifies.
        issuer: Who signs it.
        use: What TLS may take it for.
        now: When it is issued, UTC; it begins `BACKDATED` before.
        days: Until when it is good, counted from `now`.
        hosts: Names and addresses of a server.
    """
    usages = {
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
    }
    builder = _begin(name, key, issuer, now, days)
    builder = builder.add_extension(x509.BasicConstraints(False, None), critical=True)
    builder = builder.add_extension(key_usage(), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usages[use]]), False)
    names = [host_of(host) for host in hosts]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
    return builder.sign(issuer.key, hashes.SHA384())


def issue_authority(
    name: str, key: ec.EllipticCurvePrivateKey, now: datetime, days: int
) -> x509.Certificate:
    """A certificate authority, signed by itself, whose certificates sign no others."""
    builder = _begin(name, key.public_key(), Issuer(common_name(name), key), now, days)
    builder = builder.add_extension(x509.BasicConstraints(True, 0), critical=True)
    builder = builder.add_extension(key_usage(authority=True), critical=True)
    return builder.sign(key, hashes.SHA384())


def key_usage(*, authority: bool = False) -> x509.KeyUsage:
    """Signing certificates and revocation lists, or handshakes."""
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _begin(
    name: str, key: ec.EllipticCurvePublicKey, issuer: Issuer, now: datetime, days: int
) -> x509.CertificateBuilder:
    """What every certificate has."""
    return (
        x509.CertificateBuilder()
        .subject_name(common_name(name))
        .issuer_name(issuer.name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
            critical=False,
        )
    )


def certificate_pem(certificate: x509.Certificate) -> str:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def parse_certificate(text: str) -> x509.Certificate:
    """A certificate from PEM that a stranger may have written.

    Raises:
        MALFORMED: It is none, or one that `cryptography` takes with a warning only.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        return x509.load_pem_x509_certificate(text.encode())


def read_certificate(path: Path) -> x509.Certificate:
    """A certificate from a PEM file.

    Raises:
        JoinError: There is none.
    """
    try:
        return x509.load_pem_x509_certificate(read_pem(path))
    except MALFORMED as error:
        raise damaged(path) from error


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate, and names it as its own."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*MALFORMED, InvalidSignature):
        return False
    return True


def check_time(certificate: x509.Certificate, now: datetime, who: str, do: str) -> None:
    """Check that a certificate is good at this instant.

    Args:
        certificate: Any.
        now: This machine's clock, UTC.
        who: Whose certificate, as errors call it.
        do: What to do about one that has expired.

    Raises:
        JoinError: It is not good yet, or no more; both times are said.
    """
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        raise JoinError(
            f"{who} has a certificate that is good from {instant(begin)}, but this "
            f"machine's clock says {instant(now)}; set the clock (NTP); if this one "
            "is right, the signer's was wrong: tell them"
        )
    if now > end:
        raise JoinError(
            f"{who} has a certificate that expired at {instant(end)}, and this "
            f"machine's clock says {instant(now)}; if the clock is right, {do}"
        )


def instant(time: datetime) -> str:
    """A time for people, to the second, in UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
