"""An order or an answer as one file, for sites where no live line is allowed.

    hub:  write_order  -> file, signed by the hub                          -> site
    site: read_order, work, write_answer -> file, sealed to the hub, signed -> hub

Files go by memory stick or mail. Each says, signed, which message it is, for or from
which site, and what its content must hash to, so a file that was cut, altered, mixed up
or sent twice is refused by name before its content is looked at. An answer can be
opened by the hub alone: HPKE (RFC 9180, base mode) to a key that came in the order.

Not covered here: secrecy of orders. Who finds the stick can read the model in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from flwr.app import ConfigRecord, RecordDict

from common.canonical import items
from common.parcel_content import pack, unpack
from common.parcel_file import (
    LARGEST_BYTES,
    Header,
    Kind,
    open_parcel,
    refused,
    write_parcel,
)

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_FAILURE = "failure"


@dataclass(frozen=True)
class Failure:
    """What a site says that could not do as it was told."""

    code: int
    """Why, as `common.error_numbers` has it; the sentence stays at the site."""


@dataclass(frozen=True, eq=False)
class OrderParcel:
    """A question to one site."""

    message_id: str
    """32 hexadecimal digits, new for every order."""
    site: str
    """Who is asked."""
    kind: Kind
    """Flower's type of message."""
    reply_key: str
    """X25519 key to seal the answer to, 64 hexadecimal digits."""
    run: str
    """Id of the run."""
    number: int
    """Place among the orders of this run to this site, from 1."""
    due: int
    """Until when the hub waits, seconds since 1970, UTC."""
    content: RecordDict
    """The order as it travels on the wire too."""


@dataclass(frozen=True, eq=False)
class AnswerParcel:
    """A site's answer."""

    message_id: str
    """The order's."""
    site: str
    """Who answers."""
    kind: Kind
    """The order's."""
    content: RecordDict | Failure
    """The answer with its own seal, as it travels on the wire too; or why not."""


def write_order(path: Path, order: OrderParcel, key: Ed25519PrivateKey) -> None:
    """Write an order for one site, signed by the hub's key."""
    content, unpacked_bytes = pack(order.content)
    header = Header(
        format="fedct-order",
        message_id=order.message_id,
        site=order.site,
        kind=order.kind,
        reply_key=order.reply_key,
        run=order.run,
        number=order.number,
        due=order.due,
        unpacked_bytes=unpacked_bytes,
    )
    write_parcel(path, header, content, key)


def read_order(
    path: Path,
    site: str,
    hub_key: Ed25519PublicKey,
    answered: Mapping[str, int],
    now: datetime,
    *,
    largest_bytes: int = LARGEST_BYTES,
) -> OrderParcel:
    """The order in a file.

    Args:
        path: The file.
        site: Who reads it.
        hub_key: The hub's verifying key.
        answered: Run to the number of its newest order that this site answered.
        now: This machine's clock, UTC.
        largest_bytes: Of the file, and of what is packed in it.

    Raises:
        ContributionError: `code` says why in a word: "site" (for another one),
            "replay" (answered already), "older" (than one that was answered), "late"
            (the hub waits no more), or one of `parcel_file.open_parcel`.
    """
    header, content = open_parcel(path, "fedct-order", lambda _: hub_key, largest_bytes)
    if header.site != site:
        raise refused(
            path,
            "site",
            f"is for site {header.site!r}",
            f"one for {site!r}",
            f"bring it to {header.site!r}",
        )
    if None in (header.reply_key, header.run, header.number, header.due):
        raise refused(path, "format", "lacks what an order has", "an order")
    assert header.reply_key is not None  # for mypy; just looked at
    assert header.run is not None
    assert header.number is not None
    assert header.due is not None
    _check_is_next(path, header.number, answered.get(header.run, 0))
    if now.timestamp() > header.due:
        raise refused(
            path,
            "late",
            f"was to be answered by {_instant(header.due)}",
            f"one that the hub still waits for (it is {_instant(now.timestamp())})",
            "ask the coordinator for the newest order; if the date is wrong here, set "
            "this machine's clock",
        )
    return OrderParcel(
        header.message_id,
        header.site,
        header.kind,
        header.reply_key,
        header.run,
        header.number,
        header.due,
        unpack(path, content, header, largest_bytes),
    )


def _check_is_next(path: Path, number: int, answered: int) -> None:
    if number == answered:
        raise refused(
            path,
            "replay",
            "is an order that was answered already",
            "a new one",
            "bring the hub the answer that was written; the site keeps a copy of it",
        )
    if number < answered:
        raise refused(
            path,
            "older",
            f"is order {number} of its run",
            f"one after order {answered}, which was answered",
            "ask the coordinator for the newest order",
        )


def _instant(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def write_answer(
    path: Path, answer: AnswerParcel, reply_key: str, key: Ed25519PrivateKey
) -> None:
    """Write an answer that only the hub can read, signed by the site's key.

    Args:
        path: The file.
        answer: What to say.
        reply_key: The order's.
        key: The site's signing key.
    """
    content = answer.content
    if isinstance(content, Failure):
        content = RecordDict({_FAILURE: ConfigRecord({"code": content.code})})
    packed, unpacked_bytes = pack(content)
    header = Header(
        format="fedct-answer",
        message_id=answer.message_id,
        site=answer.site,
        kind=answer.kind,
        unpacked_bytes=unpacked_bytes,
    )
    hub = X25519PublicKey.from_public_bytes(bytes.fromhex(reply_key))
    write_parcel(path, header, _SUITE.encrypt(packed, hub, _info(header)), key)


def read_answer(
    path: Path,
    waiting: Mapping[str, str],
    site_keys: Mapping[str, Ed25519PublicKey],
    reply_key: X25519PrivateKey,
    *,
    largest_bytes: int = LARGEST_BYTES,
) -> AnswerParcel:
    """The answer in a file.

    Args:
        path: The file.
        waiting: Message id to site, of orders that no answer came to yet.
        site_keys: Verifying keys of the enrolled sites.
        reply_key: The key whose public half stood in the orders.
        largest_bytes: Of the file, and of what is packed in it.

    Raises:
        ContributionError: `code` says why in a word: "replay" (not waited for, any
            more or ever), "site" (another one was asked), "sealed" (to another key),
            or one of `parcel_file.open_parcel`.
    """
    header, content = open_parcel(path, "fedct-answer", site_keys.get, largest_bytes)
    asked = waiting.get(header.message_id)
    if asked is None:
        raise refused(
            path,
            "replay",
            "answers an order that is not waited for",
            "the first answer to an order of this run",
            "leave it be",
        )
    if asked != header.site:
        raise refused(
            path,
            "site",
            f"is from site {header.site!r}",
            f"site {asked!r}, which was asked",
            "have the site that was asked work on the order",
        )
    try:
        packed = _SUITE.decrypt(content, reply_key, _info(header))
    except InvalidTag as error:
        raise refused(
            path,
            "sealed",
            "is sealed to another key",
            "the key of the order",
            "bring it to the hub that gave the order",
        ) from error
    record = unpack(path, packed, header, largest_bytes)
    said = record.get(_FAILURE)
    answer: RecordDict | Failure = record
    if isinstance(said, ConfigRecord):
        answer = _failure(path, said)
    return AnswerParcel(header.message_id, header.site, header.kind, answer)


def _failure(path: Path, said: ConfigRecord) -> Failure:
    code = said.get("code")
    if type(code) is not int or len(said) != 1:
        raise refused(path, "format", "has a failure that is no number", "a number")
    return Failure(code)


def _info(header: Header) -> bytes:
    """What an answer's encryption is bound to (RFC 9180's info)."""
    return items(
        {
            "purpose": "fedct parcel",
            "message_id": header.message_id,
            "site": header.site,
        }
    )
