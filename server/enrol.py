"""Letting a site in: request in, certificate into the register, join kit out.

The register comes first and the kit follows from it, so a process that is killed on the
way has let the site in or not, and the same command again writes the same certificate
into the kit.

A name belongs to the three keys that first had it. Other keys for it are refused until
the site is revoked, and revoked keys never come back.

Not covered here: that the request is the hospital's. `fedct server enroll` asks the
coordinator to compare its fingerprint with what the hospital reads out.
"""

from datetime import datetime, timedelta
from pathlib import Path

from common.certificates import (
    LONGEST_DAYS,
    certificate_pem,
    fingerprint_of,
    grouped,
    instant,
    issue,
    same_fingerprint,
)
from common.durable import write_whole
from common.errors import JoinError
from common.joining import (
    Kit,
    KitHub,
    KitSignatures,
    parse,
    sign,
    signed_bytes,
    to_bytes,
)
from common.signing import public_text
from server.asked import CheckedRequest
from server.hub import KITS, Hub, order_key
from server.register import Issued, Register, locked, read_register, write_register

CLOCKS_AGREE = timedelta(minutes=10)
"""A request from further in the future shows that one of the two clocks is wrong."""


def is_known(hub: Hub, checked: CheckedRequest) -> bool:
    """Whether these keys were let in under this name already; then no phone is needed.

    Raises:
        JoinError: They may not be let in.
    """
    return _holder(read_register(hub.folder), checked) is not None


def remarks(hub: Hub, checked: CheckedRequest, now: datetime) -> list[str]:
    """What a coordinator should know of a request that is none the less taken."""
    said = []
    request = checked.request
    if request.hub != hub.settings.address:
        said.append(
            f"the site asks the hub at {request.hub}, this one is "
            f"{hub.settings.address}; it has to reach this hub by that address"
        )
    if request.created > now + CLOCKS_AGREE:
        said.append(
            f"the request is from {instant(request.created)}, and it is {instant(now)} "
            "here; one of the two clocks is wrong"
        )
    return said


def enroll(
    hub: Hub,
    checked: CheckedRequest,
    told: str | None,
    days: int,
    now: datetime,
    out: Path | None = None,
) -> Path:
    """Let a site in, or give it its next certificate, and write the kit.

    Args:
        hub: The hub.
        checked: The site's request.
        told: The request's fingerprint as the hospital told it; needed for new keys.
        days: How long the certificate is good.
        now: The hub's clock, UTC.
        out: The kit's file, which must not exist; by default NAME.kit.json among the
            hub's kits, where the kit of an earlier certificate is replaced.

    Returns:
        The kit's file. The same request again gives the same certificate.

    Raises:
        JoinError: The name or a key is taken or revoked, the fingerprint differs, the
            days are too many, or `out` exists; nothing was changed.
    """
    if not 1 <= days <= LONGEST_DAYS:
        raise JoinError(
            f"hub got --days {days}, expected 1 to {LONGEST_DAYS}; certificates are "
            "short-lived and renewed"
        )
    if out is not None and (out.exists() or not out.parent.is_dir()):
        raise JoinError(
            f"hub got a kit file {out.name!r} that exists or has no folder, expected "
            "a new file; choose another --out"
        )
    key = public_text(order_key(hub.folder).public_key())
    path = out or hub.folder / KITS / f"{checked.request.name}.kit.json"
    with locked(hub.folder):
        register = read_register(hub.folder)
        entry = _holder(register, checked)
        if entry is None or told is not None:
            _check_told(checked, told)
        again = entry is not None and entry.request == checked.fingerprint
        if entry is None or not again or entry.status(now) == "expired":
            entry = _certify(hub, checked, days, now)
            issued = (*register.issued, entry)
            write_register(hub.folder, register.model_copy(update={"issued": issued}))
        if again and _holds(path, entry, key):
            return path
        kit = _kit(hub, entry, key, register.crl_number, now)
        write_whole(path, to_bytes(kit), mode=0o600)
    return path


def _check_told(checked: CheckedRequest, told: str | None) -> None:
    """The fingerprint is the one that the hospital told, all digits of it."""
    if told is None:
        raise JoinError(
            f"hub got the first request of {checked.request.name!r} and no "
            "fingerprint, expected the one that the hospital reads out; give it with "
            "--fingerprint"
        )
    if not same_fingerprint(told, checked.fingerprint):
        raise JoinError(
            f"hub got a request with fingerprint {grouped(checked.fingerprint)}, which "
            "is not the one that was told; if it was typed rightly, do not enroll this "
            "request, and ask the hospital for it again"
        )


def _holds(path: Path, entry: Issued, key: str) -> bool:
    """Whether the file is the kit of this certificate, with this order key."""
    try:
        kit = parse(path.read_bytes(), Kit)
    except (OSError, JoinError):
        return False
    return (kit.certificate, kit.order_key) == (entry.certificate, key)


def _holder(register: Register, checked: CheckedRequest) -> Issued | None:
    """The newest certificate of these keys under this name; None if name is free."""
    name, keys = checked.request.name, checked.keys
    for entry in register.issued:
        if not set(entry.keys) & set(keys):
            continue
        if entry.revoked is not None:
            raise JoinError(
                f"hub got a request with keys of site {entry.name!r}, which was "
                f"revoked at {instant(entry.revoked)}, expected new keys; the site "
                "has to begin with a new folder (fedct client request)"
            )
        if entry.name != name:
            raise JoinError(
                f"hub got a request of {name!r} with a key of site {entry.name!r}, "
                "expected keys of its own; the site has to begin with a new folder "
                "(fedct client request), not with a copy"
            )
    held = [e for e in register.issued if e.name == name and e.revoked is None]
    if held and held[-1].keys != keys:
        raise JoinError(
            f"hub got a request of {name!r} with other keys than the site of that "
            "name has, expected the same keys or a free name; if the hospital lost "
            f"its keys, run `fedct server revoke HUB {name}` first, else let it take "
            "another name"
        )
    if not held and checked.request.purpose == "renew":
        raise JoinError(
            f"hub got a renewal of {name!r}, which it never let in, expected a site of "
            "its own; give it to the hub that the site has joined"
        )
    return held[-1] if held else None


def _certify(hub: Hub, checked: CheckedRequest, days: int, now: datetime) -> Issued:
    """Sign a certificate; nothing is written yet."""
    left = (hub.authority.not_valid_after_utc - now).days
    if days > left:
        raise JoinError(
            f"hub got --days {days}, expected at most the {left} that its authority "
            "has left; make a new hub in time"
        )
    name = checked.request.name
    made = issue(name, checked.tls_key, hub.issuer, "client", now, days)
    tls_key, node_key, verify_key = checked.keys
    return Issued(
        serial=f"{made.serial_number:x}",
        name=name,
        fingerprint=fingerprint_of(made),
        issued=now.replace(microsecond=0),
        not_after=made.not_valid_after_utc,
        request=checked.fingerprint,
        tls_key=tls_key,
        node_key=node_key,
        verify_key=verify_key,
        certificate=certificate_pem(made),
    )


def _kit(hub: Hub, entry: Issued, key: str, crl_number: int, now: datetime) -> Kit:
    """The kit of a certificate, signed by the authority."""
    settings = hub.settings
    unsigned = Kit(
        name=entry.name,
        created=now.replace(microsecond=0),
        hub=KitHub(name=settings.name, port=settings.port, tls_name=settings.tls_name),
        authority=certificate_pem(hub.authority),
        certificate=entry.certificate,
        crl_number=crl_number,
        order_key=key,
        signatures=KitSignatures(authority=""),
    )
    signature = sign(hub.key, signed_bytes(unsigned))
    return unsigned.model_copy(
        update={"signatures": KitSignatures(authority=signature)}
    )
