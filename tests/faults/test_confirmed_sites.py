"""A hospital whose engineer is asked sees the others before it trains with them."""

import pytest

from client.desk import decide
from client.desk_file import PlanEntry, read_desk
from client.site_file import CLIENT_FILE, SIGN_KEY
from common.keys import read_signing_key
from common.signing import public_text
from tests.faults.federation import Federation
from tests.faults.hosts import PATIENCE_S, until

MASKED = {
    "privacy__secure_aggregation": "on",
    "plan__seed": 77,  # a plan that nobody approved before
    "rounds": 1,
    "evaluation__every": 1,
}


@pytest.fixture
def north_asks(fed: Federation):
    """The federation, in which one hospital's engineer is asked."""
    path = fed.site("north").folder / CLIENT_FILE
    text = path.read_text()
    path.write_text(text.replace('approve = "auto"', 'approve = "ask"'))
    yield fed
    path.write_text(text)


def waiting(fed: Federation) -> list[PlanEntry]:
    known = read_desk(fed.site("north").folder).plans
    return [entry for entry in known if entry.state == "waiting"]


def test_a_hospital_trains_under_masks_with_the_sites_that_it_confirmed(north_asks):
    fed = north_asks
    run = fed.run(**MASKED)
    until(lambda: waiting(fed) != [], PATIENCE_S, what="the plan at the desk")
    (entry,) = waiting(fed)
    keys = {
        name: read_signing_key(site.folder / SIGN_KEY).public_key()
        for name, site in fed.sites.items()
    }
    assert entry.sites == {name: public_text(key) for name, key in keys.items()}
    assert run.state.rounds_done == 0
    decide(fed.site("north").folder, entry.digest, "approved")
    run.finished()
    assert run.accepted() == [tuple(sorted(keys))]
    for name, confirmed in (("north", True), ("east", False)):
        (known,) = [
            known
            for known in read_desk(fed.site(name).folder).plans
            if known.digest == entry.digest
        ]
        assert (known.sites, known.are_confirmed) == (entry.sites, confirmed)
        assert known.changed == {}
