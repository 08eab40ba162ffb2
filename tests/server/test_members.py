"""Who is let in at the SuperLink, and by which name the coordinator reads of them."""

from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec

from common.keys import openssh_line
from server.members import Members
from server.revocation import revoke
from server.superlink import node_key_bytes
from tests.joining import a_hub, joined


class Line:
    """What the SuperLink's list of nodes does."""

    def __init__(self):
        self.known = {}

    def nodes(self):
        return {key: (node, True) for key, node in self.known.items()}

    def register(self, key):
        self.known[key] = 7 + len(self.known)

    def unregister(self, node):
        self.known = {key: n for key, n in self.known.items() if n != node}


def members_of(tmp_path, now):
    hub = a_hub(tmp_path / "hub", now=now)
    for name in ("north", "south"):
        joined(hub, tmp_path / name, name, now)
    line = Line()
    stranger = ec.generate_private_key(ec.SECP384R1()).public_key()
    line.register(node_key_bytes(openssh_line(stranger)))
    members = Members(hub.folder, line)
    members.compare()
    return hub, line, members


def test_the_enrolled_are_let_in_and_strangers_and_revoked_are_shut_out(tmp_path):
    now = datetime.now(UTC)
    hub, line, members = members_of(tmp_path, now)
    assert members.of(["north", "south", "east"]).keys() == set(line.known.values())
    assert len(line.known) == 2
    revoke(hub, "north", now)
    members.compare()
    assert members.of(["north"]) == {}
    assert members.of(["south"]) == dict.fromkeys(line.known.values(), "south")


def test_the_coordinator_reads_of_sites_and_not_of_nodes(tmp_path):
    _, _, members = members_of(tmp_path, datetime.now(UTC))
    (node,) = members.of(["north"])
    waiting = {
        "north": "is not connected, or not ready",
        "south": "is not connected, or not ready",
        f"node {node}": "has not answered yet",
        "node 99": "has not answered yet",
    }
    assert members.named(waiting) == {
        "north": "has not answered yet",
        "south": "is not connected, or not ready",
        "node 99": "has not answered yet",
    }
