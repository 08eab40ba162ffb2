"""A hospital's side of joining: its folder, its keys, and its requests.

The three keys are made here and stay here; what goes out is a request with their public
halves, signed by all three, so that nobody can put another key into it.

A renewal is the same request again, made with the same keys. New keys would gain
nothing, as all three lie in one folder and who can copy one can copy all; and with the
same key a certificate is replaced by one rename, so key and certificate never differ. A
hospital that suspects a copy asks the hub to revoke it and begins with a new folder.
"""

from datetime import datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from client.private_files import write_private
from client.site_file import (
    CLIENT_FILE,
    NODE_KEY,
    PARTS,
    SIGN_KEY,
    TLS_KEY,
    SiteFile,
    read_site_file,
    site_toml,
)
from common.certificates import common_name
from common.joining import Request, RequestSignatures, sign, signed_bytes, to_bytes
from common.keys import (
    openssh_line,
    private_pem,
    public_pem,
    read_ec_key,
    read_signing_key,
)
from common.new_folder import new_folder


def create_site(
    folder: Path, settings: SiteFile, now: datetime
) -> tuple[Path, Request]:
    """Make a hospital's folder with its settings, its keys and its request to join.

    Returns:
        The request's file, and the request.

    Raises:
        JoinError: The folder is in use.
    """
    with new_folder(folder, "site"):
        for part in PARTS:
            (folder / part).mkdir(mode=0o700)
        for path, key, openssh in (
            (TLS_KEY, ec.generate_private_key(ec.SECP256R1()), False),
            (NODE_KEY, ec.generate_private_key(ec.SECP384R1()), True),
            (SIGN_KEY, ed25519.Ed25519PrivateKey.generate(), False),
        ):
            write_private(folder / path, private_pem(key, openssh=openssh))
        write_private(folder / CLIENT_FILE, site_toml(settings).encode())
        request = write_request(folder, settings, "join", now)
        path = folder / f"{settings.name}.request.json"
        write_private(path, to_bytes(request))
    return path, request


def renew(folder: Path, now: datetime) -> tuple[Path, Request]:
    """Write a request for the site's next certificate; an earlier one is replaced.

    Returns:
        The request's file, and the request.

    Raises:
        JoinError: The folder is no site's, or a key is gone.
    """
    settings = read_site_file(folder)
    request = write_request(folder, settings, "renew", now)
    path = folder / f"{settings.name}.renewal.json"
    write_private(path, to_bytes(request))
    return path, request


def write_request(
    folder: Path, settings: SiteFile, purpose: Literal["join", "renew"], now: datetime
) -> Request:
    """A request, signed by the three keys in the folder."""
    tls, node = read_ec_key(folder / TLS_KEY), read_ec_key(folder / NODE_KEY)
    signing = read_signing_key(folder / SIGN_KEY)
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(common_name(settings.name))
        .sign(tls, hashes.SHA256())
    )
    unsigned = Request(
        name=settings.name,
        created=now.replace(microsecond=0),
        purpose=purpose,
        hub=settings.hub.address,
        csr=csr.public_bytes(serialization.Encoding.PEM).decode(),
        node_key=openssh_line(node.public_key()),
        verify_key=public_pem(signing.public_key()),
        signatures=RequestSignatures(tls="", node="", sign=""),
    )
    signed = signed_bytes(unsigned)
    signatures = RequestSignatures(
        tls=sign(tls, signed), node=sign(node, signed), sign=sign(signing, signed)
    )
    return unsigned.model_copy(update={"signatures": signatures})
