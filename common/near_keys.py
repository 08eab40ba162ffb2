"""For a key that a settings file can't have: the one that was probably meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel

_ALIKE = 0.75
"""Likeness from which on a name is taken for a slip (`difflib`, 0 to 1)."""


def meant(kind: type[BaseModel], path: Sequence[str | int]) -> str:
    """In words, such as ", did you mean training.steps?"; nothing if no key is near.

    Args:
        kind: What the file holds.
        path: Of the unknown key; its last part is its name.
    """
    own = ".".join(part for part in path if isinstance(part, str))
    # A key of the other kind of task is not to be had in this one.
    keys = [key for key in dict.fromkeys(_keys_of(kind, "")) if key != own]
    table = "".join(f"{part}." for part in path[:-1] if isinstance(part, str))
    name = str(path[-1])
    here = {key.removeprefix(table): key for key in keys if key.startswith(table)}
    found = [key for key in keys if key.rpartition(".")[2] == name]  # in another table
    if len(found) != 1:
        near = difflib.get_close_matches(name, here, n=1, cutoff=_ALIKE)
        found = [here[one] for one in near]
    return f", did you mean {found[0]}?" if found else ""


def _keys_of(annotation: object, above: str) -> Iterator[str]:
    """Dotted names of all keys and tables in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield f"{above}{name}"
            yield from _keys_of(field.annotation, f"{above}{name}.")
        return
    for part in get_args(annotation):
        yield from _keys_of(part, above)
