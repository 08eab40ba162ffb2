"""An engineer at a hospital, at the command line."""

import json
import os

import pytest

from client.activity import work_of
from client.audit import AUDIT, record_left
from client.control import serve_control
from client.desk import check_sites, plan_of, queue_plan
from client.desk_control import DeskControl
from client.desk_file import read_desk
from client.ledger import Budget, Spending, spend
from client.peers import known_peers
from client.policy import Policy
from client.preflight_row import Row
from client.site_file import SIGN_KEY, HubAddress, SiteFile, site_toml
from common.errors import (
    ControlError,
    JoinError,
    PolicyError,
    StoreError,
    TransportError,
    UsageError,
)
from common.plan_file import parse_plan
from common.signing import make_signing_key, public_text
from common.sources import Source
from deploy.plan_sites_view import short_fingerprint
from deploy.site_tables import print_checks, visible
from deploy.start import alone
from tests.client.conftest import is_approved, left
from tests.deploy.conftest import SEGMENTATION
from tests.deploy.test_cli import refused

OTHER = SEGMENTATION.replace("steps = 3", "steps = 5").replace(
    "min_sites = 2", "min_sites = 3"
)


AUTO = Policy(approve="auto")


@pytest.fixture
def site(tmp_path):
    """The folder of a hospital, without keys."""
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    settings = SiteFile(
        name="north",
        hub=HubAddress(address="127.0.0.1:9"),
        data=Source(source=str(tmp_path)),
    )
    (folder / "client.toml").write_text(site_toml(settings))
    return folder


@pytest.fixture
def served(site):
    """The same with its service at work."""
    with serve_control(site, DeskControl(site)):
        work_of(site).ready()
        yield site


@pytest.mark.parametrize(
    "verb", ["status", "approve", "pause", "resume", "audit", "check"]
)
def test_help_has_an_example(fedct, verb):
    said = fedct("client", verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Example: fedct client {verb} site" in " ".join(said.out.split())
    assert f" {verb} " in fedct("client", "--help").out


@pytest.mark.parametrize(
    "verb", ["status", "approve", "pause", "resume", "audit", "check"]
)
def test_a_folder_that_is_no_hospitals_is_refused(fedct, tmp_path, verb):
    refused(fedct("client", verb, tmp_path), ControlError, "no client.toml")


def test_without_a_service_decisions_are_made_on_the_disk(fedct, site):
    digest = queue_plan(site, SEGMENTATION, "run-1").digest
    assert digest in fedct("client", "approve", site).out
    assert fedct("client", "approve", site, digest[:8]).code == 0
    assert is_approved(site, digest)
    assert fedct("client", "pause", site, "--reason", "scanner moves").code == 0
    assert read_desk(site).pause is not None
    assert fedct("client", "resume", site).out == "takes orders again\n"
    assert read_desk(site).pause is None


def test_status_of_a_running_service(fedct, served):
    queue_plan(served, SEGMENTATION, "run-1")
    with work_of(served).order("training", "run-1", "ab" * 32, 2) as tell:
        tell(3, 7)
        text = fedct("client", "status", served)
        machine = fedct("client", "status", served, "--format", "json")
    assert text.code == machine.code == 0
    assert f"process {os.getpid()}" in text.out
    assert "now: training since" in text.out
    assert "run run-1, round 2, step 3 of 7" in text.out
    assert "0 approved, 1 waiting" in text.out
    refusing = pytest.raises(PolicyError)
    with refusing, work_of(served).order("training", "run-1", "ab" * 32, 3):
        raise PolicyError("not yet", code="approval")
    assert "last failed order: error 53.1, " in fedct("client", "status", served).out
    found = json.loads(machine.out)
    assert (found["running"], found["activity"]["step"], found["waiting"]) == (
        True,
        3,
        1,
    )


def test_status_without_a_service_reads_the_disk_and_says_52(fedct, site):
    queue_plan(site, SEGMENTATION, "run-1")
    work_of(site).ready()
    said = fedct("client", "status", site)
    assert said.code == ControlError.exit_code
    assert "no service runs" in said.out
    assert "at last: idle since" in said.out
    assert "0 approved, 1 waiting" in said.out
    assert "fedct client start" in said.err
    said = fedct("client", "status", site, "--format", "json")
    assert said.code == ControlError.exit_code
    assert json.loads(said.out)["running"] is False


def test_status_while_the_service_keeps_ending_says_what_it_said(fedct, site):
    with alone(site, "site"):
        said = fedct("client", "status", site)
        assert (said.code, "does not answer yet" in said.err) == (52, True)
        row = {"name": "service", "pid": None, "began": None, "restarts": 3}
        (site / "processes.json").write_text(json.dumps([row]))
        (site / "logs").mkdir()
        (site / "logs/service.log").write_text("began\nERROR hub: revoked\x1b[2J\n\n")
        said = fedct("client", "status", site)
    assert (said.code, "client start`, expected it to stay up" in said.err) == (
        52,
        True,
    )
    assert "ended 3 times since" in said.err
    assert "it said at last: ERROR hub: revoked\\u001b[2J\n" in said.err
    assert "start it with" in fedct("client", "status", site).err


def test_status_of_a_site_that_works_by_files_misses_no_service(fedct, site):
    (site / "parcels").mkdir()
    said = fedct("client", "status", site)
    assert (said.code, said.err) == (
        0,
        "orders come in files here, and need no service\n",
    )
    (site / "processes.json").write_text("[]")  # it had a service once
    assert fedct("client", "status", site).code == ControlError.exit_code


def test_plans_are_listed_with_what_they_change_and_approved(fedct, served):
    assert "no plan waits (0 seen here)" in fedct("client", "approve", served).out
    first = queue_plan(served, SEGMENTATION, "run-1").digest
    listed = fedct("client", "approve", served)
    assert listed.code == 0
    for words in (
        "pictures: waiting",
        first,
        "segmentation of nodule",
        "UNet 2-D, instance norm, channels 4-8",
        "447 parameters in 8 tensors",
        "each update leaves in the clear; no differential privacy",
        "3, each with 2 sites or more",
        "no other plan is approved here",
    ):
        assert words in listed.out
    said = fedct("client", "approve", served, first[:8])
    assert said.code == 0
    assert said.out.endswith(f"\napproved plan {first}\n")
    assert "parameters in" in said.out  # who decides sees what he decides on
    assert is_approved(served, first)

    second = queue_plan(served, OTHER, "run-2").digest
    listed = fedct("client", "approve", served)
    assert first not in listed.out
    assert f"against the last approved plan, {first[:12]}" in listed.out
    assert "training.steps: 3 -> 5" in listed.out
    assert "federation.min_sites: 2 -> 3" in listed.out
    found = json.loads(fedct("client", "approve", served, "--format", "json").out)
    [plan] = found["plans"]
    assert (plan["digest"], plan["against"]) == (second, first)
    assert plan["changes"] == [
        {"key": "training.steps", "old": "3", "new": "5"},
        {"key": "federation.min_sites", "old": "2", "new": "3"},
    ]


@pytest.mark.parametrize("verb", ["approve", "status"])
def test_wrong_settings_are_named_where_people_look(fedct, served, verb):
    assert fedct("client", verb, served).code == 0
    text = (served / "client.toml").read_text()
    (served / "client.toml").write_text(text.replace("counts = ", "count = "))
    said = fedct("client", verb, served)
    assert said.code == JoinError.exit_code
    assert "policy.count" in said.err
    assert "line " in said.err


def test_sites_of_a_plan_with_masks_are_shown_and_confirmed(fedct, site):
    (site / "keys").mkdir(mode=0o700)
    own = public_text(make_signing_key(site / SIGN_KEY).public_key())
    sites = {"north": own, "south": 64 * "5", "west": 64 * "7"}
    masked = SEGMENTATION + '\n[privacy]\nsecure_aggregation = "on"\n'
    digest = queue_plan(site, masked, "run-1", None, sites).digest
    listed = fedct("client", "approve", site).out
    for words in (
        "sites    3, as the hub names them; compare by telephone, approving confirms",
        f"north  {short_fingerprint(own)}  this site",
        f"south  {short_fingerprint(64 * '5')}  new here",
        "rounds   3, each with 3 sites or more",  # min_sites is 2, min_cohort 3
    ):
        assert words in listed
    said = fedct("client", "approve", site, digest).out
    assert "sites    3, confirmed here; others are refused" in said
    assert f"south  {short_fingerprint(64 * '5')}  known here" in said
    assert known_peers(site) == sites

    plan, other = plan_of(site, digest), {"south": 64 * "6", "east": 64 * "8"}
    with pytest.raises(PolicyError, match="east is new; south has another key"):
        check_sites(site, plan, {"north": own, **other})
    listed = fedct("client", "approve", site).out
    for words in (
        "CHANGED  the hub now names other sites, and is refused",
        f"south  {short_fingerprint(64 * '6')}  ANOTHER KEY than it is known by",
        f"east   {short_fingerprint(64 * '8')}  new here",
        "west: no longer there",
        "approve one by its hash",
    ):
        assert words in listed
    found = json.loads(fedct("client", "approve", site, "--format", "json").out)
    assert found["plans"][0]["sites_gone"] == ["west"]
    fedct("client", "approve", site, digest)
    assert "CHANGED" not in fedct("client", "approve", site, "--all").out
    check_sites(site, plan, {"north": own, **other})


def test_masks_are_said_not_to_bind_the_norm_layers_of_fedbn(fedct, site):
    sites = {name: 64 * digit for name, digit in zip("abc", "157", strict=True)}
    federation, model = '[federation]\nalgorithm = "fedbn"', '[model]\nnorm = "batch"'
    masked = SEGMENTATION + '\n[privacy]\nsecure_aggregation = "on"\n'
    unbound = masked.replace("[federation]", federation).replace("[model]", model)
    assert unbound.count("batch") > masked.count("batch")
    queue_plan(site, masked, "run-1", None, sites)
    assert "norm layers" not in fedct("client", "approve", site).out
    queue_plan(site, unbound, "run-2", None, sites)
    said = "norm layers are not bound: a hostile hub may get round this"
    assert fedct("client", "approve", site).out.count(said) == 1


def test_sites_that_the_policy_takes_on_first_use_are_said_to_be(fedct, served):
    masked = SEGMENTATION + '\n[privacy]\nsecure_aggregation = "auto"\n'
    sites = {"north": 64 * "1", "south": 64 * "5"}
    queue_plan(served, masked, "run-1", AUTO, sites)
    listed = fedct("client", "approve", served, "--all").out
    assert "sites    2, trusted on first use, as the policy approved it" in listed
    assert "north  " + short_fingerprint(64 * "1") + "  NOT THIS SITE'S KEY" in listed
    assert "each update leaves in the clear" in listed  # "auto" among two


def test_what_a_plan_asks_of_the_budget_stands_beside_what_is_left(fedct, site):
    (site / "keys").mkdir(mode=0o700)
    make_signing_key(site / SIGN_KEY)
    text = (site / "client.toml").read_text()
    (site / "client.toml").write_text(
        text.replace("# dp_epsilon = 8.0", "dp_epsilon = 2.0")
    )
    private = SEGMENTATION + "\n[privacy.dp]\n"
    queue_plan(site, private + "epsilon = 8.0\n", "run-1")
    queue_plan(site, private + "noise_multiplier = 1.0\n", "run-2")
    left = "2.00 of epsilon 2 left at delta 1e-05"
    listed = fedct("client", "approve", site).out
    assert f"this plan asks epsilon 8 at delta 1e-05; {left}" in listed
    assert f"asks what its noise costs among the patients here; {left}" in listed
    round_1 = Spending(
        run="run",
        plan="p",
        round=1,
        rate=0.1,
        noise_multiplier=1.0,
        steps=7,
        patients=10,
    )
    spend(site, round_1, Budget())
    assert left not in fedct("client", "approve", site).out


def test_what_the_policy_has_against_a_plan_stands_beside_it(fedct, site):
    text = (site / "client.toml").read_text()
    text = text.replace("min_sites = 1", "min_sites = 3")
    text = text.replace("secure_aggregation = false", "secure_aggregation = true")
    (site / "client.toml").write_text(text)
    queue_plan(site, SEGMENTATION, "run-1")
    listed = fedct("client", "approve", site).out
    assert listed.count("  REFUSED  site's policy refused") == 2
    assert "a plan that is content with 2 sites, expected 3 or more" in listed
    found = json.loads(fedct("client", "approve", site, "--format", "json").out)
    assert len(found["plans"][0]["objections"]) == 2


def test_deny_refuses_and_takes_back(fedct, served):
    digest = queue_plan(served, SEGMENTATION, "run-1", AUTO).digest
    said = fedct("client", "approve", served, digest, "--deny", "--format", "json")
    assert json.loads(said.out)["state"] == "denied"
    assert not is_approved(served, digest)
    assert "pictures: denied" in fedct("client", "approve", served, "--all").out
    refused(fedct("client", "approve", served, "--deny"), UsageError, "expected its")
    refused(fedct("client", "approve", served, "12"), UsageError, "at least 8")


def test_pause_and_resume(fedct, served):
    said = fedct("client", "pause", served, "--reason", "scanner", "--now")
    assert (said.code, "no training to cancel" in said.out) == (0, True)
    assert "paused since" in fedct("client", "status", served).out
    assert fedct("client", "resume", served).out == "takes orders again\n"
    assert fedct("client", "resume", served).out == "was not paused\n"


def test_audit_shows_what_left_and_finds_a_change(fedct, site):
    (site / "keys").mkdir(mode=0o700)
    key = make_signing_key(site / SIGN_KEY)
    for number in range(1, 4):
        code = 0 if number < 3 else 105302
        record_left(site, left(number, code=code, digest=f"{number}" * 64), key)
    said = fedct("client", "audit", site, "--last", 2)
    assert said.code == 0
    assert "OK: 3 lines" in said.out
    assert "222222222222" in said.out
    assert "error 53.2" in said.out
    assert "111111111111" not in said.out
    found = json.loads(fedct("client", "audit", site, "--format", "json").out)
    assert (found["count"], found["broken"]) == (3, None)
    assert found["lines"][-1]["hash"] == found["last_hash"]
    text = (site / AUDIT).read_text()
    (site / AUDIT).write_text(text.replace("4002,", "4000,"))
    said = fedct("client", "audit", site)
    assert said.code == StoreError.exit_code
    assert "line 2 is not the line that was written" in said.err
    assert "OK" not in said.out


def test_check_prints_a_row_each_and_exits_51(fedct, site, monkeypatch):
    probe = 'print(\'{"built": null, "gpus": []}\')'
    monkeypatch.setattr("client.preflight_machine._GPU", probe)
    said = fedct("client", "check", site, "--format", "json")
    assert said.code == TransportError.exit_code
    rows = {row["name"]: row for row in json.loads(said.out)["rows"]}
    assert len(rows) == 19
    assert rows["hub's port"]["verdict"] == "FAIL"
    assert rows["own certificate"]["verdict"] == "FAIL"
    assert rows["decoders"]["verdict"] == "PASS"
    assert rows["echo"]["verdict"] == "FAIL"
    assert rows["service"]["found"] == "not started"
    assert "would stop a round" in said.err
    with serve_control(site, DeskControl(site)):
        work_of(site).ready()
        text = fedct("client", "check", site)
    assert text.code == TransportError.exit_code
    flat = " ".join(text.out.replace("│", " ").split())
    assert "started, and idle" in flat
    assert "-> check the port, and that it is started there" in flat


def test_a_row_of_many_lines_is_one_sentence(capsys):
    print_checks([Row("settings", "FAIL", "2 to mend:\n  line 1: a\n  line 2: b\x1b")])
    flat = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "2 to mend: line 1: a line 2: b\\u001b" in flat


def test_words_of_a_server_can_not_move_the_cursor():
    assert visible("a\x1b[2Jb\u202ec\nü") == "a\\u001b[2Jb\\u202ec\\u000aü"
    assert parse_plan(OTHER).digest != parse_plan(SEGMENTATION).digest
