"""The table of attacks keeps what was not run, and drops what is no more."""

import pytest

from tests.attacks.rows import Row
from tests.attacks.run import BEGIN, END, Attacks, Result, write


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "attacks.md"
    path.write_text(f"# Attacks\n\n{BEGIN}\n{END}\nThe end.\n")
    return path


def attacks(seen: str, *names: str, **tables: str) -> Attacks:
    some = Attacks("")
    for name in names:
        row = Row("server", name, "masks")
        found = {"control": ["5 of 5"], "defended": [seen]}
        some.results["server", name] = Result(row, seen=found)
    some.tables = tables
    return some


def test_a_row_that_was_not_run_stays_as_it_is(page):
    write(page, attacks("0 of 5", "one", "two", first="| a |\n|---|\n| 1 |"))
    write(page, attacks("1 | of 5", "two", second="| b |\n|---|\n| 2 |"))
    text = page.read_text()
    assert "| server | one | masks | 5 of 5 | 0 of 5 | PASS | 0 |" in text
    assert "| server | two | masks | 5 of 5 | 1 of 5 | PASS | 0 |" in text
    assert text.count("| server |") == 2
    assert "### first\n\n| a |\n|---|\n| 1 |\n" in text
    assert "### second\n\n| b |\n|---|\n| 2 |\n" in text
    assert text.startswith("# Attacks\n")
    assert text.endswith(f"{END}\nThe end.\n")


def test_writing_the_same_again_changes_nothing(page):
    some = attacks("0 of 5", "one", first="| a |\n|---|\n| 1 |")
    write(page, some)
    before = page.read_text()
    write(page, some)
    assert page.read_text() == before


def test_when_all_was_run_a_row_that_is_no_more_goes(page):
    write(page, attacks("0 of 5", "one", "two"))
    write(page, attacks("0 of 5", "two"), whole=True)
    assert "| one |" not in page.read_text()
