"""The hub's signature under how far it has seen a site's audit log.

Each answer brings the hash of its own line in the site's log (`common.signing.Mark`).
The hub signs the last one it has seen for whoever asks. Since every line holds the hash
of the one before, a receipt stands for the whole log up to its line: with it, anybody
can tell later whether lines were changed, or cut off the end, whoever did it.
"""

from typing import Final, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from common.canonical import items
from common.errors import StoreError
from common.joining import SiteName
from common.signing import Mark

_PURPOSE: Final = "fedct receipt"
"""Keeps these signatures apart from all others that the same key makes."""


class Receipt(BaseModel):
    """The content of a receipt's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["fedct-receipt"] = "fedct-receipt"
    """What this file is."""
    version: Literal[1] = 1
    """Of the format."""
    site: SiteName
    """Whose log."""
    number: int = Field(ge=1)
    """Of the last line that the hub has seen."""
    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of that line."""
    seen: AwareDatetime
    """When it came, by the hub's clock."""
    signature: str = ""
    """Of the key by which the hub signs its orders in files, hexadecimal."""

    @property
    def mark(self) -> Mark:
        """The line."""
        return Mark(self.number, self.hash)


def signed(receipt: Receipt, key: Ed25519PrivateKey) -> Receipt:
    """The receipt with the hub's signature."""
    signature = key.sign(_statement(receipt)).hex()
    return receipt.model_copy(update={"signature": signature})


def read_receipt(content: bytes, site: str, key: Ed25519PublicKey) -> Receipt:
    """The receipt in a file.

    Args:
        content: Of the file.
        site: Whose log it has to be about.
        key: The hub's, as the site's join kit has it.

    Raises:
        StoreError: It is none, is about another site, or was not signed by this hub.
    """
    try:
        receipt = Receipt.model_validate_json(content)
        key.verify(bytes.fromhex(receipt.signature), _statement(receipt))
    except (ValidationError, ValueError, InvalidSignature) as error:
        raise StoreError(
            "receipt is altered, or another hub's, expected one that this hub signed; "
            "ask its coordinator for a new one (`fedct server audit --receipt`)"
        ) from error
    if receipt.site != site:
        raise StoreError(
            f"receipt is about the log of {receipt.site!r}, expected {site!r}; ask the "
            f"coordinator for one (`fedct server audit HUB {site} --receipt FILE`)"
        )
    return receipt


def _statement(receipt: Receipt) -> bytes:
    return items(
        {
            "purpose": _PURPOSE,
            "site": receipt.site,
            "number": receipt.number,
            "hash": receipt.hash,
            "seen": receipt.seen.isoformat(),
        }
    )
