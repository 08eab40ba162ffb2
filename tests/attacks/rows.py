"""The rows of the table of attacks: each is a test that attacks twice.

`@row(...)` puts a row on a test function. The test runs the attack with the defence off
(the control: it must succeed, or the attack is no attack) and with it on, and hands
both findings to the fixture `told`. A row is in the table (`make attacks`); with
`short=True` it is in the suite too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

SERVER = "curious or malicious server"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    adversary: str
    """Who attacks: `SERVER`, "hostile site", "reader of the model", "insider"."""
    attack: str
    """What is tried; tells the rows of one adversary apart."""
    defence: str
    """What answers it."""


def row(
    adversary: str, attack: str, defence: str, *, short: bool = False
) -> Callable[[Any], Any]:
    """Make a test a row of the table of attacks."""

    def mark(test: Any) -> Any:
        marks = [pytest.mark.attack(Row(adversary, attack, defence))]
        if not short:
            marks.append(pytest.mark.exam)
        for one in (*marks, pytest.mark.timeout(1800)):
            test = one(test)
        return test

    return mark
