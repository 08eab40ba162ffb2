"""A site's request to be let in, checked for itself.

Whether this hub may let the site in is another question (`server.enrol`).
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common.certificates import check_site_name, name_in
from common.contract import check_contract
from common.joining import (
    Request,
    altered,
    is_signed,
    parse,
    request_fingerprint,
    signed_bytes,
)
from common.keys import MALFORMED, PublicKey, openssh_line, public_pem


@dataclass(frozen=True)
class CheckedRequest:
    """A request that is whole and signed by each of its keys."""

    request: Request
    """As the site wrote it."""
    tls_key: ec.EllipticCurvePublicKey
    """To be certified."""
    keys: tuple[str, str, str]
    """All three public keys, as the register holds them."""
    fingerprint: str
    """SHA-256 of what the site signed, for the phone."""


def read_request(content: bytes) -> CheckedRequest:
    """Check a request for itself: its form and its three signatures.

    Raises:
        VersionError: The site does not speak this hub's contract.
        JoinError: It is no request, of another version, or was altered.
    """
    request = parse(content, Request)
    check_contract("site", request.contract, request.fedct)
    check_site_name(request.name)
    signed, signatures = signed_bytes(request), request.signatures
    try:
        csr = x509.load_pem_x509_csr(request.csr.encode())
        tls: object = csr.public_key()
        node: object = serialization.load_ssh_public_key(request.node_key.encode())
        verify: object = serialization.load_pem_public_key(request.verify_key.encode())
        sound = csr.is_signature_valid and name_in(csr) == request.name
    except MALFORMED as error:
        raise altered("request", "site") from error
    if not (
        sound
        and isinstance(tls, ec.EllipticCurvePublicKey)
        and isinstance(tls.curve, ec.SECP256R1)
        and isinstance(node, ec.EllipticCurvePublicKey)
        and isinstance(node.curve, ec.SECP384R1)
        and isinstance(verify, ed25519.Ed25519PublicKey)
    ):
        raise altered("request", "site")
    proofs: list[tuple[PublicKey, str]] = [
        (tls, signatures.tls),
        (node, signatures.node),
        (verify, signatures.sign),
    ]
    if not all(is_signed(key, signed, proof) for key, proof in proofs):
        raise altered("request", "site")
    keys = public_pem(tls), openssh_line(node), public_pem(verify)
    return CheckedRequest(request, tls, keys, request_fingerprint(request))
