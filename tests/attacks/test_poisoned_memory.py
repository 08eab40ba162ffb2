"""A hub that makes all sites but one stand still: a masked sum is the last one's.

An optimiser that has seen gradients as large as a model made by the hub can call forth
hardly moves for hundreds of steps. In rounds that are never opened the hub shows such a
model to all sites but its victim, and the sum of the next honest round is nearly the
victim's update. The control is a site that goes on from any memory it has.
"""

import numpy as np

import client.service
from client.open_site import open_site
from common.errors import ContributionError, FedctError
from common.exchange import TrainOrder
from common.parameters import digest_of, to_vector
from common.secagg.lineage import FRESH, lineage_after
from server.federation import first_model
from tests.attacks.lying_hub import LyingHub, SaidNoError
from tests.attacks.rows import SERVER, row
from tests.client.conftest import quiet, slices

NAMES = ["a-site", "b-site", "c-site", "d-site"]
VICTIM, REST = NAMES[-1], NAMES[:-1]
PLAN = slices(
    privacy__secure_aggregation="on",
    federation__min_sites=3,
    federation__rounds=10,
    training__steps=40,
)
MODEL = to_vector(*first_model(PLAN))
HUGE = MODEL * np.float32(1e5)


def poisoned(hub: LyingHub) -> str:
    """Two rounds without the victim; what the others' memory stems from then."""
    lineage = FRESH
    for number, model in enumerate((HUGE, MODEL), start=1):
        one = hub.set_up(number, REST)
        for name in REST:  # thrown away
            hub.masked(name, hub.order(one, name, model, number - 1, lineage))
        lineage = lineage_after(lineage, number, digest_of(model))
    return lineage


def mean_of(
    hub: LyingHub, number: int, lies: dict[str, str]
) -> np.ndarray | FedctError | SaidNoError:
    """The mean of all sites' updates, each told its lie about its memory of round 2."""
    one = hub.set_up(number, NAMES)
    try:
        masked = [
            hub.masked(n, hub.order(one, n, MODEL, 2 * (n != VICTIM), lies[n]))
            for n in NAMES
        ]
        total = np.sum(masked, axis=0, dtype=np.uint32)
        after = lineage_after(lies[VICTIM], number, digest_of(MODEL))
        return hub.opened(one, total, after).mean
    except (ContributionError, SaidNoError) as error:
        return error


def distance(hub: LyingHub, number: int, mean: np.ndarray) -> float:
    """From the victim's update to what the hub takes for it, in its own length.

    1 is what a hub has that guesses that the victim did not move.
    """
    given = "alone", PLAN.digest, number, 0, MODEL, digest_of(MODEL)
    update = open_site(hub.folders[VICTIM], PLAN).train(TrainOrder(*given), quiet)
    found = mean * (sum(hub.train.values()) / hub.train[VICTIM])
    return float(np.linalg.norm(found - update.delta) / np.linalg.norm(update.delta))


@row(
    SERVER,
    "makes all optimisers but one stand still (how far off the last one's update is)",
    "memory of one lineage, or none",
    short=True,
)
def test_no_site_moves_alone_among_optimisers_that_stand_still(
    tmp_path, told, monkeypatch
):
    hub = LyingHub(tmp_path, PLAN, NAMES)
    theirs = poisoned(hub)
    nothing, something = dict.fromkeys(NAMES, FRESH), dict.fromkeys(NAMES, theirs)
    with monkeypatch.context() as weak_site:
        weak_site.setattr(client.service, "begins_anew", lambda order: False)
        weak_site.setattr(client.service, "checked_memory", lambda state, order: state)
        weak = distance(hub, 3, mean_of(hub, 3, nothing))
    apart = mean_of(hub, 4, {**something, VICTIM: FRESH})
    assert isinstance(apart, ContributionError)
    assert apart.code == "masks"
    never_there = mean_of(hub, 5, something)
    assert isinstance(never_there, SaidNoError)
    assert never_there.args == (104029,)
    ours = distance(hub, 6, mean_of(hub, 6, nothing))
    told(f"{weak:.2f} of its length", f"{ours:.2f}")
    assert weak < 0.5
    assert ours > 1.0
