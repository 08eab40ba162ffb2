"""The rows of the fault exam: each is a test with its number, fault and expectation.

`@row(...)` puts them on a test function. A row is in the exam (`make faults`); with
`short=True` it is in the suite too. One that depends on chance takes `seed` as an
argument and runs once for each of `SEEDS`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

SEEDS = range(int(os.environ.get("FEDCT_FAULTS_SEEDS", "1")))
"""`python -m tests.faults.run --seeds N`."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    number: int
    """As in the table of faults."""
    fault: str
    """What is done."""
    expected: str
    """What must come of it."""


def row(
    number: int, fault: str, expected: str, *, short: bool = False
) -> Callable[[Any], Any]:
    """Make a test a row of the exam."""

    def mark(test: Any) -> Any:
        marks = [pytest.mark.row(Row(number, fault, expected))]
        if not short:
            marks.append(pytest.mark.exam)
        if "seed" in test.__code__.co_varnames[: test.__code__.co_argcount]:
            marks.append(pytest.mark.parametrize("seed", SEEDS))
        for one in (*marks, pytest.mark.timeout(1800)):
            test = one(test)
        return test

    return mark
