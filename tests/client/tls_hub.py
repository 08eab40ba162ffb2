"""Small real servers for preflight: a hub that speaks TLS, and a proxy."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.hub_road import HubAddress
from common.certificates import Issuer, certificate_pem, issue, issue_authority
from common.keys import private_pem


@dataclass
class Authority:
    """A certificate authority with files in a folder."""

    folder: Path
    name: str = "federation"
    key: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        self.certificate = issue_authority(self.name, self.key, now, 400)
        self.file = self.folder / f"{self.name}.ca.crt"
        self.file.write_text(certificate_pem(self.certificate))

    def issue(
        self,
        name: str,
        *,
        use: str = "server",
        hosts: tuple[str, ...] = ("localhost", "127.0.0.1"),
        days: int = 30,
        ago: timedelta = timedelta(0),
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> tuple[Path, Path]:
        """Files with a certificate and its key; issued `ago`."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        issuer = Issuer(self.certificate.subject, self.key)
        made: x509.Certificate = issue(
            name, key.public_key(), issuer, use, datetime.now(UTC) - ago, days, hosts
        )
        paths = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        paths[0].write_text(certificate_pem(made))
        paths[1].write_bytes(private_pem(key))
        return paths


def line(authority: Authority, port: int, **changes: object) -> HubAddress:
    """The way to a hub on this machine."""
    certificate, key = authority.issue("north", use="client", hosts=())
    given = {
        "host": "127.0.0.1",
        "port": port,
        "tls_name": "localhost",
        "ca_file": authority.file,
        "certificate_file": certificate,
        "key_file": key,
        **changes,
    }
    return HubAddress(**given)


@contextlib.contextmanager
def served(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on loopback that talks to each caller in a thread; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        over = threading.Event()

        def talk_once(caller: socket.socket) -> None:
            with caller, contextlib.suppress(OSError):
                caller.settimeout(5)
                talk(caller)

        def accept() -> None:
            talks = []
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    caller, _ = listener.accept()
                    talks.append(threading.Thread(target=talk_once, args=(caller,)))
                    talks[-1].start()
            for talking in talks:
                talking.join()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        try:
            yield listener.getsockname()[1]
        finally:
            over.set()
            acceptor.join()


@contextlib.contextmanager
def hub(
    ca_file: Path,
    certificate: tuple[Path, Path],
    *,
    status: int = 404,
    skew_s: float = 0.0,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Iterator[int]:
    """A hub as nginx is one: HTTP 400 for whoever shows no certificate of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    context.load_cert_chain(*certificate)
    context.load_verify_locations(ca_file)
    context.verify_mode = ssl.CERT_OPTIONAL  # shown but unknown: hangs up

    def talk(caller: socket.socket) -> None:
        with context.wrap_socket(caller, server_side=True) as secure:
            asked = b""
            while b"\r\n\r\n" not in asked:
                part = secure.recv(4096)
                if not part:
                    return
                asked += part
            code = status if secure.getpeercert() else 400
            date = format_datetime(
                datetime.now(UTC) + timedelta(seconds=skew_s), usegmt=True
            )
            head = f"HTTP/1.1 {code} x\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n"
            secure.sendall(head.encode())

    with served(talk) as port:
        yield port


@contextlib.contextmanager
def proxy(answer: int = 200, login: str | None = None) -> Iterator[tuple[int, list]]:
    """A CONNECT proxy that answers with a code; its port, and what it was asked."""
    heard: list[str] = []

    def talk(caller: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            part = caller.recv(4096)
            if not part:
                return
            asked += part
        heard.append(asked.decode())
        code = 407 if login is not None and login not in heard[-1] else answer
        if code != 200:
            caller.sendall(f"HTTP/1.1 {code} no\r\nContent-Length: 0\r\n\r\n".encode())
            return
        host, _, port = heard[-1].split()[1].rpartition(":")
        with socket.create_connection((host, int(port)), 5) as there:
            caller.sendall(b"HTTP/1.1 200 yes\r\n\r\n")
            other = {caller: there, there: caller}
            while True:
                ready, _, _ = select.select([caller, there], [], [], 5)
                for end in ready:
                    content = end.recv(65536)
                    if not content:
                        return
                    other[end].sendall(content)
                if not ready:
                    return

    with served(talk) as port:
        yield port, heard
