"""Private and public keys in files.

Curves are NIST's, which nginx, OpenSSL and Flower all have; Ed25519 signs updates.

Not covered here: who may read a key. Whoever can read a key file is that site or hub;
folders of mode 0700 and files of mode 0600 keep others out.
"""

from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common.errors import JoinError

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
AnyKey = TypeVar("AnyKey", ec.EllipticCurvePrivateKey, ed25519.Ed25519PrivateKey)


def private_pem(key: PrivateKey) -> bytes:
    """A private key as PEM (PKCS 8), not encrypted: services start without a person."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def public_pem(key: PublicKey) -> str:
    """A public key as PEM."""
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def read_key(path: Path, kind: type[AnyKey]) -> AnyKey:
    """A private key of this kind from PEM.

    Raises:
        JoinError: There is none.
    """
    try:
        key = serialization.load_pem_private_key(read_pem(path), password=None)
    except (ValueError, TypeError) as error:
        raise damaged(path) from error
    if not isinstance(key, kind):
        raise damaged(path)
    return key


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
