"""The verbs of `fedct` by which a hospital joins a hub: certificates and who has them.

`fedct server ...` is run by the coordinator on the hub, `fedct client ...` by the
engineer at the hospital. Two files go between them, and two fingerprints by phone.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_data import SourceFormat
from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:  # pydantic waits until a verb needs it
    from common.joining import Request

server_app = typer.Typer(
    no_args_is_help=True,
    help="The coordinator's verbs.\n\n"
    "Example: `fedct server init hub --name hub.example.org`",
)
client_app = typer.Typer(
    no_args_is_help=True,
    help="The hospital's verbs.\n\n"
    "Example: `fedct client install site charite.kit.json`",
)

HubArgument = Annotated[Path, typer.Argument(help="The hub's folder.")]
SiteArgument = Annotated[Path, typer.Argument(help="The hospital's folder.")]
ToldOption = Annotated[
    str | None,
    typer.Option("--fingerprint", help="As told by phone; without it you are asked."),
]


@server_app.command("init")
def server_init(
    hub: Annotated[Path, typer.Argument(help="Folder to make; empty or new.")],
    name: Annotated[
        str, typer.Option(help="DNS name or IP address by which hospitals reach it.")
    ],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Its one port.")] = 8443,
) -> None:
    """Make a hub's folder: its authority, its certificates, nobody let in.

    Example: `fedct server init hub --name hub.example.org --port 8443`
    """
    from common.certificates import fingerprint_of, grouped, host_of
    from server.authority import create_hub
    from server.hub import HubFile

    host_of(name)
    made = create_hub(hub, HubFile(name=name, port=port), _now())
    typer.echo(f"made the hub {made.settings.address} in {hub}")
    typer.echo(
        f"its fingerprint, to tell hospitals by phone:\n"
        f"  {grouped(fingerprint_of(made.authority))}"
    )


@server_app.command("enroll")
def server_enroll(
    hub: HubArgument,
    request: Annotated[Path, typer.Argument(help="The hospital's request file.")],
    days: Annotated[int, typer.Option(help="Life of its certificate, 1 to 397.")] = 90,
    fingerprint: ToldOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Kit file to write. [default: HUB/kits/NAME.kit.json]"),
    ] = None,
) -> None:
    """Let a hospital in, or renew its certificate: check, sign, write its join kit.

    New keys are taken only with their fingerprint, which the hospital reads out; the
    same keys need none.

    Example: `fedct server enroll hub charite.request.json`
    """
    from common.certificates import fingerprint_of, grouped
    from common.joining import read_exchanged
    from server.asked import read_request
    from server.enrol import enroll, is_known, remarks
    from server.hub import open_hub

    now = _now()
    opened = open_hub(hub, now)
    checked = read_request(read_exchanged(request))
    known = is_known(opened, checked)
    name = checked.request.name
    for remark in remarks(opened, checked, now):
        typer.echo(f"note: {remark}", err=True)
    if fingerprint is None and not known and _is_asked():
        typer.echo(
            f"request of {name}; its fingerprint:\n  {grouped(checked.fingerprint)}"
        )
        typer.confirm("Does the hospital read out the same?", abort=True)
        fingerprint = checked.fingerprint
    kit = enroll(opened, checked, fingerprint, days, now, out)
    typer.echo(f"{name} {'stays' if known else 'is let'} in; give it {kit}")
    typer.echo(
        f"the hub's fingerprint, to tell by phone:\n"
        f"  {grouped(fingerprint_of(opened.authority))}"
    )


@server_app.command("revoke")
def server_revoke(
    hub: HubArgument,
    site: Annotated[str, typer.Argument(help="Name of the site.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take back all certificates of a site, for good: its keys never come back.

    Example: `fedct server revoke hub charite`
    """
    from common.certificates import instant
    from server.hub import open_hub
    from server.register import entry_of
    from server.revocation import revoke

    now = _now()
    opened = open_hub(hub, now)
    entry_of(hub, site)
    if not yes:
        typer.confirm(f"Revoke {site} for good?", abort=True)
    entry = revoke(opened, site, now)
    typer.echo(f"revoked {site} at {instant(entry.revoked or now)}")


@server_app.command("renew")
def server_renew(hub: HubArgument) -> None:
    """Renew the hub's own certificates, with the name in hub.toml and the same keys.

    Example: `fedct server renew hub`
    """
    from common.certificates import instant
    from server.authority import certify_hub
    from server.hub import open_hub
    from server.revocation import refresh_crl

    now = _now()
    opened = open_hub(hub, now)
    end = certify_hub(opened, now)
    refresh_crl(opened, now)
    typer.echo(f"renewed the hub's certificates; they are good until {instant(end)}")


@server_app.command("sites")
def server_sites(hub: HubArgument, output_format: FormatOption = Format.TEXT) -> None:
    """List every site that was ever let in, and what its certificate is worth now.

    Example: `fedct server sites hub --format json`
    """
    from rich.console import Console
    from rich.table import Table

    from common.certificates import grouped, instant
    from deploy.twin_keys import read_twins
    from server.hub import read_hub_file
    from server.register import sites

    read_hub_file(hub)
    rows, twins = sites(hub, _now()), read_twins(hub, _now())
    alarms = {site: twin.sentence(site) for site, twin in twins.items()}
    if output_format is Format.JSON:
        listed = [
            {
                "name": row.name,
                "status": row.status,
                "not_after": row.not_after.isoformat(),
                "fingerprint": row.fingerprint,
                "alarm": alarms.get(row.name),
            }
            for row in rows
        ]
        typer.echo(json.dumps({"sites": listed}, indent=1))
        return
    if not rows:
        typer.echo("nobody was let in yet; see `fedct server enroll`")
        return
    table = Table("site", "status", "until", "fingerprint of its certificate")
    for row in rows:
        fingerprint = grouped(row.fingerprint)
        table.add_row(row.name, row.status, instant(row.not_after), fingerprint)
    Console().print(table)
    for alarm in alarms.values():
        typer.echo(f"ALARM: {alarm}")


@client_app.command("request")
def client_request(
    site: Annotated[Path, typer.Argument(help="Folder to make; empty or new.")],
    name: Annotated[
        str, typer.Option(help="Of the site: lower case letters, digits, hyphens.")
    ],
    hub: Annotated[str, typer.Option(help="Where the hub is reached, host:port.")],
    data: Annotated[Path, typer.Option(help="Where the images lie.")],
    source_format: Annotated[
        SourceFormat, typer.Option("--format", help="What the images are.")
    ] = SourceFormat.DICOM,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    proxy: Annotated[
        str | None, typer.Option(help="The hospital's HTTP proxy, http://host:port.")
    ] = None,
) -> None:
    """Make a hospital's folder with its keys, and a request to give to the hub.

    The keys never leave the folder. The request holds no secret.

    Example: `fedct client request site --name charite --hub hub.example.org:8443
    --data /data/ct`
    """
    from client.joining import create_site
    from client.site_file import new_settings

    settings = new_settings(name, hub, data, source_format.value, device, proxy)
    path, request = create_site(site, settings, _now())
    typer.echo(f"made the site {name} in {site}")
    _tell_request(path, request)


@client_app.command("install")
def client_install(
    site: SiteArgument,
    kit: Annotated[Path, typer.Argument(help="The join kit that the hub gave.")],
    fingerprint: ToldOption = None,
) -> None:
    """Take in the hub's join kit, if its fingerprint is the one told by phone.

    Example: `fedct client install site charite.kit.json`
    """
    from client.install import install, is_pinned, read_kit
    from client.site_file import read_site_file
    from common.certificates import grouped, instant
    from common.joining import read_exchanged

    read_site_file(site)
    checked = read_kit(read_exchanged(kit))
    if fingerprint is None and not is_pinned(site, checked) and _is_asked():
        typer.echo(
            f"kit of the hub {checked.kit.hub.name}; its fingerprint:\n"
            f"  {grouped(checked.fingerprint)}"
        )
        typer.confirm("Did the coordinator tell you the same?", abort=True)
        fingerprint = checked.fingerprint
    joined = install(site, checked, fingerprint, _now())
    typer.echo(
        f"{joined.settings.name} has joined the hub {joined.hub.name}; its "
        f"certificate is good until {instant(joined.not_after)}"
    )


@client_app.command("renew")
def client_renew(site: SiteArgument) -> None:
    """Write a request for the next certificate; keys and membership stay.

    Example: `fedct client renew site`
    """
    from client.joining import renew

    path, request = renew(site, _now())
    _tell_request(path, request)


def _tell_request(path: Path, request: "Request") -> None:
    """What to do with a request, and its fingerprint."""
    from common.certificates import grouped
    from common.joining import request_fingerprint

    typer.echo(f"give {path} to the hub's coordinator; it holds no secret")
    typer.echo(
        f"its fingerprint, to read out by phone:\n"
        f"  {grouped(request_fingerprint(request))}"
    )


def _now() -> datetime:
    return datetime.now(UTC)


def _is_asked() -> bool:
    """Whether a person sits here, who can compare and answer."""
    return sys.stdin.isatty()
