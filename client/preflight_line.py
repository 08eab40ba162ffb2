"""The line from a site to its hub, opened as the service opens it, one layer at a time.

A connection is made directly or through the proxy (`CONNECT`), then TLS is spoken on
it. Each layer that fails says what failed and what to do, so that the table shows one
cause and not its consequences.
"""

import base64
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from http.client import HTTPConnection, HTTPException
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from client.hub_road import HubAddress
from common.errors import TransportError

STEP_S = 5.0
"""For one step on the network."""
_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})")


class LineError(TransportError):
    """A layer failed; carries what to do."""

    def __init__(self, found: str, fix: str) -> None:
        super().__init__(f"{found}; {fix}")
        self.found = found
        self.fix = fix


class UntriedError(LineError):
    """The road is one that only the service can take."""


class HungUpError(LineError):
    """TLS stood, and then the other side hung up.

    So a hub may refuse a certificate: in TLS 1.3 a client's is looked at only after the
    client is done.
    """


def proxy_of(line: HubAddress) -> str | None:
    """The proxy that connections to the hub go through, or none."""
    if line.proxy is not None:
        return line.proxy
    if proxy_bypass(line.host):
        return None
    found = getproxies()
    return found.get("https") or found.get("all")


def split_proxy(url: str) -> SplitResult:
    """The parts of a proxy's URL.

    Raises:
        LineError: It is none.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises where it is no number
    except ValueError:
        usable = False
    if not usable:
        raise LineError(
            "the proxy is no URL like http://proxy.hospital:3128",
            "mend it in client.toml or in HTTPS_PROXY",
        )
    return parts


def shown(url: str) -> str:
    """A proxy's URL without the name and password in it."""
    parts = split_proxy(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def connect(line: HubAddress) -> socket.socket:
    """A TCP connection that ends at the hub.

    Raises:
        LineError: It can't be made.
    """
    proxy = proxy_of(line)
    if proxy is not None:
        return _tunnel(proxy, line)
    try:
        return socket.create_connection((line.host, line.port), STEP_S)
    except OSError as error:
        raise _no_connection(error, f"hub {line.host}:{line.port}") from error


def _tunnel(proxy: str, line: HubAddress) -> socket.socket:
    parts, name = split_proxy(proxy), f"proxy {shown(proxy)}"
    if parts.scheme == "https":
        raise UntriedError(
            f"{name} is itself spoken to over TLS, as the service can alone",
            "see the echo's row, which takes the same road",
        )
    headers = {}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        coded = base64.b64encode(login.encode()).decode()
        headers["Proxy-Authorization"] = f"Basic {coded}"
    connection = HTTPConnection(parts.hostname or "", parts.port or 80, timeout=STEP_S)
    connection.set_tunnel(line.host, line.port, headers)
    try:
        connection.connect()
    except OSError as error:
        connection.close()
        refused = _REFUSED.match(str(error))
        if refused is None:
            raise _no_connection(error, name) from error
        raise _refused(name, int(refused[1]), line) from error
    taken = connection.sock
    assert taken is not None  # `connect` made it
    return taken


def _refused(name: str, code: int, line: HubAddress) -> LineError:
    hub = f"{line.host}:{line.port}"
    if code == 407:
        return LineError(
            f"{name} wants a name and a password (HTTP 407)",
            "ask the network department, and write http://NAME:PASSWORD@HOST:PORT",
        )
    if code in (502, 503, 504):
        return LineError(
            f"{name} does not reach the hub {hub} (HTTP {code})",
            "check the hub's name and port, and that the hub is up",
        )
    return LineError(
        f"{name} does not let this machine through to {hub} (HTTP {code})",
        f"ask the network department to allow CONNECT to {hub}",
    )


def _no_connection(error: OSError, whom: str) -> LineError:
    if isinstance(error, TimeoutError):
        return LineError(
            f"{whom} did not answer within {STEP_S:.0f} s",
            "ask the network department to allow this connection outwards",
        )
    if isinstance(error, ConnectionRefusedError):
        return LineError(
            f"{whom} refused the connection",
            "check the port, and that it is started there",
        )
    if isinstance(error, socket.gaierror):
        return LineError(
            f"the name of {whom} is not known here",
            "check the name, and this machine's name server",
        )
    kind = error.strerror or type(error).__name__
    return LineError(f"{whom} can't be reached ({kind})", "check name, port and route")


@contextmanager
def spoken(line: HubAddress, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """TLS over a new connection.

    Raises:
        LineError: The connection can't be made.
        ssl.SSLError: TLS can't be spoken on it as the context wants.
    """
    with connect(line) as plain:
        plain.settimeout(STEP_S)
        try:
            secure = context.wrap_socket(plain, server_hostname=line.name)
        except ssl.SSLError:
            raise
        except OSError as error:
            kind = error.strerror or type(error).__name__
            raise LineError(
                f"the connection to the hub broke off in TLS ({kind})",
                "something between may cut it: ask the network department",
            ) from error
        with secure:
            yield secure


def ask(line: HubAddress, context: ssl.SSLContext, path: str) -> tuple[int, Message]:
    """The status and headers of the hub's answer to GET `path`.

    Raises:
        HungUpError: TLS stood, and then no answer came.
        LineError: The connection can't be made.
        ssl.SSLError: TLS can't be spoken on it as the context wants.
    """
    with spoken(line, context) as secure:
        connection = HTTPConnection(line.name, line.port, timeout=STEP_S)
        connection.sock = secure
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            answer.read(65536)
        except TimeoutError as error:
            raise LineError(f"no answer within {STEP_S:.0f} s", "") from error
        except (OSError, HTTPException) as error:
            raise HungUpError("the hub hung up without an answer", "") from error
        return answer.status, answer.headers


def tls(line: HubAddress, *, verify: bool = True, show: bool = False) -> ssl.SSLContext:
    """TLS 1.3 as the service speaks it.

    Args:
        line: The hub.
        verify: Whether the hub has to prove who it is. Without, nothing may be sent.
        show: Whether the site's certificate is shown.

    Raises:
        LineError: A certificate or key of the site can't be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        context.load_verify_locations(cafile=line.ca_file)
        if show:
            context.load_cert_chain(line.certificate_file, line.key_file)
    except (OSError, ssl.SSLError) as error:
        raise LineError(
            f"the site's own certificates can't be used ({type(error).__name__})",
            "install the join kit again: `fedct client install`",
        ) from error
    return context
