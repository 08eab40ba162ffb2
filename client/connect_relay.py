"""Through a hospital's HTTPS proxy: a loopback port whose other end is the hub.

nginx can't ask a forward proxy for a tunnel, so where one has to be used this small
program stands between. It says CONNECT for the one address it was started with and then
carries bytes; the TLS inside is nginx's and the hub's, so neither this program nor the
proxy can read or change what passes. A line that breaks on one side is broken on the
other at once, so that nginx hears of it.

Credentials stand in the proxy's URL (Basic). They come in the environment, as others
may read a command line, and are in no message.

Not covered here: proxies that want Kerberos or NTLM, and proxies that open TLS. The
latter would break the hub's certificate and are noticed by nginx.
"""

import argparse
import asyncio
import base64
import os
import re
import signal
import ssl
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from common.errors import TransportError

PROXY_VARIABLE: Final = "FEDCT_PROXY"
"""Name of the environment variable that holds the proxy's URL."""
CONNECT_S: Final = 9.0
"""From a connection to an open tunnel; less than nginx waits for a handshake (10 s)."""
LINGER_S: Final = 30.0
"""How long one direction may go on after the other has ended."""
_PIECE: Final = 65_536
_PORTS: Final = {"http": 80, "https": 443}
_AUTHORITY: Final = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Proxy:
    """A forward proxy, as its URL says."""

    host: str
    """Name or IP address."""
    port: int
    """TCP port."""
    tls: bool
    """Whether the proxy itself is spoken to over TLS (https://)."""
    authorization: str | None = field(repr=False)
    """Value of `Proxy-Authorization`, or unset."""


def parse_proxy(url: str) -> Proxy:
    """The proxy in `http[s]://[user:password@]host[:port]`.

    Raises:
        TransportError: It is no such URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path not in {"", "/"}:
        raise TransportError(
            "site got a proxy that is no URL of one, expected "
            "http://host:port or http://user:password@host:port (with signs like @ "
            "and : in a password written as %40 and %3A); mend [network] proxy"
        )
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    port = port or _PORTS[parts.scheme]
    return Proxy(parts.hostname, port, parts.scheme == "https", authorization)


def relay_command(port: int, hub: str) -> tuple[str, ...]:
    """What a supervisor runs, with the proxy's URL in `PROXY_VARIABLE`.

    Args:
        port: Loopback port to listen on.
        hub: Name and port of the hub; the proxy looks the name up.
    """
    return (sys.executable, "-m", "client.connect_relay", str(port), hub)


async def open_tunnel(proxy: Proxy, hub: str) -> Streams:
    """A connection to the hub through the proxy.

    Raises:
        TransportError: The proxy can't be reached, or refuses.
    """
    where = f"the proxy {proxy.host}:{proxy.port}"
    tls = ssl.create_default_context() if proxy.tls else None
    try:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port, ssl=tls)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise TransportError(
            f"site can't reach {where} ({why}), expected it to take "
            "connections; check [network] proxy"
        ) from error
    try:
        head = f"CONNECT {hub} HTTP/1.1\r\nHost: {hub}\r\n"
        if proxy.authorization is not None:
            head += f"Proxy-Authorization: {proxy.authorization}\r\n"
        writer.write(head.encode() + b"\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})", answer)
        if status is None or not status[1].startswith(b"2"):
            raise _refusal(where, hub, status[1].decode() if status else "no HTTP")
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        writer.transport.abort()
        raise _refusal(where, hub, "a hang-up") from error
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def carry(near: Streams, far: Streams) -> None:
    """Pass bytes both ways until both have ended or one has broken; then close both."""
    ways = [
        asyncio.create_task(_pump(near[0], far[1])),
        asyncio.create_task(_pump(far[0], near[1])),
    ]
    try:
        done, open_still = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if open_still and not any(way.exception() for way in done):
            await asyncio.wait(
                open_still, timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED
            )
    finally:
        whole = all(way.done() and way.exception() is None for way in ways)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for _, writer in (near, far):
            writer.close() if whole else writer.transport.abort()


async def serve(port: int, hub: str, proxy: Proxy) -> None:
    """Listen on loopback until SIGTERM or SIGINT."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                far = await open_tunnel(proxy, hub)
        except (TransportError, TimeoutError) as error:
            why = str(error) or f"the proxy was silent for {CONNECT_S:.0f} s"
            print(f"tunnel failed: {why}", file=sys.stderr, flush=True)
            writer.transport.abort()
            return
        await carry((reader, writer), far)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await asyncio.start_server(relay, "127.0.0.1", port, limit=_PIECE)
    try:
        print(f"relay listens, port {port}", file=sys.stderr, flush=True)
        await stop.wait()
    finally:
        server.close()


def main(argv: list[str], environment: Mapping[str, str]) -> int:
    """Run the relay; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="connect_relay", description=f"The proxy's URL stands in {PROXY_VARIABLE}."
    )
    parser.add_argument("port", type=int, help="loopback port to listen on")
    parser.add_argument("hub", help="name:port of the hub")
    given = parser.parse_args(argv)
    try:
        if not _AUTHORITY.fullmatch(given.hub):
            raise TransportError(
                f"relay got the hub {given.hub[:64]!r}, expected name:port; mend the "
                "hub's address in client.toml"
            )
        proxy = parse_proxy(environment.get(PROXY_VARIABLE, ""))
        asyncio.run(serve(given.port, given.hub, proxy))
    except OSError as error:
        print(
            f"relay can't listen on port {given.port} ({error.strerror}), expected a "
            "free one; is another `fedct client start` running?",
            file=sys.stderr,
        )
        return TransportError.exit_code
    except TransportError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()
    with suppress(OSError, NotImplementedError):
        if writer.can_write_eof():
            writer.write_eof()


def _refusal(where: str, hub: str, answer: str) -> TransportError:
    what = {
        "403": "ask those who run it to allow that address",
        "407": "put its user and password into [network] proxy; "
        "only Basic authentication is known here",
    }.get(answer, "ask those who run it what stands in its log")
    return TransportError(
        f"{where} answered {answer} to a tunnel to {hub}, expected 200; {what}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
