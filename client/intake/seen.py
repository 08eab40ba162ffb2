"""What intake said of a source last time, for as long as nothing has changed.

A hospital's service restarts more often than its folder changes, and decoding a
thousand series again costs an hour. The verdicts are kept together with a fingerprint
of all they depend on: every file's name, size and times, the part of the plan that
judges, and the code that judges. If one bit of it differs, intake starts anew; cases
whose voxels are the same are then still found in the store.
"""

import functools
import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import client.intake
import client.labels
import common.case
import common.preprocess
import common.tasks
import common.volume
from client.intake.table import row_of, verdict_of
from client.intake.verdict import SeriesVerdict
from client.private_files import write_private
from common.errors import IntakeError
from common.plan import Plan
from common.preprocess import recipe_digest
from common.sources import Source

SEEN_FILE = "intake.json"
_PACKAGES = (client.intake, client.labels, common.tasks)
_MODULES = (common.case, common.preprocess, common.volume)
"""With the packages: the code that verdicts and prepared cases come from."""

Outcome = tuple[SeriesVerdict, str | None]
"""A row of the table and the store's key of its case, None where it was refused."""


def fingerprint(source: Source, plan: Plan) -> str:
    """sha256 (hex) of all that verdicts depend on; no file is opened.

    Raises:
        IntakeError: The source is absent or can't be listed.
    """
    digest = hashlib.sha256()
    about = [source.format, source.where, recipe_digest(plan), plan.patch, _judges()]
    digest.update(json.dumps(about, sort_keys=True).encode())
    try:
        for line in sorted(_listing(Path(source.source))):
            digest.update(line)
    except OSError as error:
        raise IntakeError(
            f"intake got a {source.format} source that can't be listed "
            f"({error.strerror}), expected a readable folder or file; check the path"
        ) from error
    return digest.hexdigest()


def remember(folder: Path, mark: str, outcomes: Sequence[Outcome]) -> None:
    """Keep the outcomes of a source with this fingerprint."""
    rows = [{"row": row_of(verdict), "key": key} for verdict, key in outcomes]
    content = json.dumps({"fingerprint": mark, "outcomes": rows})
    write_private(folder / SEEN_FILE, content.encode())


def recall(folder: Path, mark: str) -> list[Outcome] | None:
    """The outcomes, if the fingerprint is the same as then; else None."""
    try:
        content = json.loads((folder / SEEN_FILE).read_bytes())
        if content["fingerprint"] != mark:
            return None
        return [(verdict_of(o["row"]), o["key"]) for o in content["outcomes"]]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # none yet, or damaged: intake makes it anew


def _listing(root: Path) -> Iterator[bytes]:
    """A line for every file below the root (or for the root, if it is a file)."""
    if not root.is_dir():
        yield _line(b"", root.stat())
        return
    folders = [os.fsencode(root)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    name = os.path.relpath(entry.path, os.fsencode(root))
                    yield _line(name, entry.stat(follow_symlinks=False))


def _line(name: bytes, stat: os.stat_result) -> bytes:
    numbers = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
    return name + b"\x00" + numbers.encode() + b"\n"


@functools.cache
def _judges() -> str:
    """sha256 (hex) of the modules that decide on verdicts and prepared cases."""
    paths = [Path(inspect.getfile(module)) for module in _MODULES]
    for package in _PACKAGES:
        paths += sorted(Path(package.__path__[0]).glob("*.py"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
