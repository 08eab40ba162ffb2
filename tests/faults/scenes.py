"""What several rows do and look for."""

from client.order_log import read_orders
from tests.faults.federation import Federation, Run
from tests.faults.hosts import Site, until

ALL, WITHOUT_NORTH = ("east", "north", "south"), ("east", "south")
SOON = {"deadline_s": 300.0, "rejoin_s": 1.0}
"""Who is lost is given up at once, so a round does not wait for its deadline."""
_undisturbed: dict[int, str] = {}


def undisturbed(fed: Federation) -> str:
    """sha256 of the model that a run of `PLAN` in peace ends in; run once."""
    if id(fed) not in _undisturbed:
        run = fed.run()
        run.finished()
        assert run.accepted() == [ALL] * 3
        _undisturbed[id(fed)] = run.sha256
    return _undisturbed[id(fed)]


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
        and line.run.endswith(run.folder.name)
        for line in read_orders(site.folder).lines
    )
