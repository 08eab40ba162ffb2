import pytest

from common.errors import PlanError
from common.plan_file import line_of, load_plan, parse_plan, plan_toml
from tests.plans import SEGMENTATION, plan

SITES = """
[simulation]
[[simulation.sites]]
name = "a"
source = "a"
[[simulation.sites]]
name = "b"
sauce = "b"
"""


def complaint(text: str) -> str:
    with pytest.raises(PlanError) as error:
        parse_plan(text)
    return str(error.value)


def test_an_unknown_key_is_named_with_its_line():
    text = SEGMENTATION.replace("batch_size", "batchsize")
    number = 1 + text.splitlines().index("batchsize = 2")
    assert f"line {number}: training.batchsize: unknown key" in complaint(text)


def test_every_complaint_is_listed_at_once():
    text = SEGMENTATION.replace("rounds = 3", "rounds = 0\nround = 3")
    said = complaint(text)
    assert "2 to mend" in said
    assert "federation.rounds" in said
    assert "federation.round: unknown key" in said


def test_all_that_does_not_fit_together_is_listed_with_its_lines():
    text = SEGMENTATION.replace("[8, 8, 8]", "[8, 8]").replace(
        "patch", 'loss = "focal"\npatch'
    )
    said, lines = complaint(text), text.splitlines()
    assert "2 to mend" in said
    patch, loss = lines.index("patch = [8, 8]"), lines.index('loss = "focal"')
    assert f"line {patch + 1}: training.patch has 2 numbers" in said
    assert f"line {loss + 1}: training.loss 'focal' does not fit" in said


def test_a_missing_key_names_the_line_of_its_table():
    text = SEGMENTATION.replace("batch_size = 2\n", "")
    number = 1 + text.splitlines().index("[training]")
    assert f"line {number}: training.batch_size: is missing" in complaint(text)


@pytest.mark.parametrize("lengths", ["", "steps = 2\nepochs = 0.5\n"])
def test_a_round_has_exactly_one_length(lengths):
    assert "either steps or epochs" in complaint(
        SEGMENTATION.replace("steps = 2\n", lengths)
    )


def test_a_key_in_the_second_of_two_tables_is_found_there():
    text = SEGMENTATION + SITES
    number = 1 + text.splitlines().index('sauce = "b"')
    assert line_of(text, ["simulation", "sites", 1, "sauce"]) == number
    assert f"line {number}: simulation.sites.1.sauce: unknown key" in complaint(text)


def test_what_is_not_toml_or_not_there_is_a_plan_error(tmp_path):
    assert "not valid TOML" in complaint("[plan")
    with pytest.raises(PlanError, match="can't be read"):
        load_plan(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\xff")
    with pytest.raises(PlanError, match="UTF-8"):
        load_plan(tmp_path / "latin.toml")


def test_the_effective_plan_reads_back_to_the_same_plan():
    assert parse_plan(plan_toml(plan())) == plan()
    assert plan().digest in plan_toml(plan())
