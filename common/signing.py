"""A site's signature under each of its answers (Ed25519, RFC 8032).

What is signed is the answer and what it answers: contract, kind, run, round, site,
plan, the model the site was given, and the order's nonce, which is random and new for
every order. So a stored answer is worth nothing a second time, an answer can't be moved
to another round, run or site, and one altered bit anywhere breaks the signature. The
seal repeats what the site says it answers, so that a refusal can name the difference.

Not covered here: secrecy, and an answer that is a lie but was signed by the right site.
Nor are failures: a site that says it can't work signs nothing, and nothing counts.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from common.canonical import digest_of_answer, items
from common.contract import CONTRACT
from common.errors import ContributionError, JoinError
from common.exchange import Answer, Hello, Order
from common.keys import private_pem, read_signing_key

_PURPOSE = "fedct answer"
"""Keeps these signatures apart from all others that the same key makes."""


@dataclass(frozen=True)
class Asked:
    """Which question an answer belongs to."""

    run: str
    """Id of the run."""
    round: int
    """The order's round; 0 at the roll call."""
    site: str
    """Who is asked."""
    plan_digest: str
    """Canonical hash of the plan."""
    model_digest: str | None
    """`digest_of` the model that the site was given; unset if it was given none."""
    nonce: str
    """The order's nonce."""
    contract: int = CONTRACT
    """What the site speaks (`common.contract`)."""


@dataclass(frozen=True)
class Mark:
    """How far a site's audit log is: the last line of it, which stands for all."""

    number: int
    """Of that line, from 1."""
    hash: str
    """Of that line, 64 hexadecimal digits."""


@dataclass(frozen=True)
class Seal:
    """What a site puts under an answer."""

    signature: bytes
    """64 bytes."""
    key: str
    """`fingerprint` of the key that verifies it."""
    asked: Asked
    """What the site says it answers; signed."""
    mark: Mark | None = None
    """The line of the site's audit log that is about this answer; signed. Unset in a
    rehearsal, which keeps none."""


def asked_of(order: Order, site: str) -> Asked:
    """The question that an order is to this site."""
    number = 0 if isinstance(order, Hello) else order.round
    model = getattr(order, "model_digest", None)
    return Asked(order.run, number, site, order.plan_digest, model, order.nonce)


def seal(
    answer: Answer,
    asked: Asked,
    key: Ed25519PrivateKey,
    digest: bytes | None = None,
    mark: Mark | None = None,
) -> Seal:
    """Sign an answer as one to this question.

    Args:
        answer: What leaves.
        asked: What it answers.
        key: The site's.
        digest: `digest_of_answer`, if the caller knows it: for a large model hashing
            it is the most of signing.
        mark: The answer's line in the site's audit log.
    """
    content = digest or digest_of_answer(answer)
    signature = key.sign(_statement(content, answer, asked, mark))
    return Seal(signature, fingerprint(key.public_key()), asked, mark)


def verify(answer: Answer, asked: Asked, seal: Seal, key: Ed25519PublicKey) -> None:
    """Check that the site of this key gave this answer to this question.

    Raises:
        ContributionError: It did not. `code` is "key" (sealed by another key),
            "signature" (altered, or never signed), the field of `Asked` that differs,
            where "nonce" is a replay of an answer to an earlier order, or "content"
            (the answer itself names another site, round or plan).
    """
    who = f"site {asked.site!r}"
    if seal.key != fingerprint(key):
        raise ContributionError(
            f"{who} sent an answer sealed by key {seal.key[:16]!r}, expected "
            f"{fingerprint(key)[:16]!r}; was its key renewed? then enrol it again",
            code="key",
        )
    try:
        content = digest_of_answer(answer)
        key.verify(seal.signature, _statement(content, answer, seal.asked, seal.mark))
    except InvalidSignature as error:
        raise ContributionError(
            f"{who} sent an answer whose signature does not fit, expected it as the "
            "site signed it; it was altered on the way or is forged",
            code="signature",
        ) from error
    _compare(answer, asked, seal.asked)


def _compare(answer: Answer, asked: Asked, said: Asked) -> None:
    """Refuse an answer that was truly given, but to another question."""
    who = f"site {asked.site!r}"
    for field in fields(Asked):
        name, want = field.name, getattr(asked, field.name)
        got = getattr(said, name)
        if got != want:
            words = "model" if name == "model_digest" else name.removesuffix("_digest")
            old = "; it is a replay of an earlier answer" if name == "nonce" else ""
            raise ContributionError(
                f"{who} signed an answer for {words} {_short(got)}, expected "
                f"{_short(want)}{old}",
                code=words,
            )
    if answer.site != asked.site:
        raise ContributionError(
            f"{who} answered as another site, expected its own name", code="content"
        )
    for name, want in (("round", asked.round), ("plan_digest", asked.plan_digest)):
        got = getattr(answer, name, want)
        if got != want:
            raise ContributionError(
                f"{who} answered for {name.removesuffix('_digest')} {_short(got)}, "
                f"expected {_short(want)}",
                code="content",
            )


def _statement(digest: bytes, answer: Answer, asked: Asked, mark: Mark | None) -> bytes:
    """The bytes that are signed."""
    return items(
        {
            "purpose": _PURPOSE,
            "kind": type(answer).__name__,
            "content": digest,
            "log_number": None if mark is None else mark.number,
            "log_hash": None if mark is None else mark.hash,
            **vars(asked),
        }
    )


def _short(value: object) -> str:
    return str(value)[:16] if isinstance(value, str) else str(value)


# --- keys -------------------------------------------------------------------------


def make_signing_key(path: Path, seed: bytes | None = None) -> Ed25519PrivateKey:
    """Make a key in a file of mode 0600; one that is there already stays.

    Args:
        path: In a folder that others can't enter.
        seed: 32 bytes that the key is, for a rehearsal; unset, nobody can foretell it.

    Raises:
        JoinError: A file is there that is no such key, or others may read it.
    """
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    key = Ed25519PrivateKey.from_private_bytes(
        secrets.token_bytes(32) if seed is None else seed
    )
    try:
        with os.fdopen(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(private_pem(key))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return read_signing_key(path)


def public_text(key: Ed25519PublicKey) -> str:
    """A verifying key as 64 hexadecimal digits (RFC 8032's 32 bytes)."""
    return key.public_bytes_raw().hex()


def public_from_text(text: str) -> Ed25519PublicKey:
    """The key that `public_text` wrote, or one in PEM, as the register holds it.

    Raises:
        JoinError: The text is no such key.
    """
    try:
        if text.startswith("-----BEGIN"):
            key = load_pem_public_key(text.encode())
        else:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        if isinstance(key, Ed25519PublicKey):
            return key
    except (ValueError, UnsupportedAlgorithm):
        pass
    raise JoinError(
        f"a verifying key came as {text[:20]!r}, expected 64 hexadecimal digits, or "
        "an Ed25519 key in PEM"
    )


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of a verifying key, 64 hexadecimal digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
