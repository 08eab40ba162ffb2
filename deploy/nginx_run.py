"""Starting, testing and reloading nginx.

It runs in the foreground under our supervisor, as the user who started it (or, if that
was root, the one who owns the folder), and touches no file outside its folder. SIGHUP
makes it read configuration, certificates and revocation list again: new workers begin,
the old ones finish what is under way within their time.

A killed nginx leaves its workers behind, holding the port; so what is started is not
nginx but this module, which ends such workers and then becomes nginx.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from common.errors import TransportError

CONFIG: Final = "nginx.conf"
PID_FILE: Final = "nginx.pid"
_PATIENCE_S: Final = 5.0


def check(folder: Path, config: str = CONFIG) -> None:
    """Let nginx read a configuration with all that it names, without starting it.

    Raises:
        TransportError: It is absent or says no.
    """
    argv = [*_nginx(folder, config), "-t", "-q"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        emergency = re.search(r"\[emerg\] (?:\d+#\d+: )?(.+)", done.stderr)
        why = emergency[1] if emergency else done.stderr.strip()
        raise TransportError(
            f"nginx refused its configuration ({why}), expected "
            "certificates, keys and a port that it may use; mend that and start again"
        )


def command(folder: Path) -> tuple[str, ...]:
    """What a supervisor runs: nginx in the foreground, SIGTERM to end it at once."""
    return (sys.executable, "-m", "deploy.nginx_run", str(folder))


def reload(folder: Path, pid: int) -> None:
    """Make a running nginx read configuration, certificates and revocation list again.

    Raises:
        TransportError: nginx would refuse them; it goes on with what it has.
    """
    check(folder)
    os.kill(pid, signal.SIGHUP)


def end_orphans(folder: Path) -> int:
    """End workers that outlived an nginx that was killed.

    They are known by their process group, which `main` names after the nginx that is
    in the folder's process id file.

    Returns:
        How many there were.
    """
    try:
        master = int((folder / PID_FILE).read_text())
    except (OSError, ValueError):
        return 0
    orphans = [p for p in psutil.process_iter(["name"]) if _is_orphan(p, master)]
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(orphans, timeout=_PATIENCE_S)
    return len(orphans)


def _is_orphan(process: psutil.Process, master: int) -> bool:
    try:
        return (
            process.info["name"] == "nginx"
            and process.pid != master
            and os.getpgid(process.pid) == master
            and process.ppid() != master
        )
    except (psutil.Error, ProcessLookupError):
        return False


def _nginx(folder: Path, config: str = CONFIG) -> list[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
    if program is None:
        raise TransportError(
            "gateway found no nginx on this machine, expected version 1.22 or later; "
            "install it (on Debian: apt-get install nginx)"
        )
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / config)]


def main() -> None:
    """Become nginx, once nothing is left of one that was killed."""
    folder = Path(sys.argv[1])
    end_orphans(folder)
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    try:
        argv = _nginx(folder)
    except TransportError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main()
