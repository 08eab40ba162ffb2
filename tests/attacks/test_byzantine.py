"""Hostile sites against the rules of aggregation; the plain mean is the control."""

import pytest

from tests.attacks.byzantine_table import ATTACKS, RULES, Table, markdown
from tests.attacks.rows import row

ROBUST = RULES[2:]
"""What bears with any lie; a clipped mean only bounds what a lie can do."""
UNFELT = "ALIE, z = 1.5, 2 sites"
"""Too little for these sites: they hardly differ, so there is nowhere to hide."""
NEAR_HALF = "label flip, 3 sites"
"""One site short of a half: every rule gives way some, Krum and its kin refuse."""


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("byzantine"))


@row(
    "hostile site",
    "sends five times its update, backwards (2 of 7 sites)",
    "median",
    short=True,
)
def test_two_sites_cannot_turn_the_median(table, told):
    honest = table.dice("none", "mean")
    attacked = table.dice("sign flip x5, 2 sites", "mean")
    defended = table.dice("sign flip x5, 2 sites", "median")
    told(f"mean: Dice {attacked:.3f} (honest {honest:.3f})", f"Dice {defended:.3f}")
    assert honest > 0.9
    assert attacked < 0.3
    assert defended > honest - 0.03


@row(
    "hostile site",
    "eight attacks on every rule (table below)",
    "robust aggregation",
)
def test_every_attack_is_felt_by_the_mean_and_borne_by_a_robust_rule(table, told):
    cells = {(a, r): table.dice(a, r) for a in ATTACKS for r in RULES}
    title = "Hostile sites: Dice by attack and rule of aggregation"
    told(title=title, table=markdown(cells, RULES))
    honest = cells["none", "mean"]
    felt = {a: cells[a, "mean"] for a in ATTACKS if a not in ("none", UNFELT)}
    borne = [a for a in felt if a != NEAR_HALF]
    best = {a: max(cells[a, r] or 0.0 for r in ROBUST) for a in borne}
    worst = {a: min(v for r in ROBUST if (v := cells[a, r]) is not None) for a in borne}
    told(
        f"mean: Dice {min(felt.values()):.3f} to {max(felt.values()):.3f} "
        f"(honest {honest:.3f})",
        f"best rule of each row {min(best.values()):.3f} to {max(best.values()):.3f}, "
        f"worst robust cell {min(worst.values()):.3f}",
    )
    assert max(felt.values()) < honest - 0.01
    assert min(best.values()) > honest - 0.03
    assert cells[NEAR_HALF, "krum"] is None
