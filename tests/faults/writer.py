"""A hub's rounds as `server.rounds` writes them, without a federation.

    python -m tests.faults.writer FOLDER ROUNDS

Prints how many syncs were done when each round was committed.
"""

import os
import sys
from pathlib import Path

import numpy as np

from server.checkpoint import prune, write_checkpoint
from server.journal import Entry, append, open_journal
from server.record import RoundRecord
from server.run_files import JOURNAL_FILE
from server.server_step import ServerState
from tests.faults.powerloss import SYNCS, count_syncs


def write_round(folder: Path, number: int, floats: int = 1000) -> None:
    """Checkpoint, commit, prune; the model holds the round's number everywhere."""
    checkpoints = folder / "checkpoints"
    with open_journal(folder / JOURNAL_FILE, {}) as journal:
        model = np.full(floats, number, dtype=np.float32)
        sha256 = write_checkpoint(checkpoints, number, ServerState(model))
        record = RoundRecord(
            number=number, outcome="closed", sites=[], model_digest="", seconds=0.0
        )
        append(journal, Entry(number, sha256, record))
    prune(checkpoints, {number, number - 1})


def main() -> None:
    for number in range(1, int(sys.argv[2]) + 1):
        write_round(Path(sys.argv[1]), number)
        print(count_syncs(Path(os.environ[SYNCS])))


if __name__ == "__main__":
    main()
