"""No two sums of a round may open, whoever is asked and whoever was lost."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.mask_memory import MASKED, check_group, note_masked
from common.errors import ContributionError, StoreError
from common.plan_privacy import Privacy, threshold_of

NAMES = "abcdef"
NUMBERS = np.arange(9, dtype=np.uint32)
groups = st.sets(st.sampled_from(NAMES), min_size=2)


@pytest.fixture
def run(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path / "run"


def passes(run, group, threshold, colluders=0, number=1):
    try:
        check_group(run, number, group, threshold, colluders)
    except ContributionError:
        return False
    return True


def both_open(one, other, needed, colluders):
    """Whether enough of each group can give shares, and only so many give them twice.

    By trying all.
    """
    return any(
        len({*first} & {*second}) <= colluders
        for first in combinations(sorted(one), needed[0])
        for second in combinations(sorted(other), needed[1])
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(one=groups, other=groups, colluders=st.integers(0, 2))
def test_a_group_passes_if_no_two_sums_can_open(
    tmp_path_factory, one, other, colluders
):
    run = tmp_path_factory.mktemp("site") / "run"
    privacy = Privacy(min_cohort=2, colluders=colluders)
    needed = [threshold_of(privacy, len(group)) for group in (one, other)]
    if needed[0] > len(one) or needed[1] > len(other):
        return  # neither opens at all
    note_masked(run, 1, one, needed[0], NUMBERS)
    assert passes(run, other, needed[1], colluders) != both_open(
        one, other, needed, colluders
    )


def test_the_same_sites_may_come_again_or_one_fewer_and_other_rounds_are_free(run):
    note_masked(run, 1, NAMES[:5], 3, NUMBERS)
    assert passes(run, NAMES[:5], 3)
    assert passes(run, NAMES[:4], 3)
    assert not passes(run, NAMES[:3], 2)
    with pytest.raises(ContributionError) as caught:
        check_group(run, 1, NAMES[2:5], 2, 0)
    assert caught.value.code == "spent"
    assert passes(run, NAMES[:3], 2, number=2)
    note_masked(run, 1, NAMES[:5], 3, NUMBERS)
    note_masked(run, 1, NAMES[:4], 3, NUMBERS)
    assert not passes(run, NAMES[1:6], 3)  # three and three, of six
    assert (run / MASKED).stat().st_mode & 0o077 == 0


def test_other_numbers_are_not_masked_in_a_round(run):
    note_masked(run, 1, NAMES, 4, NUMBERS)
    note_masked(run, 1, NAMES[:5], 3, NUMBERS.copy())
    note_masked(run, 2, NAMES, 4, NUMBERS + 1)
    before = (run / MASKED).read_text()
    with pytest.raises(ContributionError, match="with other numbers before") as caught:
        note_masked(run, 1, NAMES, 4, NUMBERS + 1)
    assert caught.value.code == "spent"
    assert (run / MASKED).read_text() == before


def test_what_can_not_be_read_masks_nothing(run):
    note_masked(run, 1, NAMES, 4, NUMBERS)
    (run / MASKED).write_text('{"1": "[[4]]"}')
    with pytest.raises(StoreError, match=MASKED):
        check_group(run, 1, NAMES, 4, 0)
