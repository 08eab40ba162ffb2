"""How often an order was begun by a process that died: none may kill a site for ever.

A process that the kernel kills for its memory, or that crashes inside a library, can't
say so. It is started again, the hub asks again, and it would die again. So an order
that is begun is noted on the disk until it ends, well or badly; one whose note is found
`MOST` times was never ended, and is refused instead. The round then goes on without
this site, and the next order is tried anew.

Not covered here: memory that runs out in a way that Python can tell (`client.app`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from client.desk_file import DESK
from client.private_files import FOLDER_MODE, write_private
from common.errors import StoreError, SupervisorError

AT_WORK = "at_work.json"
MOST = 3
"""Tries of one order: one for whoever pulled a plug, one more to be sure."""


class AtWork(BaseModel):
    """The content of `at_work.json`: an order that was begun and has not ended."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    doing: str
    """What the order asks for."""
    run: str
    """Id of its run."""
    round: int | None
    """Its round; unset for an introduction."""
    begun: int
    """How often."""


@contextmanager
def attempt(folder: Path, doing: str, run: str, number: int | None) -> Iterator[None]:
    """Note an order for as long as the body works on it.

    Args:
        folder: The site's folder.
        doing: What the order asks for.
        run: Id of its run.
        number: Its round.

    Raises:
        SupervisorError: The process died in it too often; the body was not entered.
        StoreError: It can't be noted; the body was not entered.
    """
    path = folder / DESK / AT_WORK
    order = AtWork(doing=doing, run=run, round=number, begun=1)
    if (left := _left(path)) is not None and left.model_copy(
        update={"begun": 1}
    ) == order:
        order = order.model_copy(update={"begun": left.begun + 1})
    try:
        if order.begun > MOST:
            path.unlink()
            raise SupervisorError(
                f"site's service died {MOST} times in the middle of this order, "
                "expected it to last; is its machine out of memory? The hospital's "
                "engineer finds more in the service's log and the system's",
                code="died",
            )
        path.parent.mkdir(mode=FOLDER_MODE, exist_ok=True)
        write_private(path, order.model_dump_json().encode())
    except OSError as error:
        raise StoreError(
            f"site can't note the order that it begins ({error.strerror}), expected a "
            "disk with room; nothing was done",
            code="note",
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _left(path: Path) -> AtWork | None:
    """The order that the process before this one did not end."""
    try:
        return AtWork.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
