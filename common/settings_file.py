"""Reading the TOML files of a hub and a site, with errors that name key and line."""

import re
import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from common.errors import JoinError
from common.near_keys import meant
from common.plan_file import key_on, line_of

AnySettings = TypeVar("AnySettings", bound=BaseModel)


def read_settings(path: Path, kind: type[AnySettings], maker: str) -> AnySettings:
    """The settings in a file.

    Args:
        path: A TOML file.
        kind: What it holds.
        maker: The command that makes such a file.

    Raises:
        JoinError: It is absent, not TOML, or not such settings; every complaint is
            listed with key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JoinError(
            f"folder has no readable {path.name} ({type(error).__name__}), expected "
            f"one that `{maker}` made; give the right folder"
        ) from error
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise JoinError(
            f"{path.name} is not valid TOML, mend it:\n  {_unreadable(text, error)}"
        ) from error
    except ValidationError as error:
        complaints = [_complaint(text, dict(e), kind) for e in error.errors()]
        raise JoinError(
            f"{path.name} is not valid, {len(complaints)} to mend:\n  "
            + "\n  ".join(complaints)
        ) from error


def _unreadable(text: str, error: tomllib.TOMLDecodeError) -> str:
    """One line: where, by which key if there is one, and what keeps it from being TOML.

    Values are not repeated; only a parser that understands them may show them.
    """
    said, number = str(error), re.search(r" \(at line (\d+), column \d+\)$", str(error))
    if number is None:
        return said
    key = key_on(text.split("\n")[int(number[1]) - 1])
    said = said.removesuffix(number[0])
    if said == "Cannot overwrite a value":
        said = "stands there a second time; take one of the two lines out"
    elif table := re.fullmatch(r"Cannot declare \((.+?),?\) twice", said):
        name = ".".join(part.strip("' ") for part in table[1].split(","))
        said = f"table [{name}] stands there a second time; put both into one"
    return f"line {number[1]}: {key + ': ' if key else ''}{said}"


def _complaint(text: str, error: dict[str, object], kind: type[BaseModel]) -> str:
    """One line: where, what was found, what was expected."""
    path = error["loc"]
    assert isinstance(path, tuple)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key{meant(kind, path)}"
    elif error["type"] == "missing":
        message = "is missing"
    elif isinstance(error.get("input"), str | int | float | bool):
        message += f", got {error['input']!r}"
    where = ".".join(str(part) for part in path)
    return f"line {line_of(text, list(path))}: {where + ': ' if where else ''}{message}"
