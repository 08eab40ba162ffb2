"""What a hospital's policy forbids is not done, and what it allowed is looked at again.

Real orders to a real site with pictures; nothing here is answered by a stand-in.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date, datetime, time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import client.app
import client.fleet
from client.app import SITE_FOLDER_KEY, note_number, serve_order, work
from client.audit import read_audit
from client.desk import decide, queue_plan
from client.fleet import Fleet
from client.hub_road import HubAddress
from client.ledger import read_ledger
from client.mask_memory import MASKED as MASKED_FILE
from client.masking import SiteMasks
from client.policy import (
    Policy,
    check_hours,
    check_plan,
    check_round,
    objections,
)
from client.service import SiteService
from client.site_file import CLIENT_FILE, SIGN_KEY, read_site_file
from common.canonical import digest_of_answer
from common.error_numbers import ORDER_LOST
from common.errors import JoinError, PolicyError
from common.exchange import (
    Hello,
    Judgement,
    JudgeOrder,
    KeysOrder,
    MaskedUpdate,
    Opening,
    OpenOrder,
    Order,
    Roster,
    RoundKeys,
    SealedShares,
    SharesOrder,
    TrainOrder,
    Update,
)
from common.keys import read_signing_key
from common.parameters import digest_of
from common.pieces import MalformedError
from common.plan import Plan
from common.plan_file import plan_toml
from common.signing import Mark, asked_of, public_text, verify
from common.wire import from_record, payload_bytes, seal_in, to_record
from deploy.engine import InProcessGrid
from deploy.phantom.scanner import HOSPITALS
from server.federation import first_model
from tests.client.conftest import order, slices, write_hospital

PLAN = slices()
MASKED = slices(privacy__secure_aggregation="on")
AUTO = Policy(approve="auto", counts="exact")
QUERIES = {Hello: "query", JudgeOrder: "evaluate"}


@pytest.fixture(autouse=True)
def _fresh_process():
    client.app._services.clear()
    InProcessGrid([])  # Flower wants a task identity before it makes messages
    yield
    client.app._services.clear()


@pytest.fixture
def hospital(tmp_path, hospital_pictures) -> Callable[..., Path]:
    """A hospital's folder with a policy; asked again, the policy is another one."""

    def make(policy: Policy) -> Path:
        where = {"vendor": HOSPITALS[0].scanner.vendor}
        folder = write_hospital(tmp_path / "north", policy, hospital_pictures, where)
        assert read_site_file(folder).policy == policy
        return folder

    return make


SITES = {name: 32 * f"{n:02x}" for n, name in enumerate(("north", "south", "west"))}


def hello(plan: Plan = PLAN, sites: Mapping[str, str] = SITES) -> Hello:
    text = plan_toml(plan, with_simulation=False)
    return Hello("run", plan.digest, text, first_model(plan)[1].digest, sites)


def judge(plan: Plan = PLAN) -> JudgeOrder:
    train = order(plan, 1, 0)
    return JudgeOrder("run", plan.digest, 1, 0, "test", train.model, train.model_digest)


def ask(folder: Path, one: Order) -> Message:
    message = Message(to_record(one), 2, QUERIES.get(type(one), "train"))
    message.metadata.__dict__["_message_id"] = "m"
    return serve_order(folder, message)[0]


def number(folder: Path, one: Order) -> int:
    """What a refused order is answered with."""
    reply = ask(folder, one)
    assert reply.has_error()
    assert reply.error.reason is None
    return reply.error.code


REFUSED = [
    (Policy(), PLAN, 105301),
    (Policy(approve="listed", plans=("0" * 64,)), PLAN, 105301),
    (AUTO.model_copy(update={"max_rounds": 3}), PLAN, 105305),
    (AUTO.model_copy(update={"min_sites": 3}), PLAN, 105306),
    (AUTO.model_copy(update={"min_sites": 4}), MASKED, 105306),
    (AUTO.model_copy(update={"secure_aggregation": True}), PLAN, 105307),
    (AUTO.model_copy(update={"answers": ("judgement",)}), PLAN, 105311),
]


@pytest.mark.parametrize(("policy", "plan", "said"), REFUSED)
def test_an_order_that_the_policy_forbids_is_not_begun(hospital, policy, plan, said):
    site = hospital(policy)
    assert number(site, hello(plan)) == said
    assert number(site, order(plan, 1, 0)) in (said, 105301)
    assert not (site / "store").exists()  # no image was looked at
    log = read_audit(site)
    assert log.broken is None
    assert [line.what for line in log.lines] == ["error", "error"]
    assert log.lines[0].code == said
    assert {(line.digest, line.allowed, line.policy) for line in log.lines} == {
        (None, None, None)
    }


def test_a_policy_that_is_content_lets_all_three_answers_out(hospital):
    strict = Policy(
        approve="listed",
        plans=(PLAN.digest,),
        min_sites=2,
        max_rounds=4,
        max_update_norm=1e3,
        counts="exact",
    )
    site = hospital(strict)
    answers = []
    for one, kind in (
        (hello(), Roster),
        (order(PLAN, 1, 0), Update),
        (judge(), Judgement),
    ):
        content = ask(site, one).content
        answers.append((from_record(content, kind), seal_in(content)))
    log = read_audit(site)
    assert log.broken is None
    for (answer, seal), line in zip(answers, log.lines, strict=True):
        assert line.what == type(answer).__name__
        assert line.digest == digest_of_answer(answer).hex()
        assert line.to == "hub.example.org:8443"
        assert line.policy == strict.digest
        assert line.allowed.startswith("approved 20")
        assert (line.plan, line.code) == (PLAN.digest, 0)
        assert seal.mark == Mark(line.number, line.hash)
    assert log.lines[1].bytes_out == answers[1][0].delta.nbytes


TIGHTER = [
    ({"answers": ("roster",)}, 105311),
    ({"max_rounds": 3}, 105305),
    ({"min_sites": 3}, 105306),
    ({"secure_aggregation": True}, 105307),
    ({"max_update_norm": 1e-6}, 105309),
    ({"approve": "listed", "plans": ("0" * 64,)}, 105301),
]


@pytest.mark.parametrize(("change", "said"), TIGHTER)
def test_an_answer_is_checked_by_the_policy_that_holds_when_it_leaves(
    hospital, monkeypatch, change, said
):
    site = hospital(AUTO)
    assert not ask(site, hello()).has_error()
    trained, train = [], SiteService.train

    def change_meanwhile(self: SiteService, *args: object) -> Update:
        update = train(self, *args)
        trained.append(update)
        hospital(AUTO.model_copy(update=change))
        return update

    monkeypatch.setattr(SiteService, "train", change_meanwhile)
    assert number(site, order(PLAN, 1, 0)) == said
    assert len(trained) == 1
    assert read_audit(site).lines[-1].what == "error"
    hospital(AUTO)
    monkeypatch.undo()
    assert not ask(site, order(PLAN, 1, 0)).has_error()


def test_an_approval_that_was_taken_back_during_the_work_holds_the_answer(
    hospital, monkeypatch
):
    site = hospital(Policy(counts="exact"))
    digest = queue_plan(site, hello().plan_toml, "run").digest
    decide(site, digest, "approved")
    train = SiteService.train

    def deny_meanwhile(self: SiteService, *args: object) -> Update:
        decide(site, digest, "denied")
        return train(self, *args)

    monkeypatch.setattr(SiteService, "train", deny_meanwhile)
    assert number(site, order(PLAN, 1, 0)) == 105301


def test_a_gate_that_finds_something_holds_the_answer_and_tells_a_number(
    hospital, monkeypatch
):
    site = hospital(AUTO)
    train = SiteService.train

    def lie(self: SiteService, *args: object) -> Update:
        return replace(train(self, *args), site="PHANTOM-NORTH-0001")

    assert not ask(site, hello()).has_error()
    monkeypatch.setattr(SiteService, "train", lie)
    assert number(site, order(PLAN, 1, 0)) == 105312


def test_counts_leave_rounded_unless_the_policy_says_otherwise(hospital):
    site = hospital(Policy(approve="auto"))
    roster = from_record(ask(site, hello()).content, Roster)
    assert {roster.train, roster.validation, roster.test} == {10}
    assert {roster.accepted, roster.found} == {10}
    update = from_record(ask(site, order(PLAN, 1, 0)).content, Update)
    assert (update.cases, update.steps) == (10, 3)
    hospital(AUTO)
    exact = from_record(ask(site, hello()).content, Roster)
    assert exact.train + exact.validation + exact.test == exact.accepted
    assert exact.train < 10


def test_sums_over_too_few_cases_stay(hospital):
    site = hospital(AUTO)
    assert not ask(site, hello()).has_error()
    told = from_record(ask(site, judge()).content, Judgement)
    cases = int(told.sums["cases"][0])
    assert cases >= 1
    hospital(AUTO.model_copy(update={"min_judged": cases + 1}))
    assert from_record(ask(site, judge()).content, Judgement).sums == {}


def test_what_is_no_order_is_answered_with_a_number_and_written_down(hospital):
    site = hospital(AUTO)
    message = Message(RecordDict(), 2, "train")
    message.metadata.__dict__["_message_id"] = "m"
    assert serve_order(site, message)[0].error.code == 1040
    (line,) = read_audit(site).lines
    assert (line.kind, line.run, line.code) == ("unknown", None, 1040)


def test_a_site_whose_audit_log_was_altered_answers_nothing_any_more(hospital):
    site = hospital(AUTO)
    for _ in range(2):
        assert not ask(site, hello()).has_error()
    path = site / "audit.jsonl"
    whole = path.read_text()
    path.write_text(whole.replace('"code":0', '"code":1', 1))  # not the last line
    assert number(site, hello()) == 102303
    path.write_text(whole)
    assert not ask(site, hello()).has_error()


def test_orders_for_rounds_that_the_plan_does_not_have_are_refused(hospital):
    site = hospital(AUTO)
    assert not ask(site, hello()).has_error()
    for beyond in (0, PLAN.federation.rounds + 1):
        assert number(site, order(PLAN, beyond, 0)) == 105305
    found = [path.name for path in (site / "state").rglob("*") if path.is_file()]
    assert found == ["told.json"]  # of the roll call; nothing was trained
    with pytest.raises(PolicyError, match="expected one of the 4 of the plan"):
        check_round(PLAN, -1)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("minimum_sites = 3", "minimum_sites"),
        ("min_sites = 0", "min_sites"),
        ('max_rounds = "many"', "max_rounds"),
        ('hours = ["6-18"]', "hours like 18:00-07:00"),
        ('hours = ["18:00-18:00"]', "hours like 18:00-07:00"),
        ('plans = ["85b45201"]', "plans"),
        ('approve = "all"', "approve"),
        ('approve = "listed"', "at least one hash"),
        ("max_update_norm = inf", "max_update_norm"),
        ('answers = ["everything"]', "answers"),
        ('counts = "none"', "counts"),
    ],
)
def test_a_wrong_policy_is_refused_by_key_and_lets_nothing_happen(
    hospital, line, named
):
    site = hospital(AUTO)
    text = (site / CLIENT_FILE).read_text()
    key = line.split(" = ")[0]
    kept = [one for one in text.splitlines() if not one.startswith(f"{key} =")]
    place = kept.index("[policy]") + 1
    (site / CLIENT_FILE).write_text("\n".join([*kept[:place], line, *kept[place:]]))
    with pytest.raises(JoinError, match=named) as caught:
        read_site_file(site)
    assert "policy" in str(caught.value)
    assert number(site, hello()) == 1050
    assert not (site / "store").exists()


@given(begin=st.times(), end=st.times(), now=st.times(), day=st.dates(date(2000, 1, 1)))
def test_hours_are_a_span_of_the_day_that_may_pass_midnight(begin, end, now, day):
    begin, end, now = (t.replace(second=0, microsecond=0) for t in (begin, end, now))
    span = f"{begin:%H:%M}-{end:%H:%M}"
    if begin == end:
        with pytest.raises(ValidationError):
            Policy(hours=(span,))
        return

    def minutes(t: time) -> int:
        return (60 * (t.hour - begin.hour) + t.minute - begin.minute) % 1440

    policy = Policy(hours=(span,))
    moment = datetime.combine(day, now)
    if minutes(now) < minutes(end):
        check_hours(policy, moment)
    else:
        with pytest.raises(PolicyError) as caught:
            check_hours(policy, moment)
        assert caught.value.code == "hours"
    check_hours(Policy(), moment)


def test_outside_its_hours_a_site_begins_nothing(hospital):
    now = datetime.now()
    hour = (now.hour + 2) % 24
    closed = f"{hour:02d}:00-{(hour + 1) % 24:02d}:00"
    site = hospital(AUTO.model_copy(update={"hours": (closed,)}))
    assert number(site, hello()) == 105304
    hospital(AUTO.model_copy(update={"hours": (closed, "00:00-23:59")}))
    if (now.hour, now.minute) != (23, 59):
        assert not ask(site, hello()).has_error()


def test_every_objection_is_told_to_the_engineer_at_once():
    policy = Policy(
        approve="listed",
        plans=("0" * 64,),
        max_rounds=1,
        min_sites=9,
        secure_aggregation=True,
    )
    codes = [error.code for error in objections(policy, PLAN)]
    assert codes == ["approval", "rounds", "cohort", "masks"]
    check_plan(Policy(secure_aggregation=True, min_sites=3), MASKED)


def test_the_digest_of_a_policy_is_another_with_any_other_value():
    changed = [Policy(), *(policy for policy, _, _ in REFUSED[1:]), AUTO]
    assert len({policy.digest for policy in changed}) == len(changed)
    assert Policy().digest == Policy.model_validate({}).digest


def test_by_a_masked_plan_a_hospital_trains_for_no_update_in_the_clear(hospital):
    """A server that leaves the masks away is refused before anything is trained."""
    site = hospital(AUTO)
    for plan in (PLAN, MASKED):
        assert not ask(site, hello(plan)).has_error()
    assert not ask(site, order(PLAN, 1, 0)).has_error()  # the control
    assert number(site, order(MASKED, 1, 0)) == 105307
    assert [path.name for path in (site / "state").iterdir()] == ["run"]


AUTO_MASKS = slices(privacy__secure_aggregation="auto")
TWO = dict(list(SITES.items())[:2])


def test_whether_auto_means_masks_is_decided_by_the_sites_of_the_plan(hospital):
    """However few a hub finds at the moment; two, or a robust rule, do without."""
    site = hospital(AUTO)
    robust = slices(
        privacy__secure_aggregation="auto",
        federation__aggregation="median",
        federation__min_sites=3,
    )
    for plan, sites, said in (
        (AUTO_MASKS, SITES, 105307),
        (slices(privacy__secure_aggregation="auto", plan__seed=7), TWO, None),
        (robust, SITES, None),
    ):
        assert not ask(site, hello(plan, sites)).has_error()
        reply = ask(site, order(plan, 1, 0, run=plan.digest[:8]))
        assert (reply.error.code if reply.has_error() else None) == said
    careful = hospital(AUTO.model_copy(update={"secure_aggregation": True}))
    assert number(careful, order(robust, 1, 0)) == 105307


def test_a_hub_that_names_fewer_sites_later_does_not_talk_the_masks_away(hospital):
    site = hospital(AUTO)
    assert not ask(site, hello(AUTO_MASKS)).has_error()
    assert number(site, hello(AUTO_MASKS, TWO)) == 105313
    assert number(site, order(AUTO_MASKS, 1, 0)) == 105307
    decide(site, AUTO_MASKS.digest, "approved")  # the engineer knows that one left
    assert not ask(site, hello(AUTO_MASKS, TWO)).has_error()
    assert not ask(site, order(AUTO_MASKS, 1, 0)).has_error()


@pytest.mark.parametrize("sites", [{}, {"north": "ab"}, {"..": "ab" * 32}])
def test_a_hub_that_names_no_sites_gets_nothing_where_there_may_be_masks(
    hospital, sites
):
    site = hospital(AUTO)
    for plan in (MASKED, AUTO_MASKS):
        assert number(site, hello(plan, sites)) == 105313
        assert number(site, order(plan, 1, 0)) == 105301
    assert not ask(site, hello(PLAN, sites)).has_error()


def test_a_plan_has_as_many_runs_as_the_policy_allows(hospital):
    site = hospital(AUTO.model_copy(update={"max_runs": 2}))
    assert not ask(site, hello()).has_error()
    for run in ("first", "second", "first"):
        assert not ask(site, order(PLAN, 1, 0, run=run)).has_error()
    assert number(site, order(PLAN, 1, 0, run="third")) == 105314
    assert number(site, replace(hello(), run="third")) == 105314
    other = slices(plan__seed=7)
    assert not ask(site, hello(other)).has_error()
    assert not ask(site, order(other, 1, 0, run="third")).has_error()
    assert not ask(site, order(PLAN, 2, 1, run="first")).has_error()


def test_a_run_is_by_the_plan_that_began_it(hospital):
    """Or its memory would belong to two plans, and count as a run of the last alone."""
    site, other = hospital(AUTO), slices(plan__seed=7)
    for plan in (PLAN, other):
        assert not ask(site, hello(plan)).has_error()
    assert not ask(site, order(PLAN, 1, 0)).has_error()
    for one in (order(other, 1, 0), order(other, 2, 1), judge(other)):
        assert number(site, one) == 104021
    assert number(site, order(PLAN, 2, 1, run="again")) == 105314
    assert not ask(site, order(PLAN, 2, 1)).has_error()


def test_behind_an_audit_log_that_was_altered_no_work_is_begun(hospital, monkeypatch):
    site = hospital(AUTO)
    assert not ask(site, hello()).has_error()
    trained: list[object] = []
    monkeypatch.setattr(SiteService, "train", lambda *given: trained.append(given))
    path = site / "audit.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert number(site, order(PLAN, 1, 0)) == 102303
    assert not trained


def test_what_was_trained_for_and_refused_is_answered_for_no_other_model(hospital):
    """A refusal by the norm of an update tells something of it, too."""
    site = hospital(AUTO.model_copy(update={"max_update_norm": 1e-6}))
    assert not ask(site, hello()).has_error()
    first = order(PLAN, 1, 0)
    other = first.model + np.float32(1e-3)
    assert number(site, first) == 105309
    assert number(site, first) == 105309
    changed = replace(first, model=other, model_digest=digest_of(other))
    assert number(site, changed) == 104021


def test_a_control_variate_comes_with_its_algorithm_alone(hospital):
    site, size = hospital(AUTO), first_model(PLAN)[1].size
    sgd = {"training__optimizer": "sgd", "training__momentum": 0.0}
    scaffold = slices(federation__algorithm="scaffold", **sgd)
    zeros = np.zeros(size, np.float32)
    for plan in (PLAN, scaffold):
        assert not ask(site, hello(plan)).has_error()
    assert number(site, order(PLAN, 1, 0, control=zeros)) == 104026
    train = partial(order, scaffold, 1, 0, run="scaffold")
    for wrong in (zeros[:-1], zeros * np.nan):
        assert number(site, train(control=wrong)) == 104026
    assert not ask(site, train(control=zeros)).has_error()


def test_a_model_is_judged_on_known_parts_alone(hospital):
    site = hospital(AUTO)
    assert not ask(site, hello()).has_error()
    for part in ("train", "x1", "../../etc", ""):
        assert number(site, replace(judge(), part=part)) == 104026
    assert not ask(site, judge()).has_error()


def test_noise_is_drawn_once_for_a_round_that_was_answered(hospital):
    dp = {"noise_multiplier": 2.0}
    plan = slices(privacy__dp=dp, training__steps=1, federation__rounds=5)
    site = hospital(AUTO)
    assert not ask(site, hello(plan)).has_error()
    for round in range(1, 6):
        assert not ask(site, order(plan, round, round - 1)).has_error()
    paid = len(read_ledger(site))
    assert number(site, order(plan, 1, 0)) == 104021  # its answer is kept no more
    assert not ask(site, order(plan, 5, 4)).has_error()  # this one's is
    assert len(read_ledger(site)) == paid == 5


class MaskedHospital:
    """A hospital in a masked round with two other sites, and the hub between them."""

    def __init__(self, folder: Path, others: Path) -> None:
        self.folder = folder
        self.key = read_signing_key(folder / SIGN_KEY).public_key()
        self.others = {}
        roster = {"north": public_text(self.key)}
        for name in ("south", "west"):
            identity = Ed25519PrivateKey.generate()
            roster[name] = public_text(identity.public_key())
            home = others / name
            home.mkdir(mode=0o700, parents=True)
            self.others[name] = SiteMasks(home, name, identity)
        self.hello = hello(MASKED, roster)
        size = first_model(MASKED)[1].size
        self.keys = KeysOrder("run", MASKED.digest, 1, roster, 20, size, 3)

    def set_up(self) -> TrainOrder:
        """Roll call, keys and shares; the order to train that comes after them."""
        assert not ask(self.folder, self.hello).has_error()
        packed = {"north": from_record(ask(self.folder, self.keys).content, RoundKeys)}
        packed |= {n: s.keys(self.keys, MASKED, 1) for n, s in self.others.items()}
        keys = {name: one.keys for name, one in packed.items()}
        self.shares = SharesOrder("run", MASKED.digest, 1, keys)
        assert not ask(self.folder, self.shares).has_error()
        sealed = {n: s.shares(self.shares).sealed for n, s in self.others.items()}
        mine = {name: shares["north"] for name, shares in sealed.items()}
        return order(MASKED, 1, 0, sealed=mine)

    @property
    def open(self) -> OpenOrder:
        """The order to open the sum of all three."""
        return OpenOrder("run", MASKED.digest, 1, ("north", "south", "west"))


@pytest.fixture
def masked(hospital, tmp_path) -> MaskedHospital:
    return MaskedHospital(hospital(AUTO), tmp_path / "others")


def test_every_turn_of_a_masked_round_is_written_down_as_it_left(masked):
    train = masked.set_up()
    turns = [
        (masked.hello, Roster),
        (masked.keys, RoundKeys),
        (masked.shares, SealedShares),
        (train, MaskedUpdate),
        (masked.open, Opening),
    ]
    before = len(read_audit(masked.folder).lines)
    assert before == 3  # the set-up's own
    for one, kind in turns[3:]:
        content = ask(masked.folder, one).content
        answer, seal = from_record(content, kind), seal_in(content)
        line = read_audit(masked.folder).lines[-1]
        verify(answer, asked_of(one, "north"), seal, masked.key)
        assert line.digest == digest_of_answer(answer).hex()
        assert line.bytes_out == payload_bytes(content) > 0
        assert seal.mark == Mark(line.number, line.hash)
    log = read_audit(masked.folder)
    assert log.broken is None
    assert [line.what for line in log.lines] == [kind.__name__ for _, kind in turns]
    assert [line.round for line in log.lines] == [None, 1, 1, 1, 1]
    assert all(line.digest and line.bytes_out for line in log.lines[1:])
    assert {line.allowed[:11] for line in log.lines} == {"approved 20"}


def test_a_hospital_that_took_in_more_cases_weighs_what_it_told(masked, monkeypatch):
    """Or the weights would not add up to the roll call's, and the round were void."""
    train, seen = masked.set_up(), []
    told = SiteService.train
    real = SiteMasks.mask

    def grown(self, *given):
        update = told(self, *given)
        seen.append(update.cases)
        return replace(update, cases=update.cases + 40)

    def noted(self, order, update, plan):
        seen.append(update.cases)
        return real(self, order, update, plan)

    monkeypatch.setattr(SiteService, "train", grown)
    monkeypatch.setattr(SiteMasks, "mask", noted)
    assert not ask(masked.folder, train).has_error()
    assert seen[0] == seen[1]


def test_no_turn_of_a_masked_round_is_by_another_plan_than_the_run(masked):
    train = masked.set_up()
    other = slices(privacy__secure_aggregation="on", plan__name="other")
    text = plan_toml(other, with_simulation=False)
    again = replace(masked.hello, plan_digest=other.digest, plan_toml=text)
    assert not ask(masked.folder, again).has_error()
    for turn in (masked.keys, masked.shares, train, masked.open):
        assert number(masked.folder, replace(turn, plan_digest=other.digest)) == 104021
    assert not ask(masked.folder, train).has_error()


@pytest.mark.parametrize(
    ("change", "said"),
    [({"max_update_norm": 1e-6}, 105309), ({"min_sites": 4}, 105306)],
)
def test_what_the_policy_forbids_meanwhile_is_not_masked(
    hospital, masked, monkeypatch, change, said
):
    train, real = masked.set_up(), SiteService.train

    def change_meanwhile(self: SiteService, *args: object) -> Update:
        update = real(self, *args)
        hospital(AUTO.model_copy(update=change))
        return update

    monkeypatch.setattr(SiteService, "train", change_meanwhile)
    assert number(masked.folder, train) == said
    assert not (masked.folder / "state" / "run" / MASKED_FILE).exists()
    line = read_audit(masked.folder).lines[-1]
    assert (line.what, line.code, line.bytes_out) == ("error", said, 0)


@pytest.mark.parametrize(
    ("change", "said"), [({"answers": ("roster",)}, 105311), ({"min_sites": 4}, 105306)]
)
def test_what_the_policy_forbids_meanwhile_is_not_opened(
    hospital, masked, change, said
):
    assert not ask(masked.folder, masked.set_up()).has_error()
    hospital(AUTO.model_copy(update=change))
    assert number(masked.folder, masked.open) == said
    hospital(AUTO)
    assert not ask(masked.folder, masked.open).has_error()


def test_keys_for_a_model_of_another_size_train_nothing(masked, monkeypatch):
    masked.keys = replace(masked.keys, size=masked.keys.size + 1)
    train = masked.set_up()
    monkeypatch.setattr(SiteService, "train", None)
    assert number(masked.folder, train) == 104002


@pytest.mark.parametrize("kind", ["system", "train.other", "an error"])
def test_a_message_that_flower_knows_no_function_for_is_answered_and_written_down(
    hospital, kind
):
    """A hub may send anything; none of it ends the service."""
    site = hospital(AUTO)
    odd = Message(RecordDict(), 2, "train" if kind == "an error" else kind)
    odd.metadata.__dict__["_message_id"] = "m"
    if kind == "an error":
        odd = Message(Error(5, "PHANTOM-NORTH-0001"), reply_to=odd)
        odd.metadata.__dict__["_message_id"] = "m"
    config = {SITE_FOLDER_KEY: str(site)}
    reply = work(odd, Context(1, 2, config, RecordDict(), {}))
    assert (reply.error.code, reply.error.reason) == (1040, None)
    (line,) = read_audit(site).lines
    assert (line.kind, line.what, line.code) == ("unknown", "error", 1040)


def test_that_an_order_was_lost_is_written_down_before_it_is_said(
    hospital, monkeypatch
):
    """An order whose parts can't be read is answered by the line, not by the app."""
    site, said = hospital(AUTO), []
    came = Message(RecordDict(), 2, "train")
    came.metadata.__dict__["_message_id"] = "m"
    heads = [message_to_proto(came)]
    trees = [ObjectTree(object_id="m")]
    pulled = PullMessagesResponse(messages_list=heads, message_object_trees=trees)
    nobody = SimpleNamespace(
        PullMessages=lambda request: pulled,
        PullObject=None,
        ConfirmMessageReceived=None,
    )

    def unreadable(*given: object) -> None:
        raise MalformedError("it names no parts of arrays")

    def push(fleet: Fleet, answer: Message, seconds: float) -> None:
        said.append((answer.error.code, [x.code for x in read_audit(site).lines]))

    monkeypatch.setattr(client.fleet, "fleet_client", lambda *given: nobody)
    monkeypatch.setattr(
        client.fleet, "pull_and_inflate_object_from_tree", lambda *a, **k: came
    )
    monkeypatch.setattr(client.fleet, "unpack", unreadable)
    monkeypatch.setattr(Fleet, "push", push)
    hub = HubAddress("hub", 1, site, site, site)
    node_key, note = ec.generate_private_key(ec.SECP384R1()), partial(note_number, site)
    assert Fleet(hub, node_key, print, threading.Event(), note).pull() is None
    assert said == [(ORDER_LOST, [ORDER_LOST])]
