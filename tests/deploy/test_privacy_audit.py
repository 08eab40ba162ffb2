"""The privacy record of a run, and the gate in front of its model."""

import json
import math
import re

import pytest

from common.errors import PlanError, ReleaseError, RunError
from common.package import load_package
from common.plan_file import load_plan, parse_plan
from common.plan_release import Release
from deploy import inversion_audit
from deploy.cli_privacy import lines_of
from deploy.privacy_audit import PRIVACY_FILE, audit_run, check_release, refusals
from deploy.run_state import WITHHELD_FILE
from deploy.simulate import simulate
from server.privacy_record import (
    DpRecord,
    InversionRecord,
    MembershipRecord,
    PrivacyRecord,
    SiteShare,
)
from server.report import read_record
from tests.deploy.conftest import SEGMENTATION

ONE_ROUND = ("rounds = 3", "rounds = 1")


@pytest.fixture
def hasty(monkeypatch):
    """Gradient inversion gets two steps, which end before its control succeeds."""
    monkeypatch.setattr(inversion_audit, "STEPS", 2)


def gate(keys: str) -> str:
    return SEGMENTATION + f"\n[privacy.release]\n{keys}\n"


def record(**changes) -> PrivacyRecord:
    known = PrivacyRecord(
        plan_digest="",
        model_digest="",
        masked_rounds=3,
        rounds=3,
        aggregation="mean",
        dp=DpRecord(delta=1e-5, clip_norm=1.0, epsilon_pld=3.0, epsilon_prv=3.1),
        one_run=None,
        membership=MembershipRecord(auc=0.55, found=0.0, members=50, others=20),
        shares=[],
        refused=[],
    )
    return known.model_copy(update=changes)


@pytest.mark.parametrize(
    ("gate", "changes", "said"),
    [
        ({"under_masks": True}, {}, []),
        ({"under_masks": True}, {"masked_rounds": 2}, ["1 of 3 rounds were in the"]),
        ({"max_epsilon": 3.1}, {}, []),
        ({"max_epsilon": 3.05}, {}, ["epsilon is 3.1, expected at most 3.05"]),
        ({"max_epsilon": 3.1}, {"dp": None}, ["epsilon is not told by every site"]),
        ({"max_membership_auc": 0.71}, {}, []),
        (
            {"max_membership_auc": 0.69},
            {},
            ["AUC is 0.550, which on 50 and 20 cases leaves room for 0.701, expected"],
        ),
        ({"max_membership_auc": 1.0}, {"membership": None}, ["AUC is not measured"]),
        (
            {"max_epsilon": 1.0, "max_membership_auc": 0.5, "under_masks": True},
            {"masked_rounds": 0},
            ["3 of 3 rounds", "epsilon is 3.1", "AUC is 0.550"],
        ),
    ],
)
def test_the_gate_is_closed_unless_every_figure_passes(gate, changes, said):
    got = refusals(record(**changes), Release(**gate))
    assert len(got) == len(said)
    assert all(part in whole for part, whole in zip(said, got, strict=True))


@pytest.mark.parametrize("nonsense", [None, math.nan, math.inf, -math.inf, -1.0])
def test_an_epsilon_that_is_no_cost_never_opens_the_gate(nonsense):
    for pair in ((nonsense, 1.0), (1.0, nonsense)):
        pld, prv = pair
        dp = DpRecord(delta=1e-5, clip_norm=1.0, epsilon_pld=pld, epsilon_prv=prv)
        shares = [
            SiteShare(site="east", share="40 to 50 %", epsilon="3 to 4"),
            SiteShare(site="west", share="50 to 60 %", epsilon="fell"),
        ]
        (said,) = refusals(record(dp=dp, shares=shares), Release(max_epsilon=1e9))
        assert (
            "epsilon is not told by every site with every update (west: fell)" in said
        )


def test_a_gate_is_closed_where_no_round_counted():
    nothing = record(rounds=0, masked_rounds=0)
    assert refusals(nothing, Release(under_masks=True)) == [
        "no round counted, expected one"
    ]


def told_in(rounds, epsilons):
    """The rounds, in each of which every site told the cost given for it."""
    return [
        one.model_copy(
            update={
                "sites": [
                    row.model_copy(update={"epsilon_pld": e, "epsilon_prv": e})
                    for row in one.sites
                ]
            }
        )
        for one, e in zip(rounds, epsilons, strict=True)
    ]


def test_the_gate_asks_the_cost_of_every_round_of_a_private_run(plan_file, tmp_path):
    text = gate("max_epsilon = 1e3") + "\n[privacy.dp]\nnoise_multiplier = 3.0\n"
    path, folder = plan_file(text, ("rounds = 3", "rounds = 2")), tmp_path / "run"
    (arm,) = simulate(path, folder).arms
    plan = load_plan(folder / "plan.toml")
    check_release(folder, plan, arm)  # the control
    for epsilons, said in {
        (0.1, None): "north: not told",
        (None, 0.1): "north: not told",
        (0.1, math.nan): "north: not told",
        (math.inf, math.inf): "north: not told",
        (-1.0, -1.0): "north: not told",
        (2.0, 0.1): "north: fell",
    }.items():
        false = arm.model_copy(update={"rounds": told_in(arm.rounds, epsilons)})
        with pytest.raises(ReleaseError, match=said):
            check_release(folder, plan, false)


@pytest.mark.parametrize(
    "keys", ["", "max_epsilon = 0.0", "max_membership_auc = 0.4", "max_auc = 0.6"]
)
def test_a_gate_that_asks_for_nothing_or_nonsense_is_refused(keys):
    with pytest.raises(PlanError):
        parse_plan(gate(keys))


def test_an_audit_says_what_was_on_and_measures_the_rest(
    plan_file, tmp_path, fedct, hasty
):
    folder = tmp_path / "run"
    run = simulate(plan_file(SEGMENTATION, ONE_ROUND), folder)
    assert not (folder / PRIVACY_FILE).exists()
    said = fedct("privacy", "audit", folder, "--format", "json")
    assert said.code == 0, said.err
    told = PrivacyRecord.model_validate_json(said.out)
    for path in (folder / PRIVACY_FILE, folder / "model" / PRIVACY_FILE):
        assert PrivacyRecord.model_validate_json(path.read_bytes()) == told
    assert load_package(folder).plan.digest == told.plan_digest
    assert told.model_digest == run.arms[0].rounds[-1].model_digest
    assert (told.rounds, told.masked_rounds, told.dp, told.one_run) == (
        1,
        0,
        None,
        None,
    )
    assert told.membership is not None
    assert told.membership.members == sum(site.train for site in run.sites)
    assert told.membership.others == sum(site.test for site in run.sites)
    assert 0.0 <= told.membership.auc <= 1.0
    weights = {row.site: row.weight for row in run.arms[0].rounds[0].sites}
    for site in told.shares:
        low, _, high, _ = site.share.split()
        assert int(low) <= 100 * weights[site.site] <= int(high)
        assert site.epsilon == "not told"
    text = fedct("privacy", "audit", folder)
    assert "patient-level DP      off" in text.out
    assert "gate of release       none in the plan" in text.out
    assert told.inversion is not None
    assert (told.inversion.sites, told.inversion.defended) == (1, None)
    assert "the attack failed, proves nothing" in text.out


def test_an_audit_of_a_masked_run_inverts_the_sum_beside_a_control_that_succeeds(
    plan_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(inversion_audit, "LIMIT_S", 1.0)
    folder = tmp_path / "run"
    masks = '\n[privacy]\nsecure_aggregation = "on"\nmin_cohort = 2\n'
    simulate(plan_file(SEGMENTATION + masks, ONE_ROUND), folder)
    got = audit_run(folder).inversion
    assert got is not None
    assert got.works
    assert got.control > 0.9
    assert got.chance < 0.2
    assert got.defended is not None
    assert got.defended < 0.7  # within a second; two sites are few
    assert (got.sites, got.noise_multiplier) == (2, None)


def test_an_audit_of_a_private_run_has_both_accountants_and_the_canaries(
    plan_file, tmp_path, hasty
):
    folder = tmp_path / "run"
    dp = "\n[privacy.dp]\nnoise_multiplier = 3.0\n"
    run = simulate(plan_file(SEGMENTATION + dp, ONE_ROUND), folder)
    told = audit_run(folder)
    rows = run.arms[0].rounds[0].sites
    assert told.dp is not None
    assert told.dp.epsilon_pld == max(row.epsilon_pld for row in rows)
    assert told.dp.epsilon_prv == max(row.epsilon_prv for row in rows)
    assert told.dp.epsilon == max(told.dp.epsilon_pld, told.dp.epsilon_prv)
    assert told.one_run is not None
    assert told.one_run.bound <= told.one_run.claimed < told.one_run.bound_with_bug
    assert told.one_run.claimed == pytest.approx(told.dp.epsilon, abs=0.5)
    assert told.inversion is not None
    assert told.inversion.noise_multiplier == 3.0
    assert told.inversion.defended is not None
    for site, row in zip(told.shares, rows, strict=True):
        low, _, high = site.epsilon.split()
        assert int(low) <= max(row.epsilon_pld, row.epsilon_prv) <= int(high)
    text = "\n".join(lines_of(told))
    assert f"epsilon {told.dp.epsilon:.1f} at delta 1e-05" in text
    assert f"of {told.one_run.claimed:.2f} claimed" in text


@pytest.mark.parametrize(
    ("members", "others", "said", "unsaid"),
    [
        (4, 2, ["gets 0.00 to 1.00", "too few others for a figure at 1 % FPR"], "25%"),
        (200, 99, ["gets 0.43 to 0.57", "that takes 100"], "25%"),
        (200, 100, ["gets 0.43 to 0.57", "25% of members found at 1 % FPR"], "too few"),
    ],
)
def test_few_cases_are_said_to_show_little(members, others, said, unsaid):
    got = MembershipRecord(auc=0.625, found=0.25, members=members, others=others)
    text = "\n".join(lines_of(record(membership=got)))
    assert f"AUC 0.625 ({members} members, {others} others)" in text
    assert all(part in text for part in said)
    assert unsaid not in text


def test_inversion_is_told_with_its_control_and_is_no_guarantee():
    got = InversionRecord(
        control=0.98,
        chance=0.07,
        defended=0.29,
        network=0.1,
        steps=155,
        sites=5,
        noise_multiplier=None,
    )
    text = "\n".join(lines_of(record(inversion=got)))
    assert "SSIM 0.98 on its control (chance: 0.07): the attack works" in text
    assert "on what the hub got (a sum of 5 sites):" in text
    assert "control's network 0.29, the plan's network 0.10, cut off after 155" in text
    whole = got.model_copy(update={"steps": 400})
    assert "0.10, 400 steps\n" in "\n".join(lines_of(record(inversion=whole)))
    assert "an attack that fails is no guarantee" in text
    failed = got.model_copy(update={"control": 0.89})
    text = "\n".join(lines_of(record(inversion=failed)))
    assert "the attack failed, proves nothing" in text
    assert "0.29" not in text
    assert "gradient inversion    not measured" in "\n".join(lines_of(record()))


def test_a_model_that_fails_is_not_handed_out_and_the_record_says_why(
    plan_file, tmp_path, fedct
):
    text = gate("max_epsilon = 0.01") + "\n[privacy.dp]\nnoise_multiplier = 3.0\n"
    plan = plan_file(text, ONE_ROUND)
    folder = tmp_path / "run"
    said = fedct("simulate", plan, "--out", folder)
    assert said.code == ReleaseError.exit_code == 44
    (why,) = re.findall("hands out no model: (epsilon is .*, expected)", said.err)
    assert not (folder / "model").exists()
    assert "hands out no model" in (folder / WITHHELD_FILE).read_text()
    told = json.loads((folder / PRIVACY_FILE).read_text())
    assert (len(told["refused"]), told["inversion"]) == (1, None)
    kept_back = read_record(folder)
    assert why in kept_back.no_model
    page = (folder / "report.html").read_text("utf-8")
    assert why in page
    assert "closed, handed out" not in page
    assert kept_back.no_model in " ".join(fedct("report", folder).out.split())


def test_a_model_that_passes_takes_its_record_along(plan_file, tmp_path):
    folder = tmp_path / "run"
    simulate(plan_file(gate("max_membership_auc = 1.0"), ONE_ROUND), folder)
    assert not (folder / WITHHELD_FILE).exists()
    told = json.loads((folder / "model" / PRIVACY_FILE).read_text())
    assert told["refused"] == []
    assert load_package(folder).facts.round == 1


def test_a_folder_without_a_finished_run_is_refused(tmp_path, fedct):
    said = fedct("privacy", "audit", tmp_path)
    assert said.code == RunError.exit_code
    assert "holds no finished run" in said.err
    assert list(tmp_path.iterdir()) == []
