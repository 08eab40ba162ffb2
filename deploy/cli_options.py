"""Options that several verbs of `fedct` share."""

from enum import StrEnum
from typing import Annotated

import typer


class Format(StrEnum):
    """How something is printed."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="Print for people or for programs.")
]
