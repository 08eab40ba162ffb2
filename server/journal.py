"""The run's memory: one SQLite row per round, each written as one transaction.

A round exists when its row does. Whatever instant the server dies, a resumed run reads
the last row, loads the checkpoint it names, and asks for the next round anew; the sites
go on from the state that the row says (`client.state`), so nothing counts twice.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from common.errors import RunError
from server.record import RoundRecord

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY,
    checkpoint INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True)
class Entry:
    """One row: a round and the checkpoint that holds afterwards."""

    checkpoint: int
    """Round of the checkpoint (an earlier one if this round was void)."""
    sha256: str
    """Digest of the checkpoint's file."""
    record: RoundRecord
    """What happened."""


@contextmanager
def open_journal(path: Path, identity: dict[str, str]) -> Iterator[sqlite3.Connection]:
    """Open or create the journal of a run.

    Args:
        path: The file; its folder exists.
        identity: What the run is (plan digest, layout digest); must agree with what
            an existing journal says.

    Raises:
        RunError: The file is no journal, or that of another run.
        OSError: The disk is full, as for any other file; the last round stands.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        for key, value in identity.items():
            connection.execute(
                "INSERT INTO run VALUES (?, ?) ON CONFLICT DO NOTHING", (key, value)
            )
            found = connection.execute(
                "SELECT value FROM run WHERE key = ?", (key,)
            ).fetchone()[0]
            if found != value:
                raise RunError(
                    f"run folder belongs to another run: its {key} is {found[:12]}, "
                    f"this one's is {value[:12]}; choose another --out"
                )
        yield connection
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise RunError(
            f"journal can't be used ({error}), expected the SQLite file of a run; "
            "restore it from a backup, or choose another --out"
        ) from error
    finally:
        connection.close()


def read_journal(path: Path) -> tuple[dict[str, str], list[Entry]]:
    """Identity and rounds of a run's journal, which is left as it is.

    Raises:
        RunError: There is none, or it is damaged.
    """
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as journal:
            identity = dict(journal.execute("SELECT key, value FROM run"))
            return identity, entries(journal)
    except (sqlite3.Error, ValidationError) as error:
        raise RunError(
            f"journal of run {path.parent.name!r} can't be read "
            f"({type(error).__name__}), expected the SQLite file of a run; restore it "
            "from a backup"
        ) from error


def append(journal: sqlite3.Connection, entry: Entry) -> None:
    """Write a round down: from here on it counts."""
    journal.execute(
        "INSERT INTO round VALUES (?, ?, ?, ?)",
        (
            entry.record.number,
            entry.checkpoint,
            entry.sha256,
            entry.record.model_dump_json(),
        ),
    )


def take_back(journal: sqlite3.Connection, *, keep: int) -> None:
    """Drop the rounds after the first `keep`, whose checkpoint was lost."""
    journal.execute("DELETE FROM round WHERE number > ?", (keep,))


def entries(journal: sqlite3.Connection) -> list[Entry]:
    """All rounds so far, in order."""
    rows = journal.execute(
        "SELECT checkpoint, sha256, record FROM round ORDER BY number"
    )
    return [
        Entry(checkpoint, sha256, RoundRecord.model_validate_json(record))
        for checkpoint, sha256, record in rows
    ]
