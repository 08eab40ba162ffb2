"""Options that several verbs of `fedct` share."""

from enum import StrEnum
from typing import Annotated

import typer

from common.errors import UsageError


class Format(StrEnum):
    """How something is printed."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="Print for people or for programs.")
]
WhereOption = Annotated[
    list[str] | None,
    typer.Option(help="COLUMN=VALUE, for pictures: only these rows."),
]


def parse_where(where: list[str] | None) -> dict[str, str]:
    """Column to value, from what `WhereOption` gives."""
    for item in where or []:
        if "=" not in item:
            raise UsageError(f"option --where got {item!r}, expected COLUMN=VALUE")
    return dict(item.split("=", 1) for item in where or [])
