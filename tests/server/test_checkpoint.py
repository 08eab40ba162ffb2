import subprocess
import sys
import time

import numpy as np
import pytest

from common.durable import write_whole
from common.errors import RunError
from server.checkpoint import prune, read_checkpoint, write_checkpoint
from server.server_step import ServerState

STATE = ServerState(np.arange(5, dtype=np.float32), first=np.ones(5, np.float32))


def test_a_checkpoint_reads_back_to_the_bit(tmp_path):
    sha = write_checkpoint(tmp_path, 3, STATE)
    state = read_checkpoint(tmp_path, 3, sha)
    assert state.model.tobytes() == STATE.model.tobytes()
    assert state.first.tobytes() == STATE.first.tobytes()
    assert state.second is None


@pytest.mark.parametrize("damage", [b"", b"x", None])
def test_a_lost_or_foreign_checkpoint_is_refused(tmp_path, damage):
    sha = write_checkpoint(tmp_path, 3, STATE)
    path = next(tmp_path.iterdir())
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises(RunError, match="checkpoint of round 3"):
        read_checkpoint(tmp_path, 3, sha)


def test_pruning_keeps_what_it_is_told(tmp_path):
    for number in range(4):
        write_checkpoint(tmp_path, number, STATE)
    (tmp_path / "round-000004.safetensors.77.tmp").touch()  # of a killed process
    prune(tmp_path, {1, 3})
    assert sorted(p.stem[-1] for p in tmp_path.iterdir()) == ["1", "3"]


WRITER = """
import itertools, sys
from pathlib import Path
from common.durable import write_whole
for n in itertools.count():
    write_whole(Path(sys.argv[1]), bytes([n % 256]) * 3_000_000)
"""


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"\0" * 3_000_000)
    for pause in (0.3, 0.35, 0.4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        time.sleep(pause)
        writer.kill()
        writer.wait()
        content = path.read_bytes()
        assert len(content) == 3_000_000
        assert len(set(content)) == 1
