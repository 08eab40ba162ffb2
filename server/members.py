"""Who may speak: the register of enrolled sites, kept equal to the SuperLink's nodes.

A revoked or expired site loses its node within seconds, beside its certificate, which
nginx refuses; a site that was enrolled a moment ago can join a run that is going on.
"""

import datetime
import logging
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx

from common.errors import FedctError
from common.signing import public_from_text
from server.register import Issued, read_register
from server.superlink import SuperLinkLine, node_key_bytes
from server.verifying import Keys

REGISTER_S = 2.0
"""How often the register is compared with the SuperLink's nodes."""

log = logging.getLogger("fedct.hub")


class Members:
    """The enrolled sites, by the register and by the SuperLink."""

    def __init__(self, folder: Path, line: SuperLinkLine) -> None:
        """Compare the register in `folder` with the nodes at `line`."""
        self._folder = folder
        self._line = line
        self._lock = threading.Lock()
        self._node_of: dict[str, int] = {}
        self._entries: dict[str, Issued] = {}

    def keep(self, stop: threading.Event) -> None:
        """Compare again and again."""
        while not stop.wait(REGISTER_S):
            try:
                self.compare()
            except (FedctError, OSError, httpx.HTTPError) as error:
                log.warning("register not compared: %s", error)
            except Exception:  # a thread that dies would shut out nobody any more
                log.exception("register not compared")

    def compare(self) -> None:
        """Let new sites in at the SuperLink, and shut revoked ones out."""
        with self._lock:
            now = datetime.datetime.now(datetime.UTC)
            register = read_register(self._folder)
            wanted = {
                node_key_bytes(entry.node_key): name
                for name, entry in register.latest().items()
                if entry.status(now) == "active"
            }
            for key, (node_id, _) in self._line.nodes().items():
                if key not in wanted:
                    self._line.unregister(node_id)
                    log.info("node %d shut out", node_id)
            for key in wanted.keys() - self._line.nodes().keys():
                self._line.register(key)
                log.info("site %s let in", wanted[key])
            self._node_of = {
                wanted[key]: node_id
                for key, (node_id, _) in self._line.nodes().items()
                if key in wanted
            }
            self._entries = register.latest()

    def of(self, sites: Iterable[str]) -> dict[int, str]:
        """Node id to name of sites, as far as they are let in."""
        node_of = self._node_of
        return {node_of[site]: site for site in sites if site in node_of}

    def named(self, waiting: Mapping[str, str]) -> dict[str, str]:
        """The same reasons, those of "node N" under the name of its site."""
        site_of = {f"node {node}": site for site, node in self._node_of.items()}
        nameless = {who: why for who, why in waiting.items() if who not in site_of}
        return nameless | {
            site_of[who]: why for who, why in waiting.items() if who in site_of
        }

    def keys(self, sites: Iterable[str]) -> Keys:
        """Site to the key that its answers are verified with."""
        return {
            site: public_from_text(self._entries[site].verify_key) for site in sites
        }
