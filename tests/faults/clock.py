"""A machine whose clock is wrong: whole processes are told another time of day.

`clock.c` stands before the C library (LD_PRELOAD), so Python, OpenSSL and all else in a
process believe it. Debian's libfaketime would do, but its 0.9.10 breaks Python's sleep.
"""

import subprocess
from pathlib import Path

from tests.faults.powerloss import COMPILER

SOURCE = Path(__file__).with_suffix(".c")
_OFF = "FEDCT_FAULTS_CLOCK_S"


def wrong_clock(folder: Path, hours: float) -> dict[str, str]:
    """The environment of a process whose clock is so many hours ahead.

    Args:
        folder: Where the library is kept.
        hours: Negative: behind.
    """
    library = folder / "clock.so"
    if not library.exists():
        assert COMPILER is not None
        flags = ("-shared", "-fPIC", "-O1", "-Wall")
        subprocess.run([COMPILER, *flags, "-o", library, SOURCE], check=True)
    return {"LD_PRELOAD": str(library), _OFF: str(round(hours * 3600))}
