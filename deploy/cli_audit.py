"""The verbs by which what left a hospital is shown and checked, at each end.

The engineer reads the site's own log; the coordinator says, signed, how much of it the
hub has seen, so that neither has to take the other's word.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli_options import Format, FormatOption

if TYPE_CHECKING:
    from client.audit import Log
    from common.signing import Mark

site_app = typer.Typer()
hub_app = typer.Typer()


@site_app.command("audit")
def client_audit(
    site: Annotated[Path, typer.Argument(help="The hospital's folder.")],
    last: Annotated[int, typer.Option(min=1, help="Show so many lines.")] = 20,
    against: Annotated[
        Path | None,
        typer.Option(help="A receipt of the hub, which shows whether lines were cut."),
    ] = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Show all that left and why it might, and check that nothing of it was changed.

    Exits with 23 and names the line if the log was changed, reordered or cut.

    Example: `fedct client audit site --last 100 --against charite.receipt.json`
    """
    from client.audit import read_audit
    from deploy.cli_client import check_site
    from deploy.site_tables import print_audit

    check_site(site)
    log = read_audit(site)
    broken = log.broken
    if broken is None and against is not None:
        broken = _cut(site, against, log)
    if output_format is Format.JSON:
        lines = [line.model_dump(mode="json") for line in log.lines[-last:]]
        found = {"lines": lines, "count": len(log.lines), "last_hash": log.head}
        typer.echo(json.dumps({**found, "broken": broken}, indent=1))
    else:
        print_audit(log.lines[-last:])
        if broken is None:
            typer.echo(f"OK: {len(log.lines)} lines, last hash {log.head}")
    _raise(broken, "find out who changed it, and move it away to go on")


@hub_app.command("audit")
def server_audit(
    hub: Annotated[Path, typer.Argument(help="The hub's folder.")],
    site: Annotated[str, typer.Argument(help="The site's name.")],
    log: Annotated[
        Path | None, typer.Option(help="A copy of the site's audit.jsonl, to check.")
    ] = None,
    receipt: Annotated[
        Path | None, typer.Option(help="Write what was seen here, signed by the hub.")
    ] = None,
    output_format: FormatOption = Format.TEXT,
) -> None:
    """Say how much of a site's audit log the hub has seen; check a copy of it.

    Exits with 23 and names the line if the copy is not the log that the hub has seen,
    and with 2 if there is nothing yet to hold it against or write a receipt for.

    Example: `fedct server audit hub charite --receipt charite.receipt.json`
    """
    from common.durable import write_whole
    from common.errors import UsageError
    from server.hub import read_hub_file
    from server.register import entry_of
    from server.witness import receipt_for, seen

    read_hub_file(hub)
    entry_of(hub, site)  # or there is no such site
    found, signed = seen(hub, site), receipt_for(hub, site)
    count, broken = None, None
    if log is not None:
        count, broken = _check_copy(hub, site, log, [one.mark for one in found])
        if broken is None and not found:
            raise UsageError(
                f"hub has seen no answer of {site!r}, expected some to hold {count} "
                "lines against: whether any is missing can't be said. If one has "
                f"counted, put witness/{site}.jsonl back from a backup; else ask again "
                "when one has"
            )
    if receipt is not None and signed is not None:
        write_whole(receipt, signed.model_dump_json(indent=1).encode())
    if output_format is Format.JSON:
        last = None if signed is None else signed.model_dump(mode="json")
        said = {"site": site, "seen": len(found), "last": last}
        typer.echo(json.dumps({**said, "lines": count, "broken": broken}, indent=1))
    else:
        typer.echo(f"{site}: {len(found)} answers seen", nl=signed is None)
        if signed is not None:
            at = f"{signed.seen.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
            typer.echo(f"; line {signed.number} at {at}, hash {signed.hash}")
        if count is not None and broken is None:
            typer.echo(f"OK: {count} lines, none missing that the hub has seen")
    _raise(broken, f"let {site} run `fedct client audit`, and find out who changed it")
    if receipt is not None and signed is None:
        raise UsageError(
            f"hub has seen no answer of {site!r} yet, expected one to write a receipt "
            "for; ask again when a round has counted"
        )


def _check_copy(
    hub: Path, site: str, log: Path, marks: "list[Mark]"
) -> tuple[int, str | None]:
    """How many lines a copy of a site's log has, and what is wrong with it."""
    from client.audit import missing, read_log
    from common.signing import public_from_text
    from server.register import verify_key_of

    copy = read_log(log, public_from_text(verify_key_of(hub, site)))
    if copy.broken is not None and not copy.lines:
        _check_owner(hub, site, log)
    return len(copy.lines), copy.broken or missing(copy, marks)


def _check_owner(hub: Path, site: str, log: Path) -> None:
    """See that a log is not simply another site's."""
    from client.audit import read_log
    from common.errors import UsageError
    from common.signing import public_from_text
    from server.register import read_register

    for name, entry in read_register(hub).latest().items():
        if read_log(log, public_from_text(entry.verify_key)).lines:
            raise UsageError(
                f"option --log got the audit log of {name!r}, expected that of "
                f"{site!r}; give the right copy, or check it as that of {name!r}"
            )


def _cut(site: Path, against: Path, log: "Log") -> str | None:
    """What the hub has seen and the log lacks."""
    from client.audit import missing
    from client.install import read_membership
    from common.errors import StoreError
    from common.receipt import read_receipt

    member = read_membership(site, datetime.now(UTC))
    if member.order_key is None:
        raise StoreError(
            "site has a join kit without the hub's signing key, expected a kit of the "
            "hub's present version; run `fedct client renew`"
        )
    try:
        content = against.read_bytes()
    except OSError as error:
        raise StoreError(
            f"receipt {against.name!r} can't be read ({error.strerror}), expected the "
            "file that `fedct server audit --receipt` wrote"
        ) from error
    receipt = read_receipt(content, member.settings.name, member.order_key)
    return missing(log, [receipt.mark])


def _raise(broken: str | None, advice: str) -> None:
    from common.errors import StoreError

    if broken is not None:
        raise StoreError(f"audit.jsonl was changed: {broken}; keep the file, {advice}")
