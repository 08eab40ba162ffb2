"""What a hospital draws is known to it alone, and the same again when asked again."""

from client.draws import plan_seed, secret_rounding, training_seed
from tests.attacks.masked_lab import identity_of
from tests.plans import plan

PLAN = plan()
OTHER = plan(plan__description="another")


def trained(key="north", by=PLAN, number=1, site="north"):
    identity = None if key is None else identity_of(key)
    return tuple(training_seed(by, site, identity, number).generate_state(4).tolist())


def rounded(key="north", by=PLAN, number=1):
    return tuple(secret_rounding(identity_of(key), by.digest, number)(7).tolist())


def test_a_hospital_s_draws_follow_from_its_key_the_plan_and_the_round():
    for drawn in (trained, rounded):
        assert drawn() == drawn()
        others = [drawn(key="east"), drawn(by=OTHER), drawn(number=2)]
        assert len({drawn(), *others}) == 4


def test_a_hospital_s_draws_do_not_follow_from_the_plan_alone():
    public = tuple(plan_seed(PLAN, "north", "train", 1).generate_state(4).tolist())
    assert trained() != public
    assert trained(site="east") == trained()  # its name adds nothing to its key
    assert trained(key=None) == public  # a simulation's do


def test_training_and_rounding_do_not_share_their_draws():
    words = {number * 2.0**-32 for number in trained()}
    assert not words & set(rounded())
