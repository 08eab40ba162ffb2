"""An authority for tests, that also makes what no real one would."""

import datetime as dt
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path
    serial: int

    @property
    def files(self) -> tuple[str, str]:
        return str(self.certificate), str(self.key)


@dataclass
class Authority:
    """Writes `ca.crt`, `ca.crl` and pairs into its folder."""

    folder: Path
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    revoked: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = _name("Test authority")
        builder = _builder(self.name, self.name, self.key, -DAY, 10 * DAY)
        builder = builder.add_extension(x509.BasicConstraints(True, 0), True)
        usage = dict.fromkeys(_USAGES, False)
        usage |= {"key_cert_sign": True, "crl_sign": True}
        builder = builder.add_extension(x509.KeyUsage(**usage), True)
        self.certificate = self.folder / "ca.crt"
        self.certificate.write_bytes(_pem(builder.sign(self.key, hashes.SHA256())))
        self.crl = self.folder / "ca.crl"
        self.write_crl()

    def issue(self, name, *, hosts=(), begins=-DAY, ends=DAY):
        """A client's certificate, or a server's if there are hosts."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self.name, key, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(False, None), True)
        use = ExtendedKeyUsageOID.CLIENT_AUTH
        if hosts:
            use = ExtendedKeyUsageOID.SERVER_AUTH
            names = x509.SubjectAlternativeName([_host(host) for host in hosts])
            builder = builder.add_extension(names, False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([use]), False)
        certificate = builder.sign(self.key, hashes.SHA256())
        stem = self.folder / f"{name}-{certificate.serial_number:x}"
        files = stem.with_suffix(".crt"), stem.with_suffix(".key")
        files[0].write_bytes(_pem(certificate))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return Pair(*files, certificate.serial_number)

    def revoke(self, pair):
        self.revoked.append(pair.serial)
        self.write_crl()

    def write_crl(self):
        now = dt.datetime.now(dt.UTC)
        builder = x509.CertificateRevocationListBuilder(self.name, now - DAY, now + DAY)
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder(serial, now).build()
            builder = builder.add_revoked_certificate(entry)
        content = _pem(builder.sign(self.key, hashes.SHA256()))
        new = self.crl.with_suffix(".new")
        new.write_bytes(content)
        new.replace(self.crl)


_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text):
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _pem(thing):
    return thing.public_bytes(serialization.Encoding.PEM)


def _builder(subject, issuer, key, begins, ends):
    now = dt.datetime.now(dt.UTC)
    return x509.CertificateBuilder(
        issuer, subject, key.public_key(), x509.random_serial_number(),
        now + begins, now + ends,
    )  # fmt: skip
