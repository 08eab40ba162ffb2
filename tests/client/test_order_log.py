"""A round has one question: it may come again, and no other may take its place."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.kept_texts import read_texts
from client.order_log import ANSWERED, check_question, note_question
from common.errors import ContributionError, StoreError
from common.exchange import JudgeOrder, TrainOrder
from common.parameters import digest_of


@pytest.fixture
def site(tmp_path):
    tmp_path.chmod(0o700)
    return tmp_path


def order(number=1, model=0.0, since=0, run="run", plan="ab" * 32, control=None):
    vector = np.full(3, model, np.float32)
    return TrainOrder(run, plan, number, since, vector, digest_of(vector), control)


def judging(number=1, model=0.0, since=0, part="test"):
    vector = np.full(3, model, np.float32)
    return JudgeOrder("run", "ab" * 32, number, since, part, vector, digest_of(vector))


def refused(site, one, code="question"):
    for call in (check_question, note_question):
        with pytest.raises(ContributionError) as caught:
            call(site, one)
        assert caught.value.code == code


OTHERS = [
    order(model=1e-6),
    order(since=1),
    order(plan="cd" * 32),
    order(control=np.zeros(3, np.float32)),
]


def test_a_round_that_comes_again_is_the_same_question(site):
    note_question(site, order())
    for again in (order(), replace(order(), sealed={"south": b"share"})):
        assert again.nonce != order().nonce
        check_question(site, again)
        note_question(site, again)
    assert len(read_texts(site / "state" / "run" / ANSWERED)) == 2


@pytest.mark.parametrize("other", OTHERS, ids=["model", "state", "plan", "control"])
def test_another_question_is_refused_once_one_was_answered(site, other):
    check_question(site, other)  # what was only asked binds nobody
    note_question(site, order())
    refused(site, other)
    check_question(site, replace(other, round=2))
    check_question(site, replace(other, run="another"))


def test_each_part_of_the_held_out_patients_has_one_question_a_round(site):
    note_question(site, order())
    for part in ("validation", "test"):
        for number in (1, 2):
            note_question(site, judging(number, part=part))
            note_question(site, judging(number, part=part))
            refused(site, judging(number, model=1e-6, part=part))
            refused(site, judging(number, since=1, part=part))
    refused(site, order(model=1e-6))


def test_a_run_whose_id_is_no_plain_name_writes_nothing(site):
    refused(site, order(run="../../etc"), "run")
    assert list(site.iterdir()) == []


def test_what_was_answered_and_can_not_be_read_answers_nothing(site):
    note_question(site, order())
    (site / "state" / "run" / ANSWERED).write_text("{")
    for call in (check_question, note_question):
        with pytest.raises(StoreError, match="put it back"):
            call(site, order())


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([0.0, 1.0])),
        min_size=1,
        max_size=12,
    )
)
def test_however_a_hub_asks_each_round_has_one_answer(tmp_path_factory, asked):
    site = tmp_path_factory.mktemp("site")
    answered = set()
    for number, model in asked:
        try:
            note_question(site, order(number, model))
            answered.add((number, model))
        except ContributionError:
            pass
    assert len(answered) == len({number for number, _ in asked})
    assert answered == {(n, next(m for k, m in asked if k == n)) for n, _ in asked}
