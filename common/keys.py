"""Private and public keys in files.

Curves are NIST's, which nginx, OpenSSL and Flower all have; Ed25519 signs updates.

Not covered here: who may read a key. Whoever can read a key file is that site or hub;
folders of mode 0700 and files of mode 0600 keep others out.
"""

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.utils import CryptographyDeprecationWarning

from common.errors import JoinError

MALFORMED: Final = (
    ValueError,
    TypeError,
    NotImplementedError,
    CryptographyDeprecationWarning,
    UnsupportedAlgorithm,
    x509.AttributeNotFound,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises over bytes that somebody has tampered with."""

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


def private_pem(key: PrivateKey, *, openssh: bool = False) -> bytes:
    """A private key as PEM, not encrypted, as services start without a person.

    Args:
        key: Any.
        openssh: Whether it is written as OpenSSH does, for Flower, or as PKCS 8.
    """
    forms = serialization.PrivateFormat
    return key.private_bytes(
        serialization.Encoding.PEM,
        forms.OpenSSH if openssh else forms.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: PublicKey) -> str:
    """A public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def openssh_line(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as one line of OpenSSH without a comment, as Flower registers it."""
    return key.public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    ).decode()


def read_ec_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """An elliptic-curve key from PEM, as PKCS 8 or as OpenSSH writes it.

    Raises:
        JoinError: There is none.
    """
    key = _read_private(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise damaged(path)
    return key


def read_signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """An Ed25519 key from PEM.

    Raises:
        JoinError: There is none.
    """
    key = _read_private(path)
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise damaged(path)
    return key


def _read_private(path: Path) -> object:
    content = read_pem(path)
    if path.stat().st_mode & 0o077:
        raise JoinError(
            f"file {path.name!r} is a private key that others may open, expected mode "
            "0600; run chmod 600 on it, and if others use this machine, make new keys"
        )
    try:
        if b"BEGIN OPENSSH" in content:
            return serialization.load_ssh_private_key(content, password=None)
        return serialization.load_pem_private_key(content, password=None)
    except MALFORMED as error:
        raise damaged(path) from error


def read_pem(path: Path) -> bytes:
    """The content of a key or certificate file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise JoinError(
            f"file {path.name!r} can't be read ({error.strerror}), expected it where "
            "the folder was made; give the right folder, as the user who owns it"
        ) from error


def damaged(path: Path) -> JoinError:
    """What to say of a file that is not what it should be."""
    return JoinError(
        f"file {path.name!r} is damaged or holds another kind of key, expected PEM as "
        "FedCT wrote it; put it back from a backup"
    )


def same_key(a: object, b: object) -> bool:
    """Whether two public keys are one."""
    kinds = (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)
    if not isinstance(a, kinds) or not isinstance(b, kinds):
        return False
    return public_pem(a) == public_pem(b)
