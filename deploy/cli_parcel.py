"""The verbs for a hospital that may not open a line: orders and answers as files.

The coordinator gives a run such sites with `fedct server run --parcel`, and brings each
order from the hub's `parcels/out/` to its site; the engineer has it worked on; what
comes of it is brought back. One verb at each end.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

hub_app = typer.Typer()
site_app = typer.Typer()


@hub_app.command("import")
def server_import(
    hub: Annotated[Path, typer.Argument(help="The hub's folder.")],
    answers: Annotated[list[Path], typer.Argument(help="What the sites wrote.")],
) -> None:
    """Take in answers that were brought back as files; the hub may run or not.

    A file that does not count is refused and changes nothing; the others are taken.
    Files put into HUB/parcels/in are taken too while their run goes on.

    Example: `fedct server import hub /media/stick/tum-lung-1-2-train.answer`
    """
    from common.errors import ContributionError
    from deploy.run_state import RUNS
    from server.hub import read_hub_file
    from server.parcel_taking import take

    read_hub_file(hub)
    refused: list[ContributionError] = []
    for path in answers:
        try:
            run, order = take(hub, hub / RUNS, path, datetime.now(UTC))
        except ContributionError as error:
            refused.append(error)
        else:
            typer.echo(f"took the answer of {order.site} in {run.name}: {order.words}")
    for one in refused[:-1]:
        typer.echo(f"fedct: {one}", err=True)
    if refused:
        raise refused[-1]


@site_app.command("work")
def client_work(
    site: Annotated[Path, typer.Argument(help="The hospital's folder.")],
    order: Annotated[Path, typer.Argument(help="The order that was brought here.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The answer to write. [default: beside the order]"),
    ] = None,
    decline: Annotated[
        bool,
        typer.Option(
            "--decline", help="If it can't be done, write that as the answer."
        ),
    ] = False,
) -> None:
    """Work on an order that came as a file, and write the answer to bring back.

    The rules are those of a live line: the plan has to be approved, nothing is done
    while the site is paused, and what leaves stands in `fedct client audit`. It needs
    no service and no network. The answer is sealed: only the hub can read it.

    Example: `fedct client work site /media/stick/tum-lung-1-2-train.order`
    """
    from common.errors import UsageError
    from deploy.parcel_work import work_parcel

    if order.is_dir():
        raise UsageError(
            f"work got {str(order)!r} as the order, which is a folder, expected a "
            "file; name the .order in it that the coordinator brought"
        )
    path = out or order.with_suffix(".answer")
    if path.is_dir():
        path = path / order.with_suffix(".answer").name
    if path.resolve() == order.resolve():
        raise UsageError("work got --out that is the order, expected another file")
    said = work_parcel(site.resolve(), order, path, decline=decline)
    typer.echo(f"{said}; bring {path} to the coordinator")
