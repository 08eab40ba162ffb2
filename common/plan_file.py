"""Reading a plan from TOML, with errors that name the key and its line."""

import re
import tomllib
from pathlib import Path

import tomli_w
from pydantic import ValidationError

from common.errors import PlanError
from common.near_keys import meant
from common.plan import Plan

_TABLE = re.compile(r"^\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\-\"'.]+)\s*=")


def load_plan(path: Path) -> Plan:
    """Read and validate a plan.

    Raises:
        PlanError: The file is absent, not TOML, or not a plan; every complaint is
            listed with key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise PlanError(
            f"plan {path.name!r} can't be read ({why}), expected a TOML file in UTF-8; "
            "write one with `fedct plan new`"
        ) from error
    return parse_plan(text, path.name)


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Validate the text of a plan; `name` is what errors call it."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"plan {name!r} is not valid TOML: {error}") from error
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        complaints = [c for e in error.errors() for c in _complaints(text, dict(e))]
        raise PlanError(
            f"plan {name!r} is not valid, {len(complaints)} to mend:\n  "
            + "\n  ".join(complaints)
            + "\nsee `fedct plan schema` for every key"
        ) from error


def plan_toml(plan: Plan, *, with_simulation: bool = True) -> str:
    """The effective plan as TOML: every key with its value, the hash on top.

    Args:
        plan: Any plan.
        with_simulation: Whether `[simulation]` is written. It holds paths of this
            machine, so what may be shown to others goes without it.
    """
    leave_out = None if with_simulation else {"simulation"}
    content = plan.model_dump(mode="json", exclude_none=True, exclude=leave_out)
    return f"# plan hash {plan.digest}\n\n{tomli_w.dumps(content)}"


def _complaints(text: str, error: dict[str, object]) -> list[str]:
    """One error as lines; what the plan as a whole does not allow may be several."""
    said = str(error["msg"]).removeprefix("Value error, ").splitlines()
    return [_complaint(text, error, message) for message in said]


def _complaint(text: str, error: dict[str, object], message: str) -> str:
    """One line: where, what was found, what was expected."""
    location = error["loc"]
    assert isinstance(location, tuple)
    # pydantic puts the chosen member of a union into the path; a TOML file has none.
    path = [part for part in location if part not in ("segmentation", "classification")]
    if error["type"] == "extra_forbidden":
        message = f"unknown key{meant(Plan, path)}"
    elif error["type"] == "missing":
        message = "is missing"
    elif isinstance(error.get("input"), str | int | float | bool):
        message += f", got {error['input']!r}"
    where = ".".join(str(part) for part in path)
    mentioned = re.search(r"\b([a-z]+)\.([a-z_]+)\b", message) if not path else None
    if mentioned:
        path = [mentioned[1], mentioned[2]]
    line = line_of(text, path)
    return f"line {line}: {where + ': ' if where else ''}{message}"


def key_on(line: str) -> str | None:
    """The key that a line of TOML sets, if it sets one."""
    found = _KEY.match(line)
    return found[1].strip("\"'") if found else None


def line_of(text: str, path: list[str | int]) -> int:
    """The line (from 1) that sets the key at `path`, or its nearest table, or 1."""
    best, best_depth = 1, 0
    table: list[str | int] = []
    arrays: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        here: list[str | int]
        if header := _TABLE.match(line):
            names = [part.strip("\"' ") for part in header[2].split(".")]
            table = list(names)
            if header[1] == "[[":
                index = arrays.get(tuple(names), -1) + 1
                arrays[tuple(names)] = index
                table.append(index)
            here = table
        elif key := key_on(line):
            here = table + [part.strip("\"'") for part in key.split(".")]
        else:
            continue
        depth = _shared(here, path)
        if depth == len(here) and depth > best_depth:
            best, best_depth = number, depth
    return best


def _shared(a: list[str | int], b: list[str | int]) -> int:
    depth = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        depth += 1
    return depth
