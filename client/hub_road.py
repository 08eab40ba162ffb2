"""The road from a site to its hub: TLS 1.3, directly or inside a proxy's tunnel.

A proxy stands in the site's settings, or else in the environment (`HTTPS_PROXY`,
`NO_PROXY`); it is asked for a tunnel (CONNECT) and sees the hub's name and port and
nothing of what passes, as TLS is spoken inside, between the site and the hub.

Not covered here: proxies that want Kerberos or NTLM, and proxies that open TLS. The
latter can't show the hub's certificate, and so nothing is sent through them.
"""

import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from client.site_file import AUTHORITY, KIT, SITE_CERTIFICATE, TLS_KEY, SiteFile
from common.errors import JoinError
from common.joining import Kit, parse


@dataclass(frozen=True)
class HubAddress:
    """Where the hub is, and how it is recognised."""

    host: str
    """DNS name or IP address under which this site reaches it."""
    port: int
    """TCP port, outwards only."""
    ca_file: Path
    """The federation's own CA; no public CA is trusted."""
    certificate_file: Path
    """The site's certificate, PEM."""
    key_file: Path
    """Its key, PEM; never leaves the site."""
    proxy: str | None = None
    """URL of an HTTPS proxy that must be used; unset: the environment decides."""
    tls_name: str | None = None
    """The name that the hub's certificate must bear; unset: `host`."""

    @property
    def name(self) -> str:
        """The name that its certificate is checked for."""
        return self.tls_name or self.host

    @property
    def url(self) -> str:
        """As HTTP asks for it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"


def hub_of(folder: Path, settings: SiteFile) -> HubAddress:
    """The hub that a site's folder describes, as far as the site knows it."""
    tls_name = None
    with suppress(OSError, JoinError):  # `client.install` says so
        tls_name = parse((folder / KIT).read_bytes(), Kit).hub.tls_name
    return HubAddress(
        host=settings.hub.host,
        port=settings.hub.port,
        ca_file=folder / AUTHORITY,
        certificate_file=folder / SITE_CERTIFICATE,
        key_file=folder / TLS_KEY,
        proxy=settings.network.proxy,
        tls_name=tls_name,
    )


def hub_client(hub: HubAddress, timeout_s: float) -> httpx.Client:
    """An HTTP client that reaches the hub and nobody else.

    Args:
        hub: Address, certificates, proxy.
        timeout_s: For one step on the network.
    """
    return httpx.Client(
        verify=_tls(hub),
        timeout=timeout_s,
        proxy=None if hub.proxy is None else _proxy(hub.proxy),
        trust_env=hub.proxy is None,
    )


def _proxy(url: str) -> httpx.Proxy:
    """A proxy; one that is spoken to over TLS is judged by this machine's own CAs."""
    own = ssl.create_default_context() if url.startswith("https:") else None
    return httpx.Proxy(url, ssl_context=own)


class _HubContext(ssl.SSLContext):
    """TLS with a hub that is known by one name, wherever it is reached.

    httpx takes the name from the URL, and has no other way of saying it in a tunnel.
    """

    hub_name: str

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As ever, for the hub's name in place of the address's."""
        return super().wrap_socket(
            *args, **options | {"server_hostname": self.hub_name}
        )

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """The same inside another TLS, that of a proxy."""
        options["server_hostname"] = self.hub_name
        return super().wrap_bio(*args, **options)


def _tls(hub: HubAddress) -> ssl.SSLContext:
    """TLS 1.3, the federation's CA only, the site's certificate shown."""
    context = _HubContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hub_name = hub.name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cafile=hub.ca_file)
    context.load_cert_chain(hub.certificate_file, hub.key_file)
    return context
