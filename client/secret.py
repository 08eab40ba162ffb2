"""The site's secret, and the pseudonyms that are made with it.

Ids inside the store are HMAC-SHA256 of the DICOM UID or patient id. A plain hash would
not do: UIDs and hospital numbers are guessable, so anybody could hash all of them and
look. The secret is made once per store, stays there, and is never sent.

Not covered here: who can read the store can read the secret; file modes protect both.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path

from client.private_files import TEMPORARY, create_private, sync_folder
from common.errors import StoreError

SECRET_BYTES = 32
"""Length of an HMAC-SHA256 key (RFC 2104: at least the hash's 32 bytes)."""


def load_secret(folder: Path) -> bytes:
    """The store's secret; made at the first call.

    Args:
        folder: The store's folder, private already.

    Raises:
        StoreError: The file has the wrong length, or others may read it.
    """
    path = folder / "secret"
    if not path.exists():
        _make(path)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise StoreError("store got a secret that others may read, expected mode 0600")
    secret = path.read_bytes()
    if len(secret) != SECRET_BYTES:
        raise StoreError(
            f"store got a secret of {len(secret)} bytes, expected {SECRET_BYTES}; "
            "put it back from a backup, or purge the store and take in again"
        )
    return secret


def pseudonym(secret: bytes, identity: str) -> str:
    """HMAC-SHA256 (hex) of a UID or patient id."""
    return hmac.digest(
        secret, identity.encode(errors="surrogateescape"), "sha256"
    ).hex()


def _make(path: Path) -> None:
    """Write a fresh secret; if two processes do so at once, the first one stays."""
    temporary = path.with_name(
        f"secret.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}"
    )
    with os.fdopen(create_private(temporary), "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    sync_folder(path.parent)
