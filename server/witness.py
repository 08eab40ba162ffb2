"""What the hub has seen of the sites' audit logs: `witness/SITE.jsonl` in its folder.

One line for each answer that counted, with number and hash of that answer's line in the
site's own log, which the site signed with the answer. Who cuts lines off his log, or
writes it anew, can't take that back. The hub signs the last one as a receipt for who
asks (`common.receipt`).

Not covered here: answers that never reached the hub, and refusals, which nobody signs;
both stand in the site's log, below the next answer's mark.
"""

import logging
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from common.durable import sync_folder
from common.errors import StoreError
from common.receipt import Receipt, signed
from common.signing import Mark
from server.hub import PRIVATE, order_key

WITNESS: Final = "witness"
_BEGIN = b'{"number":'
"""How each line begins."""
_END_BYTES = 1024
"""Longer than three lines."""

log = logging.getLogger("fedct.run")


class Seen(BaseModel):
    """A line of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    number: int
    """Of the line in the site's log."""
    hash: str
    """Of that line."""
    at: AwareDatetime
    """When the answer was taken, by the hub's clock."""

    @property
    def mark(self) -> Mark:
        """The line of the site's log."""
        return Mark(self.number, self.hash)


def note_mark(hub: Path, site: str, mark: Mark, now: datetime) -> None:
    """Keep what an answer says of its site's log, durably; warn if that went back.

    Raises:
        OSError: It can't be written.
    """
    path = _path(hub, site)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    is_new = not path.exists()
    end = b"" if is_new else _end_of(path)
    if (last := _last(end)) is not None and mark.number <= last.number:
        log.warning("audit log of a site went back", extra={"site": site})
    line = Seen(number=mark.number, hash=mark.hash, at=now).model_dump_json()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, PRIVATE), "wb") as file:
        rest = end.rpartition(b"\n")[2]
        if _is_torn(rest):
            file.truncate(os.fstat(file.fileno()).st_size - len(rest))
            rest = b""
        file.write(b"\n" * (rest != b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def seen(hub: Path, site: str) -> list[Seen]:
    """All that was seen of a site's log, in the order in which it came.

    Raises:
        StoreError: The file can't be read, or a line of it is damaged, but for a last
            one that a power failure cut.
    """
    try:
        *lines, rest = _path(hub, site).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(
            f"hub can't read {WITNESS}/{site}.jsonl ({error.strerror}), expected a "
            "file of its own user"
        ) from error
    if rest and not _is_torn(rest):  # a torn one's answer was asked for again
        lines.append(rest)
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Seen.model_validate_json(line))
        except ValidationError as error:
            raise StoreError(
                f"hub has a damaged line {number} in {WITNESS}/{site}.jsonl, expected "
                "what it wrote; put it back from a backup"
            ) from error
    return found


def receipt_for(hub: Path, site: str) -> Receipt | None:
    """The hub's signature under the last that it has seen; none if that is nothing."""
    found = seen(hub, site)
    if not found:
        return None
    last = found[-1]
    receipt = Receipt(site=site, number=last.number, hash=last.hash, seen=last.at)
    return signed(receipt, order_key(hub))


def _end_of(path: Path) -> bytes:
    """The last lines of a file that grows with every answer."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        return file.read()


def _is_torn(rest: bytes) -> bool:
    """Whether what follows the last line break is the beginning of a line of ours."""
    begins = _BEGIN.startswith(rest[: len(_BEGIN)])
    return rest != b"" and begins and not rest.endswith(b"}")


def _last(end: bytes) -> Seen | None:
    """The last whole line."""
    for line in reversed(end.split(b"\n")):
        with suppress(ValidationError):
            return Seen.model_validate_json(line)
    return None


def _path(hub: Path, site: str) -> Path:
    return hub / WITNESS / f"{site}.jsonl"
