"""What an engineer sees of the privacy ledger."""

import json

import pytest

from client.ledger import LEDGER, Budget, Spending, epsilon_of, spend
from client.policy import Policy
from client.site_file import SIGN_KEY, HubAddress, SiteFile, site_toml
from common.accounting import NoisySteps, cost_of
from common.errors import ControlError, StoreError, UsageError
from common.signing import make_signing_key
from common.sources import Source
from tests.deploy.test_cli import refused

PLAN = "a" * 64


@pytest.fixture
def site(tmp_path):
    """The folder of a hospital with a budget."""
    folder = tmp_path / "site"
    (folder / "keys").mkdir(mode=0o700, parents=True)
    folder.chmod(0o700)
    make_signing_key(folder / SIGN_KEY)
    settings = SiteFile(
        name="north",
        hub=HubAddress(address="127.0.0.1:9"),
        data=Source(source=str(tmp_path)),
        policy=Policy(dp_epsilon=3.0, dp_delta=1e-6),
    )
    (folder / "client.toml").write_text(site_toml(settings))
    return folder


def paid(site, number, run="run-1", steps=50):
    part = Spending(
        run=run,
        plan=PLAN,
        round=number,
        rate=0.02,
        noise_multiplier=1.5,
        steps=steps,
        patients=100,
    )
    return spend(site, part, Budget())


def test_help_has_an_example(fedct):
    said = fedct("client", "ledger", "--help")
    assert "Example: fedct client ledger site" in " ".join(said.out.split())
    assert " ledger " in fedct("client", "--help").out


def test_a_folder_that_is_no_hospitals_is_refused(fedct, tmp_path):
    refused(fedct("client", "ledger", tmp_path), ControlError, "no client.toml")


def test_nothing_spent_leaves_the_whole_budget(fedct, site):
    said = fedct("client", "ledger", site)
    assert said.out == (
        "in all: epsilon 0.000 (PLD), 0.000 (PRV) at delta 1e-06; 3.000 of 3 left\n"
    )


def test_runs_are_listed_and_add_up(fedct, site):
    paid(site, 1)
    paid(site, 1)  # trained anew after a crash
    paid(site, 2)
    lines = paid(site, 1, run="run-2")
    found = json.loads(fedct("client", "ledger", site, "--format", "json").out)
    one, two = found["runs"]
    assert (one["rounds"], one["payments"], one["steps"]) == (2, 3, 150)
    assert (two["run"], two["rounds"], two["plan"]) == ("run-2", 1, PLAN)
    own = cost_of([NoisySteps(0.02, 1.5, 150)], 1e-6)
    assert (one["epsilon_pld"], one["epsilon_prv"]) == (own.pld, own.prv)
    assert found["epsilon"] == epsilon_of(lines, 1e-6)
    assert found["left"] == 3.0 - found["epsilon"]
    assert (found["lines"], found["last_hash"]) == (4, lines[-1].hash)
    text = fedct("client", "ledger", site).out
    assert "run run-1, plan aaaaaaaaaaaa: 2 rounds (1 paid for again)" in text
    assert f"OK: 4 lines, last hash {lines[-1].hash}" in text


def test_another_delta_gives_another_epsilon(fedct, site):
    paid(site, 1)
    at = [
        json.loads(fedct("client", "ledger", site, *more, "--format", "json").out)
        for more in ([], ["--delta", "1e-4"])
    ]
    assert at[0]["epsilon"] > at[1]["epsilon"]
    assert at[1]["delta"] == 1e-4


@pytest.mark.parametrize("delta", ["nan", "inf", "0", "1e-16", "0.6"])
def test_a_delta_that_is_no_chance_is_refused(fedct, site, delta):
    said = fedct("client", "ledger", site, "--delta", delta)
    refused(said, UsageError, "expected 1e-15 to 0.5")


def test_an_altered_ledger_exits_with_its_number(fedct, site):
    paid(site, 1)
    path = site / LEDGER
    path.write_text(path.read_text().replace('"steps":50', '"steps":5'))
    refused(fedct("client", "ledger", site), StoreError, "line 1 is not the line")
