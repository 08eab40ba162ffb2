"""Preflight: everything that would stop a round, found before the first one.

The table has a row per question, each with its own time, and no answer stops another.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from client.install import read_kit
from client.preflight_line import HubLine
from client.preflight_machine import machine_checks
from client.preflight_network import network_checks
from client.preflight_row import (
    Check,
    Row,
    passed,
    refused,
    run_checks,
    warned,
)
from client.preflight_site import site_checks
from client.site_file import (
    AUTHORITY,
    KIT,
    SITE_CERTIFICATE,
    TLS_KEY,
    SiteFile,
    read_site_file,
)
from common.errors import FedctError
from common.joining import read_exchanged

ECHO_S = 30.0
Echo = Callable[[], str]
"""Sends something to the hub and back by the road of orders; says what came back."""


def preflight(folder: Path, echo: Echo | None = None) -> list[Row]:
    """Check a site.

    Args:
        folder: The site's folder.
        echo: Tries the whole chain, if the service runs; raises `FedctError` where it
            breaks.
    """
    settings: SiteFile | None = None
    try:
        settings = read_site_file(folder)
        first = passed("settings", f"client.toml of site {settings.name} is valid")
        if settings.policy.approve == "auto":
            first = warned(
                "settings",
                f"site {settings.name} approves every plan of its hub unseen",
                'for real patients set approve = "ask" in [policy]',
            )
    except FedctError as error:
        first = refused("settings", error)
    checks = list(site_checks(folder, settings))
    if settings is not None:
        checks += network_checks(line_of(folder, settings))
    checks += machine_checks(folder, "auto" if settings is None else settings.device)
    checks.append(Check("echo", lambda: check_echo(echo), ECHO_S))
    return [first, *run_checks(checks)]


def line_of(folder: Path, settings: SiteFile) -> HubLine:
    """The line to the hub, as far as the site knows it."""
    line = HubLine(
        host=settings.hub.host,
        port=settings.hub.port,
        tls_name=settings.hub.host,
        ca_file=folder / AUTHORITY,
        certificate_file=folder / SITE_CERTIFICATE,
        key_file=folder / TLS_KEY,
        proxy=settings.network.proxy,
    )
    try:
        kit = read_kit(read_exchanged(folder / KIT)).kit
    except FedctError:  # the row of the own certificate says so
        return line
    return replace(line, tls_name=kit.hub.tls_name)


def check_echo(echo: Echo | None) -> Row:
    """Whether a message goes to the hub and back by the road that orders take."""
    if echo is None:
        return warned("echo", "not started", "`fedct client start`, then check again")
    return passed("echo", echo())
