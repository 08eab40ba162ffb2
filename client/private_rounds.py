"""Which rounds under differential privacy have left this hospital, by its audit log.

A memory of what was spent that the ledger does not hold itself: every such round must
be in the ledger (`client.ledger`), or the ledger is not the last one.

An audit log that was altered is no memory, so nothing is paid for until somebody has
looked.

Not covered here: a rehearsal, which keeps no audit log.
"""

from functools import lru_cache
from pathlib import Path

from pydantic import ValidationError

from client.audit import AUDIT, Line, check_log
from client.desk import plan_of
from common.errors import FedctError, StoreError

_TRAINED = b'"kind":"train"'
"""What a line of an update has in it."""


def private_rounds(folder: Path) -> frozenset[tuple[str, int]]:
    """Run and round of each update that left under a plan with `[privacy.dp]`.

    Raises:
        StoreError: The audit log was altered or can't be read. `code` is "audit".
        JoinError: The site's key can't be read.
    """
    check_log(folder)
    return frozenset(
        (line.run, line.round)
        for line in _updates_left(folder / AUDIT)
        if line.run is not None and line.round is not None and line.plan is not None
        if _is_private(folder, line.plan)
    )


def _updates_left(path: Path) -> list[Line]:
    """The lines of updates, in the clear or masked; without those that make no sense.

    An error has a code, and no update has.
    """
    try:
        texts = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise StoreError(
            f"site can't read {path.name} ({error.strerror}), expected a file of its "
            "own user",
            code="audit",
        ) from error
    lines = (_line(text) for text in texts if _TRAINED in text)
    return [line for line in lines if line is not None and line.code == 0]


def _line(text: bytes) -> Line | None:
    try:
        return Line.model_validate_json(text)
    except ValidationError:
        return None


@lru_cache(maxsize=1024)
def _is_private(folder: Path, digest: str) -> bool:
    """Whether a plan has DP; one that the site lost counts as without."""
    try:
        return plan_of(folder, digest).privacy.dp is not None
    except FedctError:
        return False
