"""Preflight: everything that would stop a round, found before the first one.

The table has a row per question, each with its own time, and no answer stops another.
The last two are about the whole: an echo takes the road that orders and answers take,
to the hub's register and back, and the service says whether it runs.
"""

import time
from pathlib import Path

from client import control_calls
from client.echo import echo
from client.hub_road import HubAddress, hub_of
from client.preflight_machine import machine_checks
from client.preflight_network import network_checks
from client.preflight_row import (
    Check,
    Row,
    failed,
    passed,
    refused,
    run_checks,
    warned,
)
from client.preflight_site import site_checks
from client.site_file import NODE_KEY, SiteFile, read_site_file
from common.errors import ControlError, FedctError
from common.keys import read_ec_key

ECHO_S = 45.0
"""Two answers, each with its steps on the network."""


def preflight(folder: Path) -> list[Row]:
    """Check a site.

    Args:
        folder: The site's folder.
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
        hub = hub_of(folder, settings)
        checks += network_checks(hub)
    checks += machine_checks(folder, "auto" if settings is None else settings.device)
    if settings is not None:
        checks.append(Check("echo", lambda: check_echo(folder, hub), ECHO_S))
    checks.append(Check("service", lambda: check_service(folder)))
    return [first, *run_checks(checks)]


def check_echo(folder: Path, hub: HubAddress) -> Row:
    """Whether the hub knows this site, asked by the road that orders take."""
    if not hub.certificate_file.exists():
        return failed(
            "echo",
            "not tried: the site has no certificate to show",
            "install the join kit: `fedct client install`",
        )
    key = read_ec_key(folder / NODE_KEY)
    began = time.monotonic()
    echo(hub, key)
    took_ms = 1000 * (time.monotonic() - began)
    return passed(
        "echo", f"the hub knows certificate and node key; answered in {took_ms:.0f} ms"
    )


def check_service(folder: Path) -> Row:
    """Whether the service runs and has its place at the hub."""
    try:
        activity = control_calls.status(folder).activity
    except control_calls.NotRunningError:
        return warned("service", "not started", "`fedct client start`")
    except ControlError as error:
        return refused("service", error)
    if activity is None or activity.doing == "starting":
        return warned(
            "service",
            "started, and still on its way to the hub",
            "wait a minute, then look into logs/service.log in the site's folder",
        )
    return passed("service", f"started, and {activity.doing}")
