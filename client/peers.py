"""The other sites' keys, as this site knows them: met once, or confirmed by a person.

Whoever was met first under a name is known by that key from then on, on the disk, so
that a server can't replace a site by one that it made up, not even after a restart. An
engineer who confirms the sites of a plan (`client.plan_sites`) puts right what was met
before.

Not covered here: whether the first key under a name is the right one. Confirmed keys
are, where the hospitals' engineers compared them, by telephone say.
"""

from collections.abc import Mapping
from pathlib import Path

from client.kept_texts import read_texts, write_texts
from common.errors import ContributionError

PEERS = "peers.json"
"""In a site's folder: name of each site it was ever grouped with, to its key."""


def known_peers(folder: Path) -> dict[str, str]:
    """Site to verifying key, 64 hexadecimal digits, of all that were met here."""
    return read_texts(folder / PEERS)


def check_peers(folder: Path, members: Mapping[str, str]) -> None:
    """Refuse a roster that has a known site under another key; learn the others.

    Args:
        folder: The site's folder.
        members: Site to verifying key, 64 hexadecimal digits.

    Raises:
        ContributionError: A key differs; `code` is "roster". Nothing was learnt.
        StoreError: The file can't be read.
    """
    known = known_peers(folder)
    for name, key in members.items():
        if known.get(name, key) != key:
            raise ContributionError(
                f"roster has site {name!r} under another key than the one it is known "
                "by here; has that hospital a new key? then compare it by telephone, "
                "and approve the plan again (`fedct client approve`)",
                code="roster",
            )
    if not members.items() <= known.items():
        write_texts(folder / PEERS, {**known, **members})


def confirm_peers(folder: Path, members: Mapping[str, str]) -> None:
    """Know these sites by these keys from now on, whatever was known before."""
    write_texts(folder / PEERS, {**known_peers(folder), **members})
