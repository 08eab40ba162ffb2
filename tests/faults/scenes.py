"""What several rows do and look for."""

from client.audit import read_audit
from tests.faults.federation import Federation, Run
from tests.faults.hosts import Site, until

ALL, WITHOUT_NORTH = ("east", "north", "south"), ("east", "south")
SOON = {"deadline_s": 300.0, "rejoin_s": 1.0}
"""Who is lost is given up at once, so a round does not wait for its deadline."""
_calm: dict[int, Run] = {}


def calm(fed: Federation) -> Run:
    """A run of `PLAN` in peace; run once."""
    if id(fed) not in _calm:
        run = fed.run()
        run.finished()
        assert run.accepted() == [ALL] * 3
        _calm[id(fed)] = run
    return _calm[id(fed)]


def undisturbed(fed: Federation) -> str:
    """sha256 of the model that it ends in."""
    return calm(fed).sha256


def deadline_s(fed: Federation, least_s: float = 15.0) -> float:
    """A deadline that sound sites keep on this machine, however busy it is now."""
    slowest_s = max(entry.record.seconds for entry in calm(fed).journal())
    return max(least_s, 5 * slowest_s)


def joined(site: Site) -> int:
    """How often its service has joined the hub."""
    return site.log("service").count("site joined the hub")


def comes_back(fed: Federation, *names: str) -> None:
    """Start sites that were killed, and wait until they are in."""
    before = {name: joined(fed.site(name)) for name in names}
    for name in names:
        fed.site(name).start()
    for name in names:
        until(lambda name=name: joined(fed.site(name)) > before[name], what=name)


def trained(site: Site, run: Run, number: int) -> int:
    """How often the site's log says that it answered a round's order."""
    return sum(
        (line.kind, line.round, line.code) == ("train", number, 0)
        and f"-{run.folder.name}-" in (line.run or "")
        for line in read_audit(site.folder).lines
    )
