"""Who is online, and when one that is lost is waited for no more."""

from server import presence
from server.presence import Presence


class Hub:
    """A grid whose nodes come and go; counts the looks at it."""

    def __init__(self) -> None:
        self.nodes: dict[int, str] = {}
        self.looks = 0

    def arrivals(self) -> dict[int, str]:
        self.looks += 1
        return dict(self.nodes)


def test_nobody_is_given_up_who_came_since_the_last_look(monkeypatch):
    hub, now = Hub(), [100.0]
    monkeypatch.setattr(presence.time, "monotonic", lambda: now[0])
    sites = Presence(hub, rejoin_s=10.0)
    assert not sites.is_given_up(7)
    now[0] += 10.5
    assert sites.arrival(7) is None  # a look
    now[0] += 0.5
    hub.nodes[7] = "came"
    assert sites.arrival(7) is None  # two seconds old at most
    assert not sites.is_given_up(7)
    assert sites.arrival(7) == "came"


def test_who_stays_away_is_given_up_and_the_hub_is_seldom_asked(monkeypatch):
    hub, now = Hub(), [100.0]
    monkeypatch.setattr(presence.time, "monotonic", lambda: now[0])
    sites = Presence(hub, rejoin_s=10.0)
    while not sites.is_given_up(7):
        now[0] += 0.1
    assert 110.0 <= now[0] <= 110.2
    assert hub.looks <= 8
