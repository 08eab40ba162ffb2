"""Flower's grid over a folder of parcels, for sites where no live line is allowed.

    outbox/  orders that are to be brought to their sites (`*.order`)
    inbox/   where answers are put that came back (`*.answer`)

The ordinary round loop runs on it, with the plan's deadlines as long as the way takes.
A file that is still being copied in is looked at again when it has grown. One that does
not count stays where it is, and is said once; one that counts is removed.

Answers are sealed to a key that lives as long as this process: what a restarted server
did not take in before can't be opened any more, and its orders are given anew.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.private_files import make_private_folder
from common.errors import ContributionError
from common.parcel import AnswerParcel, Failure, OrderParcel, read_answer, write_order
from common.parcel_file import peek

log = logging.getLogger("fedct.run")

OUTBOX, INBOX = "outbox", "inbox"
_SERVER_NODE = 1
"""Flower's own number for the server's end."""


class ParcelGrid(Grid):
    """A grid whose messages are files."""

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        sites: Mapping[str, Ed25519PublicKey],
    ) -> None:
        """Lay out the folder and give each site a node id, from 2.

        Args:
            folder: Gets `outbox/` and `inbox/`; orders of an earlier process in it are
                removed, as nobody waits for their answers.
            key: The hub's signing key.
            sites: Site to verifying key.
        """
        self._out, self._in = folder / OUTBOX, folder / INBOX
        for place in (folder, self._out, self._in):
            make_private_folder(place)
        for old in self._out.glob("*.order"):
            old.unlink()
        self._key = key
        self._reply_key = X25519PrivateKey.generate()
        self._keys = dict(sites)
        self._nodes = dict(enumerate(sorted(sites), start=_SERVER_NODE + 1))
        self._run = Run.create_empty(run_id=1)
        self._waiting: dict[str, tuple[Message, Path]] = {}
        self._refused: dict[Path, tuple[tuple[int, int], str | None]] = {}
        TaskIdentity.task_id = 1
        TaskIdentity.run_id = 1
        TaskIdentity.node_id = _SERVER_NODE

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: a site without a line is never away."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Write each message as an order into `outbox/`."""
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        about = message.metadata
        site, message_id = self._nodes[about.dst_node_id], uuid.uuid4().hex
        order = OrderParcel(
            message_id,
            site,
            about.message_type,
            self._reply_key.public_key().public_bytes_raw().hex(),
            message.content,
        )
        path = self._out / f"{site}-{about.message_type}-{message_id[:8]}.order"
        write_order(path, order, self._key)
        asked = Message(
            RecordDict(), about.dst_node_id, about.message_type, ttl=about.ttl
        )
        asked.metadata.__dict__["_message_id"] = message_id
        self._waiting[message_id] = asked, path
        log.info("order written", extra={"site": site, "file": path.name})
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Take the answers to these orders that are in `inbox/`."""
        wanted = set(message_ids)
        for path in sorted(self._in.glob("*.answer")):
            answer = self._take(path, wanted)
            if answer is not None:
                reply = self._reply(answer)
                path.unlink(missing_ok=True)
                del answer
                yield reply
                del reply  # it holds a whole model

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull once: whoever waits for days asks again."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _take(self, path: Path, wanted: set[str]) -> AnswerParcel | None:
        """The answer in a file, if it counts and is wanted now."""
        try:
            status = path.stat()
        except OSError:
            return None  # taken away again
        version = status.st_size, status.st_mtime_ns
        looked_at, code = self._refused.get(path, (None, None))
        if looked_at == version:
            return None
        try:
            said = peek(path).message_id
            if said in self._waiting and said not in wanted:
                return None  # its turn comes
            waiting = {
                message_id: self._nodes[message.metadata.dst_node_id]
                for message_id, (message, _) in self._waiting.items()
            }
            return read_answer(path, waiting, self._keys, self._reply_key)
        except ContributionError as error:
            self._refused[path] = version, error.code
            if error.code != code:  # else it is being copied in
                extra = {"file": path.name, "code": error.code, "why": str(error)}
                log.warning("parcel refused", extra=extra)
            return None

    def _reply(self, answer: AnswerParcel) -> Message:
        asked, order = self._waiting.pop(answer.message_id)
        order.unlink(missing_ok=True)
        if isinstance(answer.content, Failure):
            error = Error(answer.content.code, answer.content.reason)
            return Message(error, reply_to=asked)
        return Message(answer.content, reply_to=asked)
