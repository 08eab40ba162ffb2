"""The resident site service: pulls orders from the hub, works, pushes answers.

One process per hospital, started once and warm from then on: packages imported, cases
open, network built, optimiser in memory. It alone holds the data, the GPU and the keys.
Nothing listens to the network here; the one connection goes outwards (`client.fleet`).

Left to die at any instant, it is started again and asks the hub for its place back. The
hub then offers the lost order once more, and the work is the same to the bit, because
an order says from which state it starts (`client.state`).
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from flwr.app import Context, Message, RecordDict

from client.activity import work_of
from client.app import SITE_FOLDER_KEY, note_number
from client.app import work as work_on
from client.control import serve_control
from client.desk_control import DeskControl
from client.fleet import Fleet
from client.hub_road import hub_of
from client.private_files import write_private
from client.refusals import RunEndedError
from client.site_file import NODE_KEY, read_site_file
from common.errors import FedctError, disk_full
from common.keys import read_ec_key

NODE_FILE = "node.json"
"""Which place at the hub this site's last process had, and where it ran."""
_QUICKEST_S, _SLOWEST_S = 0.25, 2.0
"""Pause between two questions to the hub: each takes some of the one core that its
SuperLink has for all."""
_PATIENCE = 0.05
"""The pause is this share of the time since the last order: work that takes long is
asked for seldom, and never waits for more than a twentieth longer than it took."""

log = logging.getLogger("fedct.site")

Work = Callable[[Message, Context], Message]


def serve(
    folder: Path, fleet: Fleet, stop: threading.Event, work: Work = work_on
) -> None:
    """Take orders until `stop` is set.

    Args:
        folder: The site's folder.
        fleet: The line to the hub, not yet activated.
        stop: Set by a signal handler; the order at hand is finished first.
        work: Turns an order into an answer; never raises.

    Raises:
        JoinError: The hub refuses this site.
        TransportError: The hub was out of reach for too long.
    """
    node_id = fleet.activate(_left_over(folder))
    write_private(folder / NODE_FILE, json.dumps(_here(folder, node_id)).encode())
    log.info("site joined the hub as node %d", node_id)
    work_of(folder).ready()
    last = time.monotonic()
    while not stop.is_set():
        message = None
        with suppress(RunEndedError):  # while its order was on the way
            message = fleet.pull()
        if message is None:
            idle_s = time.monotonic() - last
            stop.wait(min(max(_PATIENCE * idle_s, _QUICKEST_S), _SLOWEST_S))
            continue
        began = time.monotonic()
        answer = work(message, _context(folder, message, node_id))
        last = time.monotonic()
        with suppress(RunEndedError):  # while it worked
            fleet.push(answer, last - began)
    (folder / NODE_FILE).unlink(missing_ok=True)  # left in order


def _context(folder: Path, message: Message, node_id: int) -> Context:
    return Context(
        run_id=message.metadata.run_id,
        node_id=node_id,
        node_config={SITE_FOLDER_KEY: str(folder)},
        state=RecordDict(),
        run_config={},
    )


def _here(folder: Path, node_id: int) -> dict[str, object]:
    """The node's place, and this folder on this machine, which a copy is not."""
    machine = ""
    with suppress(OSError):
        machine = Path("/etc/machine-id").read_text().strip()
    status = folder.stat()
    return {
        "node_id": node_id,
        "machine": machine,
        "device": status.st_dev,
        "inode": status.st_ino,
    }


def _left_over(folder: Path) -> int | None:
    """The node id of a process of this very folder that did not leave in order."""
    try:
        said = json.loads((folder / NODE_FILE).read_text())
        node_id = int(said["node_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return node_id if said == _here(folder, node_id) else None


def open_line(folder: Path, stop: threading.Event) -> Fleet:
    """The line to the hub that a site's folder describes.

    Raises:
        JoinError: The folder is no site's, or lacks a key or certificate.
    """
    hub = hub_of(folder, read_site_file(folder))
    key, note = read_ec_key(folder / NODE_KEY), partial(note_number, folder)
    return Fleet(hub, key, log.warning, stop, note)


def main() -> None:
    """What the supervisor runs: `python -m client.resident SITE`."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    folder, stop = Path(sys.argv[1]), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        threads = read_site_file(folder).threads
        if threads is not None:
            torch.set_num_threads(threads)
        with (
            serve_control(folder, DeskControl(folder)),
            open_line(folder, stop) as line,
        ):
            serve(folder, line, stop)
    except FedctError as error:
        log.error("%s", error)
        sys.exit(error.exit_code)
    except OSError as error:
        if (full := disk_full(error)) is None:
            raise
        log.error("%s", full)
        sys.exit(full.exit_code)


if __name__ == "__main__":
    main()
