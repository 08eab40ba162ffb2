"""Taking a site's certificates back: the register says so, the list tells nginx.

The revocation list is written from the register. So a process that is killed between
the two leaves a list that is one revocation behind, which `refresh_crl` (run whenever
the hub starts, and daily) notices by its number.

The list is short-lived on purpose: a hub whose list is not renewed stops letting sites
in, rather than go on with an old one.

Not covered here: connections that are open already. nginx takes up the list by a
reload, and the site's node key has to be taken from the SuperLink as well.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from common.certificates import BACKDATED
from common.durable import write_whole
from common.keys import MALFORMED
from server.hub import CA_CRL, PRIVATE, Hub
from server.register import (
    Issued,
    Register,
    entry_of,
    locked,
    read_register,
    unknown_site,
    write_register,
)

CRL_LIFE: Final = timedelta(days=7)
"""How long a hub may run on one list."""


def revoke(hub: Hub, site: str, now: datetime) -> Issued:
    """Take back every certificate of a site; doing it twice does no harm.

    Returns:
        The newest certificate of the site, revoked.

    Raises:
        JoinError: There is no such site.
    """
    with locked(hub.folder):
        register = read_register(hub.folder)
        if site not in register.latest():
            raise unknown_site(site, register.latest())
        time = now.replace(microsecond=0)
        issued = tuple(
            entry.model_copy(update={"revoked": entry.revoked or time})
            if entry.name == site
            else entry
            for entry in register.issued
        )
        _publish(hub, register.model_copy(update={"issued": issued}), now)
    return entry_of(hub.folder, site)


def refresh_crl(hub: Hub, now: datetime) -> bool:
    """Write the revocation list anew if it is behind the register or half through.

    Returns:
        Whether it was written.
    """
    with locked(hub.folder):
        register = read_register(hub.folder)
        if _is_current(hub, register, now):
            return False
        _publish(hub, register, now)
    return True


def begin_register(hub: Hub, now: datetime) -> None:
    """Write an empty register and an empty revocation list."""
    _publish(hub, Register(), now)


def _is_current(hub: Hub, register: Register, now: datetime) -> bool:
    try:
        crl = x509.load_pem_x509_crl((hub.folder / CA_CRL).read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber)
    except (OSError, *MALFORMED):
        return False
    begin, end = crl.last_update_utc, crl.next_update_utc
    if number.value.crl_number != register.crl_number or end is None:
        return False
    return begin <= now < begin + (end - begin) / 2


def _publish(hub: Hub, register: Register, now: datetime) -> None:
    """Write the register, then the revocation list that follows from it."""
    number = register.crl_number + 1
    register = register.model_copy(update={"crl_number": number})
    write_register(hub.folder, register)
    key = hub.key.public_key()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(hub.authority.subject)
        .last_update(now - BACKDATED)
        .next_update(now + CRL_LIFE)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key), False)
    )
    for entry in register.issued:
        if entry.revoked is not None and entry.not_after > now:
            builder = builder.add_revoked_certificate(
                x509.RevokedCertificateBuilder()
                .serial_number(int(entry.serial, 16))
                .revocation_date(entry.revoked.astimezone(UTC))
                .build()
            )
    crl = builder.sign(hub.key, hashes.SHA384())
    content = crl.public_bytes(serialization.Encoding.PEM)
    write_whole(hub.folder / CA_CRL, content, mode=PRIVATE)
