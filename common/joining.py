"""What hub and site hand each other to join: a request, and a join kit.

    site: keys -> request (name, three public keys, signed by all three)   -> hub
    hub:  request -> join kit (site and hub certificates, signed by the hub) -> site

Both are small JSON files that go by mail or memory stick; neither holds a secret. A
file is taken only if it is, byte for byte, what its content is written as. So whatever
was altered on the way is refused: either a signature breaks or the writing does.

Not covered here: whether a file comes from the one it should come from. Somebody on the
way can put another one in its place, made with keys of their own. That is what the
fingerprints are for, which hub and site tell each other by another way (`server.enrol`,
`client.install`).
"""

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from common.certificates import SITE_NAME
from common.contract import CONTRACT, FEDCT, check_contract
from common.errors import JoinError
from common.keys import PrivateKey, PublicKey

VERSION: Final = 1
"""Of both file formats."""
LARGEST_BYTES: Final = 65536
"""More than ten times what either file needs."""

SiteName = Annotated[str, Field(pattern=f"^{SITE_NAME.pattern}$")]
Text = Annotated[str, Field(max_length=8192)]


class _Exchanged(BaseModel):
    """A file between hub and site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = VERSION
    """Of the format."""
    name: SiteName
    """The site's name in the federation."""
    created: AwareDatetime
    """When it was written, by the writer's clock, UTC, in whole seconds."""
    contract: int = CONTRACT
    """What the writer speaks (`common.contract`); checked before it is acted on, not
    whenever it is read, as a kit stays good when both sides are updated."""
    fedct: Annotated[str, Field(max_length=64)] = FEDCT
    """The writer's FedCT version."""


class RequestSignatures(BaseModel):
    """One for each key, so that nobody asks with a key that is not theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tls: Text
    """By the key of `csr`: ECDSA with SHA-384, base64."""
    node: Text
    """By `node_key`: ECDSA with SHA-384, base64."""
    sign: Text
    """By `verify_key`: Ed25519, base64."""


class Request(_Exchanged):
    """NAME.request.json: a site asks to be let in, or for its next certificate."""

    format: Literal["fedct-request"] = "fedct-request"
    """What this file is; signed too, so that it is never taken for something else."""
    purpose: Literal["join", "renew"]
    """Whether the hub should know these keys already."""
    hub: Text
    """Address of the hub that is asked, host:port."""
    csr: Text
    """PKCS 10 request with the TLS client key, P-256, PEM."""
    node_key: Text
    """Flower's node key, P-384, one line as OpenSSH writes it."""
    verify_key: Text
    """Ed25519 key that the site's updates are verified with, PEM."""
    signatures: RequestSignatures
    """Over all of the above."""


class KitHub(BaseModel):
    """How the hub is reached and known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text
    """DNS name or IP address."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """The one port that sites need."""
    tls_name: Text
    """The name that its certificate is checked for."""


class KitSignatures(BaseModel):
    """The hub's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    authority: Text
    """By the key of `authority`: ECDSA with SHA-384, base64."""


class Kit(_Exchanged):
    """NAME.kit.json: what a site needs to be let in."""

    format: Literal["fedct-kit"] = "fedct-kit"
    """What this file is."""
    hub: KitHub
    """The hub."""
    authority: Text
    """Certificate of the hub's authority, PEM; its fingerprint is told by phone."""
    certificate: Text
    """The site's certificate, PEM."""
    crl_number: Annotated[int, Field(ge=1)]
    """Number of the revocation list when the kit was written."""
    order_key: Text | None = None
    """Ed25519 key that verifies orders in files (`common.parcel`), 64 hexadecimal
    digits; unset in a kit of a hub that had none yet."""
    signatures: KitSignatures
    """Over all of the above."""


AnyExchanged = TypeVar("AnyExchanged", Request, Kit)


def canonical(content: object) -> bytes:
    """The one way in which a JSON value is written."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=True)
    return text.encode() + b"\n"


def to_bytes(model: Request | Kit) -> bytes:
    """A request or kit as a file."""
    return canonical(model.model_dump(mode="json", exclude_none=True))


def signed_bytes(model: Request | Kit) -> bytes:
    """What is signed: all but the signatures."""
    said = model.model_dump(mode="json", exclude={"signatures"}, exclude_none=True)
    return canonical(said)


def request_fingerprint(request: Request) -> str:
    """SHA-256 of what the site signed, 64 hexadecimal digits."""
    return hashlib.sha256(signed_bytes(request)).hexdigest()


def sign(key: PrivateKey, message: bytes) -> str:
    """ECDSA with SHA-384 or Ed25519, as the key is; base64."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        signature = key.sign(message, ec.ECDSA(hashes.SHA384()))
    else:
        signature = key.sign(message)
    return base64.b64encode(signature).decode()


def is_signed(key: PublicKey, message: bytes, signature: str) -> bool:
    """Whether the key made this signature of the message."""
    try:
        raw = base64.b64decode(signature, validate=True)
        if base64.b64encode(raw).decode() != signature:
            return False  # the same bytes in another writing
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(raw, message, ec.ECDSA(hashes.SHA384()))
        else:
            key.verify(raw, message)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def read_exchanged(path: Path) -> bytes:
    """The content of a file that was handed over.

    Raises:
        JoinError: It can't be read, or is far too large to be a request or kit.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise JoinError(
            f"file {path.name!r} can't be read ({error.strerror}), expected the file "
            "that was handed over; check its place and rights"
        ) from error
    if len(content) > LARGEST_BYTES:
        raise JoinError(
            f"file {path.name!r} has more than {LARGEST_BYTES} bytes, expected a "
            "request or join kit; give the right file"
        )
    return content


def parse(content: bytes, kind: type[AnyExchanged]) -> AnyExchanged:
    """A request or kit that is written as one is. Its signatures are not looked at.

    Raises:
        VersionError: It can't be read, as its writer speaks another contract.
        JoinError: It is something else, of another version, or was altered.
    """
    what, writer = ("request", "site") if kind is Request else ("join kit", "hub")
    raw = _json(content, what)
    form, ours = raw.get("format"), kind.model_fields["format"].default
    if form != ours:
        got = {"fedct-request": "a request", "fedct-kit": "a join kit"}.get(str(form))
        raise JoinError(
            f"file is {got or 'something else'}, expected a {what}; the site gives "
            "requests to the hub, the hub gives join kits to the site"
        )
    _check_version(raw.get("version"), what, writer)
    try:
        model = kind.model_validate(raw)
        whole = to_bytes(model) == content
    except (ValidationError, UnicodeEncodeError) as error:
        check_contract(writer, raw.get("contract"), raw.get("fedct"))
        raise altered(what, writer) from error
    if not whole:
        check_contract(writer, raw.get("contract"), raw.get("fedct"))
        raise altered(what, writer)
    return model


def altered(what: str, writer: str) -> JoinError:
    """What to say of a file that is not as it was written."""
    return JoinError(
        f"{what} was altered or cut after it was written, expected it as the {writer} "
        f"wrote it; ask the {writer} for the file again, as an attachment"
    )


def _json(content: bytes, what: str) -> dict[str, Any]:
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise JoinError(
            f"file is no {what} (not JSON), expected one as FedCT writes it; give the "
            "right file, or ask for it again as an attachment"
        ) from error
    return raw if isinstance(raw, dict) else {}


def _check_version(got: object, what: str, writer: str) -> None:
    """Say who has to update."""
    if got == VERSION and not isinstance(got, bool):
        return
    newer = isinstance(got, int) and got > VERSION
    side = "here" if newer else f"at the {writer}, and write it anew"
    raise JoinError(
        f"{what} has format version {str(got)[:20]}, expected {VERSION}; update FedCT "
        f"{side}"
    )
