"""Sites that train nothing: they read an order and answer with a random update.

    python tests/bench/light_sites.py ROOT SITE...

Everything on the line is real: certificates, node keys, requests, signatures, sizes;
every update differs. What an order's model says is read from the line and dropped, so
that dozens of sites fit on one machine; two at a time hold an update. The first site of
a round answers when all others have, so that every other answer waits at the hub.
"""

import logging
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
)
from flwr.supercore.task_identity import TaskIdentity

from client.fleet import Fleet
from client.hub_road import hub_of
from client.site import SIGN_KEY
from client.site_file import NODE_KEY, read_site_file
from common.errors import JoinError
from common.exchange import Answer, Judgement, Roster, Update
from common.keys import read_ec_key, read_signing_key
from common.packing import unpack
from common.parts import read_parted
from common.pieces import Pieces
from common.signing import Asked, public_text, seal
from common.wire import payload_bytes, to_record

_ONE = threading.Lock()
"""Flower keeps in a global who speaks."""
_SMALL_BYTES = 1_000_000
"""Of vectors that travel in a message."""
Facts = dict[str, object]
_ROOM = threading.Semaphore(2)


@dataclass
class Others:
    """Who has answered which round; the first site waits for the rest."""

    first: str
    count: int
    answered: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    news: threading.Condition = field(default_factory=threading.Condition)

    def wait(self, site: str, asked: tuple[str, int]) -> None:
        with self.news:
            if site == self.first:
                done = self.answered.setdefault(asked, set())
                self.news.wait_for(lambda: len(done) >= self.count - 1, 3000)

    def note(self, site: str, asked: tuple[str, int]) -> None:
        with self.news:
            self.answered.setdefault(asked, set()).add(site)
            self.news.notify_all()


def serve(root: Path, site: str, seed: int, others: Others) -> None:
    folder, stop = root / site, threading.Event()
    fleet = Fleet(
        hub_of(folder, read_site_file(folder)),
        read_ec_key(folder / NODE_KEY),
        logging.warning,
        stop,
    )
    with fleet:
        node = None
        while node is None:
            with suppress(JoinError), _ONE:  # the hub has not let it in yet
                node = fleet.activate(None)
            stop.wait(0.5)
        while True:
            found = fleet._call(
                fleet._client.PullMessages, PullMessagesRequest(node=fleet._node)
            )
            if not found.messages_list:
                stop.wait(0.5)
                continue
            head = message_from_proto(found.messages_list[0])
            facts, size = read(fleet, head, found.message_object_trees[0])
            asked = str(facts["run"]), int(str(facts.get("round", 0)))
            if facts["kind"] == "TrainOrder":
                others.wait(site, asked)
            with _ROOM:
                answer = answer_to(facts, site, size, seed)
                content = sealed(answer, facts, site, folder)
                with _ONE:
                    TaskIdentity.node_id = node
                    TaskIdentity.run_id = TaskIdentity.task_id = head.metadata.run_id
                    reply = Message(content, reply_to=head)
                del answer, content
                fleet.push(reply, 0.1)
                del reply
            if facts["kind"] == "TrainOrder":
                others.note(site, asked)


def read(fleet: Fleet, head: Message, tree: ObjectTree) -> tuple[Facts, int]:
    """The order's facts, and the bytes of its model, which are read and dropped."""
    run_id = head.metadata.run_id

    def pull(object_id: str) -> bytes:
        while True:
            request = PullObjectRequest(
                node=fleet._node, run_id=run_id, object_id=object_id
            )
            got = fleet._call(fleet._client.PullObject, request)
            if got.object_available:
                return got.object_content
            fleet._stop.wait(0.2)

    order = Pieces(tree).collect(pull)
    assert order is not None
    size = 0
    for text in order.content.pop("parted arrays", {}).values():
        for one in read_parted(text).values():
            size += one.size
            for digest in one.parts:
                fleet._get_part(digest)
    unpack(order, fleet._get_part, _SMALL_BYTES)
    size += payload_bytes(order.content) if "vectors" in order.content else 0
    fleet._call(
        fleet._client.ConfirmMessageReceived,
        ConfirmMessageReceivedRequest(
            node=fleet._node, run_id=run_id, message_object_id=tree.object_id
        ),
    )
    return dict(order.content["facts"]), size


def answer_to(facts: Facts, site: str, size: int, seed: int) -> Answer:
    if facts["kind"] == "Hello":
        key = _key(site).public_key()
        return Roster(site, 10, 2, 2, 14, 14, public_text(key))
    number = int(str(facts["round"]))
    if facts["kind"] == "JudgeOrder":
        return Judgement(site, number, facts["part"], {})  # type: ignore[arg-type]
    random = np.random.default_rng([seed, number])
    delta = random.random(size // 4, np.float32)
    delta *= 1e-3
    plan = str(facts["plan_digest"])
    return Update(site, number, plan, delta, 10, 0.5, 1, 0.1, 14, 14)


def sealed(answer: Answer, facts: Facts, site: str, folder: Path) -> RecordDict:
    asked = Asked(
        str(facts["run"]),
        int(str(facts.get("round", 0))),
        site,
        str(facts["plan_digest"]),
        facts.get("model_digest"),  # type: ignore[arg-type]
        str(facts["nonce"]),
    )
    return to_record(answer, seal(answer, asked, read_signing_key(folder / SIGN_KEY)))


def _key(site: str):  # type: ignore[no-untyped-def]
    return read_signing_key(Path(sys.argv[1]) / site / SIGN_KEY)


def main() -> None:
    """Serve until killed."""
    root, names = Path(sys.argv[1]), sys.argv[2:]
    others = Others(min(names), len(names))
    threads = [
        threading.Thread(target=serve, args=(root, name, seed, others), daemon=True)
        for seed, name in enumerate(names)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
