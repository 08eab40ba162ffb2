import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import client.desk
import client.dp_site
import client.dp_train
from client.audit import AUDIT, record_left
from client.audit import HEAD as AUDIT_HEAD
from client.dp_site import terms_of
from client.ledger import (
    HEAD,
    LEDGER,
    Budget,
    Spending,
    check_affordable,
    epsilon_of,
    first_of,
    read_ledger,
    spend,
)
from client.policy import Policy, objections
from client.secret_random import SecretStream
from client.site_file import SIGN_KEY
from common.accounting import NoisySteps, cost_of
from common.errors import PlanError, PolicyError, StoreError
from common.exchange import Hello
from common.keys import read_signing_key
from common.plan_file import plan_toml
from common.signing import make_signing_key
from server.federation import plan_layout
from tests.client.conftest import left, order, quiet, slices

DELTA = 1e-5
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _keys(tmp_path):
    """Of two sites: `tmp_path` and its folder `site`."""
    for folder in (tmp_path, tmp_path / "site"):
        (folder / "keys").mkdir(mode=0o700, parents=True)
        make_signing_key(folder / SIGN_KEY)
    (tmp_path / "site").chmod(0o700)


def spending(number=1, steps=10, **changes) -> Spending:
    given = {
        "run": "run",
        "plan": "p" * 64,
        "round": number,
        "rate": 0.02,
        "noise_multiplier": 1.0,
        "steps": steps,
        "patients": 100,
    }
    return Spending(**{**given, **changes})


def private(**changes):
    dp = {"noise_multiplier": 1.0, "delta": 1e-3}
    return slices(**{"privacy__dp": dp, **changes})


# --- the file -----------------------------------------------------------------------


def test_a_new_ledger_is_empty_and_keeps_what_is_spent(tmp_path):
    assert read_ledger(tmp_path) == ()
    lines = [spend(tmp_path, spending(n), Budget())[-1] for n in (1, 2, 3)]
    assert list(read_ledger(tmp_path)) == lines
    assert [line.number for line in lines] == [1, 2, 3]
    assert [line.round for line in lines] == [1, 2, 3]
    assert (tmp_path / LEDGER).stat().st_mode & 0o077 == 0


def test_runs_and_plans_are_composed_into_one_price(tmp_path):
    parts = [
        spending(1, 100),
        spending(1, 40, run="other", plan="q" * 64, noise_multiplier=1.5, rate=0.03),
        spending(2, 100),
    ]
    for part in parts:
        spend(tmp_path, part, Budget())
    expected = cost_of(
        [NoisySteps(0.02, 1.0, 200), NoisySteps(0.03, 1.5, 40)], DELTA
    ).epsilon
    assert epsilon_of(read_ledger(tmp_path), DELTA) == expected


@pytest.fixture
def written(tmp_path) -> Path:
    """A folder whose ledger has three lines."""
    for number in (1, 2, 3):
        spend(tmp_path, spending(number), Budget())
    return tmp_path


def without_a_digit(lines):
    return [lines[0], lines[1].replace(b'"steps":10', b'"steps":1'), lines[2]]


def with_a_fresh_hash(lines):
    """Somebody who works the hash of his line out anew, but not those after it."""
    line = json.loads(lines[1])
    changed = client.ledger.Line.model_validate({**line, "steps": 1, "hash": ""})
    sealed = client.ledger._sealed(changed)
    return [lines[0], sealed.model_dump_json().encode(), lines[2]]


ALTERED = {
    "a number": (without_a_digit, "line 2 is not the line"),
    "a number and its hash": (with_a_fresh_hash, "line 3 does not follow"),
    "first line gone": (lambda lines: lines[1:], "line 1 is not the line"),
    "middle line gone": (lambda lines: [lines[0], lines[2]], "line 2 is not the line"),
    "last line gone": (lambda lines: lines[:2], "it ends with line 2, and had 3"),
    "all lines gone": (lambda lines: [], "it ends with line 0, and had 3"),
    "swapped": (lambda lines: [lines[1], lines[0], lines[2]], "line 1 is not"),
    "doubled": (lambda lines: [*lines, lines[2]], "line 4 is not the line"),
    "not JSON": (lambda lines: [*lines, b"{}"], "line 4 is not the line"),
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_ledger_is_refused_by_number_and_line(written, how):
    change, said = ALTERED[how]
    path = written / LEDGER
    lines = change(path.read_bytes().splitlines())
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    before = path.read_bytes()
    for ask in (read_ledger, lambda f: spend(f, spending(4), Budget())):
        with pytest.raises(StoreError, match=said) as refused:
            ask(written)
        assert (refused.value.exit_code, refused.value.code) == (23, "ledger")
    assert path.read_bytes() == before


def test_a_ledger_or_head_that_was_taken_away_shows(written):
    (written / LEDGER).rename(written / "kept")
    with pytest.raises(StoreError, match="had 3"):
        read_ledger(written)
    (written / "kept").rename(written / LEDGER)
    (written / HEAD).unlink()
    with pytest.raises(StoreError, match=f"{HEAD} is missing"):
        read_ledger(written)


def test_a_ledger_of_one_line_without_its_head_shows(written):
    """Cut to its first line, the head gone: nobody worked a hash out."""
    path = written / LEDGER
    first = path.read_bytes().splitlines(keepends=True)[0]
    (written / HEAD).unlink()
    path.write_bytes(first)
    for ask in (read_ledger, lambda f: spend(f, spending(4), Budget())):
        with pytest.raises(StoreError, match=f"{HEAD} is missing") as refused:
            ask(written)
        assert refused.value.code == "ledger"
    assert path.read_bytes() == first


def test_the_ledger_of_another_site_shows(written):
    other = written / "site"
    spend(other, spending(1), Budget())
    for name in (LEDGER, HEAD):
        (written / name).write_bytes((other / name).read_bytes())
    for ask in (read_ledger, lambda f: spend(f, spending(4), Budget())):
        with pytest.raises(StoreError, match="under another site's key") as refused:
            ask(written)
        assert refused.value.code == "ledger"
    (written / LEDGER).unlink()  # and the head of one that has no line yet
    (written / HEAD).write_text(json.dumps({"number": 0, "hash": first_of(other)}))
    with pytest.raises(StoreError, match=f"{HEAD} is not what was written"):
        read_ledger(written)


def test_a_site_killed_before_its_first_line_goes_on(tmp_path):
    spend(tmp_path, spending(1), Budget())
    whole = (tmp_path / LEDGER).read_bytes()
    begun = json.dumps({"number": 0, "hash": first_of(tmp_path)})
    for torn in (b"", whole[:50], whole):
        (tmp_path / HEAD).write_text(begun)
        (tmp_path / LEDGER).write_bytes(torn)
        before = len(read_ledger(tmp_path))
        assert before == (torn == whole)
        assert len(spend(tmp_path, spending(2), Budget())) == before + 1


def test_a_mark_that_the_disk_kept_back_from_the_first_line_is_no_harm(
    tmp_path, monkeypatch
):
    """As if killed between line 1 and its mark; the line is paid, and maybe drawn."""
    honest = client.ledger.write_last

    def fail(path, mark):
        if mark.number == 1:
            raise OSError(28, "no space left")
        honest(path, mark)

    monkeypatch.setattr(client.ledger, "write_last", fail)
    with pytest.raises(StoreError):
        spend(tmp_path, spending(1), Budget())
    monkeypatch.undo()
    assert len(read_ledger(tmp_path)) == 1
    assert len(spend(tmp_path, spending(2), Budget())) == 2


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_both_files_from_an_old_backup_or_gone_show_by_the_audit_log(tmp_path, kept):
    """What left by a private plan is in the ledger, or the ledger is not the last."""
    key = read_signing_key(tmp_path / SIGN_KEY)
    plans = [private(), slices()]
    for plan in plans:
        text = plan_toml(plan, with_simulation=False)
        client.desk.queue_plan(tmp_path, text, "run")
    backups = [{}]
    for number in (1, 2, 3):
        spend(tmp_path, spending(number), Budget())
        files = {name: (tmp_path / name).read_bytes() for name in (LEDGER, HEAD)}
        backups.append(files)
        told = left(number, run="run", plan=plans[0].digest)
        record_left(tmp_path, told, key)
    for free in (  # an open plan, an order that failed, a judgement: none is paid for
        left(4, run="run", plan=plans[1].digest),
        left(5, run="run", plan=plans[0].digest, code=1031, what="error"),
        left(6, run="run", plan=plans[0].digest, kind="judge", what="Judgement"),
    ):
        record_left(tmp_path, free, key)
    assert len(read_ledger(tmp_path)) == 3
    for name in (LEDGER, HEAD):
        (tmp_path / name).unlink()
        if name in backups[kept]:
            (tmp_path / name).write_bytes(backups[kept][name])
    said = f"round {kept + 1} of run 'run' has left by the audit log"
    for ask in (read_ledger, lambda f: spend(f, spending(4), Budget())):
        with pytest.raises(StoreError, match=said) as refused:
            ask(tmp_path)
        assert refused.value.code == "ledger"
    for name in (AUDIT, AUDIT_HEAD):  # the control: without that memory, none knows
        (tmp_path / name).unlink()
    assert len(read_ledger(tmp_path)) == kept


def test_nothing_is_paid_behind_an_audit_log_that_was_altered(written):
    """Its answer could never leave; the patients would have paid for nothing."""
    key = read_signing_key(written / SIGN_KEY)
    for number in (1, 2):
        record_left(written, left(number), key)
    audit = written / AUDIT
    whole = audit.read_bytes()
    for harmed in (whole[:-5], whole.replace(b'"code":0', b'"code":1', 1), b""):
        audit.write_bytes(harmed)
        with pytest.raises(StoreError) as refused:
            spend(written, spending(4), Budget())
        assert refused.value.code == "audit"
    audit.write_bytes(whole)
    assert len(read_ledger(written)) == 3
    assert len(spend(written, spending(4), Budget())) == 4


@pytest.mark.parametrize("number", [0, -1, 4])
def test_a_head_that_names_no_line_is_refused(written, number):
    for path, content in (
        (HEAD, f'{{"number":{number},"hash":"{64 * "0"}"}}'),
        (LEDGER, ""),
    ):
        (written / path).write_text(content)
        with pytest.raises(StoreError) as refused:
            read_ledger(written)
        assert refused.value.code == "ledger"


def test_a_ledger_from_an_old_backup_shows(written):
    """Whole and sound by itself, but shorter than it was."""
    old = (written / LEDGER).read_bytes()
    spend(written, spending(4), Budget())
    (written / LEDGER).write_bytes(old)
    with pytest.raises(StoreError, match="it ends with line 3, and had 4"):
        spend(written, spending(5), Budget())


def test_a_torn_line_was_never_drawn_for_and_is_replaced(written):
    path = written / LEDGER
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:70])
    assert len(read_ledger(written)) == 3
    line = spend(written, spending(4), Budget())[-1]
    assert (line.number, line.torn_bytes) == (4, 70)
    assert read_ledger(written)[-1] == line


def test_a_line_without_its_head_counts(written):
    """Killed between the two files: paid, and maybe drawn."""
    old = (written / HEAD).read_bytes()
    spend(written, spending(4), Budget())
    (written / HEAD).write_bytes(old)
    assert len(read_ledger(written)) == 4
    assert len(spend(written, spending(5), Budget())) == 5


def test_a_full_or_closed_disk_is_a_numbered_error(tmp_path, monkeypatch):
    spend(tmp_path, spending(1), Budget())
    monkeypatch.setattr(os, "pwrite", lambda *a: 3)
    with pytest.raises(StoreError, match="expected a disk with room"):
        spend(tmp_path, spending(2), Budget())
    monkeypatch.undo()
    assert len(read_ledger(tmp_path)) == 1


# --- the budget ---------------------------------------------------------------------


def test_what_the_budget_cannot_pay_is_refused_and_says_what_is_left(tmp_path):
    part = spending(1, 1000)
    one = epsilon_of([part], DELTA)
    two = epsilon_of([part, part], DELTA)
    budget = Budget((one + two) / 2, DELTA)
    spend(tmp_path, part, budget)
    left = f"{budget.epsilon - one:.2f} of epsilon"
    with pytest.raises(PolicyError, match=left) as refused:
        spend(tmp_path, spending(2, 1000), budget)
    assert (refused.value.exit_code, refused.value.code) == (53, "budget")
    assert len(read_ledger(tmp_path)) == 1
    spend(tmp_path, spending(2, 1), budget)  # a cheaper one still fits
    spend(tmp_path, spending(3, 1000), Budget())  # and without a budget all do


@pytest.mark.parametrize("noise", [1e300, 1e-300, 0.05])
@pytest.mark.parametrize("budget", [Budget(), Budget(3.0, DELTA)])
def test_what_has_no_price_is_never_written(tmp_path, noise, budget):
    """A line that nobody can add up would spoil all that is added up after it."""
    with pytest.raises(PlanError, match="its price can't be told"):
        spend(tmp_path, spending(1, noise_multiplier=noise), budget)
    assert not (tmp_path / LEDGER).exists()
    assert read_ledger(tmp_path) == ()


def test_a_budget_is_kept_to_the_last_step():
    part = spending(1, 500)
    price = epsilon_of([part], DELTA)
    check_affordable([], [part], Budget(price, DELTA))
    with pytest.raises(PolicyError):
        check_affordable([], [part], Budget(price * 0.999, DELTA))


# --- killed -------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from client.ledger import Budget, Spending, spend
folder, log = Path(sys.argv[1]), os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
print("ready", flush=True)
for number in range(1, 10**6):
    part = Spending(run="r", plan="p", round=number, rate=0.1, noise_multiplier=1.0,
                    steps=7, patients=10)
    spend(folder, part, Budget())
    os.write(log, b".......")  # a draw a step
"""


def test_killed_at_any_instant_no_less_is_spent_than_was_drawn(tmp_path):
    drawn = tmp_path / "drawn"
    drawn.touch()
    chance, behind = random.Random(1), 0
    for _ in range(25):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(drawn)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0.0, 0.05))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        lines = read_ledger(tmp_path)  # never found broken
        spent = sum(line.steps for line in lines)
        assert spent >= drawn.stat().st_size
        behind += spent > drawn.stat().st_size
    assert len(lines) > 25


def test_a_service_killed_at_any_draw_has_paid_before(
    make_service, site_cases, tmp_path
):
    """Real processes, killed by SIGKILL as they draw for the k-th time."""
    plan = private()
    make_service(plan)  # prepares whatever is prepared once
    fork = multiprocessing.get_context("fork")
    for fatal in (1, 2, 3, 7):
        child = fork.Process(target=_die, args=(make_service, plan, fatal))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    lines = read_ledger(tmp_path / "site")
    assert len(lines) == 4  # each try was paid for, as nothing is known of the last
    assert {(line.round, line.steps) for line in lines} == {(1, 3)}
    train(make_service(plan), plan)
    assert len(read_ledger(tmp_path / "site")) == 5


def _die(make_service, plan, fatal):
    drawn = 0
    honest = SecretStream.words

    def words(self, count):
        nonlocal drawn
        drawn += 1
        if drawn == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(self, count)

    SecretStream.words = words
    train(make_service(plan), plan)
    os._exit(0)


# --- at a site ----------------------------------------------------------------------


def train(service, plan, number=1, since=0, **changes):
    return service.train(order(plan, number, since, **changes), quiet)


def test_a_round_is_paid_for_before_the_first_number_is_drawn(
    make_service, tmp_path, monkeypatch
):
    """The law of the ledger, looked at the very moment a key is drawn."""
    plan = private()
    service = make_service(plan)
    paid = []

    class Watching(SecretStream):
        def __init__(self, key=None):
            paid.append(len(read_ledger(tmp_path / "site")))
            super().__init__(key)

    monkeypatch.setattr(client.dp_site, "SecretStream", Watching)
    train(service, plan, 1, 0)
    train(service, plan, 2, 1)
    assert paid == [1, 2]


def test_an_update_tells_its_price_and_no_loss(make_service, tmp_path):
    plan = private()
    update = train(make_service(plan), plan)
    assert update.loss is None
    (line,) = read_ledger(tmp_path / "site")
    patients = line.patients
    assert (line.rate, line.steps) == (min(1.0, 2 / patients), 3)
    exact = cost_of([NoisySteps(line.rate, 1.0, 3)], 1e-3)
    assert exact.pld <= update.epsilon_pld <= exact.pld + 0.1
    assert exact.prv <= update.epsilon_prv <= exact.prv + 0.1
    assert round(10 * update.epsilon_pld) == pytest.approx(10 * update.epsilon_pld)


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn", "fedprox", "scaffold"])
def test_the_same_order_again_gets_the_same_answer_and_costs_nothing(
    make_service, tmp_path, algorithm
):
    norm = {"model__norm": "group"}
    plan = private(algorithm=algorithm, **norm)
    service = make_service(plan)
    first = train(service, plan)
    for asked in (service, make_service(plan)):  # also after a restart
        again = train(asked, plan)
        assert np.array_equal(again.delta, first.delta)
        assert (again.epsilon_pld, again.loss) == (first.epsilon_pld, None)
        if algorithm == "scaffold":
            assert np.array_equal(again.control_delta, first.control_delta)
    assert len(read_ledger(tmp_path / "site")) == 1
    second = train(service, plan, 2, 1)
    assert np.array_equal(train(make_service(plan), plan, 2, 1).delta, second.delta)
    assert len(read_ledger(tmp_path / "site")) == 2


def test_any_other_order_of_the_round_draws_new_noise_and_costs_again(
    make_service, tmp_path
):
    """A server that asks twice can't take the difference of one noise."""
    plan = private(training__optimizer="sgd")
    service = make_service(plan)
    first = train(service, plan)
    model = order(plan, 1, 0).model.copy()
    model[0] += np.float32(1e-6)
    other = train(service, plan, model=model)
    assert len(read_ledger(tmp_path / "site")) == 2
    apart = np.abs(other.delta - first.delta)
    assert np.median(apart) > 1e-4
    back = train(service, plan)  # the first answer is not kept any more
    assert len(read_ledger(tmp_path / "site")) == 3
    assert not np.array_equal(back.delta, first.delta)
    assert back.epsilon_pld >= other.epsilon_pld >= first.epsilon_pld


def hello(plan, run="run"):
    text = plan_toml(plan, with_simulation=False)
    return Hello(run, plan.digest, text, plan_layout(plan).digest)


def test_a_run_that_the_budget_cannot_pay_is_refused_at_the_roll_call(
    make_service, tmp_path, monkeypatch
):
    plan = private()
    service = make_service(plan)
    line = service._terms.spending("run", 1)
    run = epsilon_of([line] * plan.federation.rounds, 1e-3)
    three = epsilon_of([line] * 3, 1e-3)
    budget = Budget(run * 0.99, 1e-3)
    monkeypatch.setattr(client.dp_site, "budget_of", lambda folder: budget)
    with pytest.raises(PolicyError, match="of epsilon"):
        service.hello(hello(plan))
    budget = Budget(run, 1e-3)
    service.hello(hello(plan))
    for number in (1, 2, 3):
        train(service, plan, number, number - 1)
    service.hello(hello(plan))  # a resumed run has one round to pay
    with pytest.raises(PolicyError):
        service.hello(hello(plan, run="another"))
    budget = Budget(three, 1e-3)
    with pytest.raises(PolicyError) as refused:
        train(service, plan, 4, 3)
    assert refused.value.code == "budget"
    assert len(read_ledger(tmp_path / "site")) == 3


def test_an_altered_ledger_stops_roll_call_and_training(make_service, tmp_path):
    plan = private()
    service = make_service(plan)
    train(service, plan)
    (tmp_path / "site" / LEDGER).write_bytes(b"")
    for asked in (lambda: service.hello(hello(plan)), lambda: train(service, plan, 2)):
        with pytest.raises(StoreError) as refused:
            asked()
        assert refused.value.code == "ledger"


def test_a_plan_without_dp_keeps_no_ledger(make_service, tmp_path):
    plan = slices()
    update = train(make_service(plan), plan)
    assert (update.epsilon_pld, update.epsilon_prv) == (None, None)
    assert update.loss is not None
    assert not (tmp_path / "site" / LEDGER).exists()


def test_terms_follow_from_plan_and_patients():
    patients = tuple((n,) for n in range(100))
    terms = terms_of(private(), patients, 3, 100)
    assert (terms.rate, terms.noise_multiplier) == (0.02, 1.0)
    assert terms_of(private(), patients[:1], 3, 100).rate == 1.0  # fewer than a batch
    assert terms_of(slices(), patients, 3, 100) is None
    assert terms_of(private(), (), 3, 100) is None
    with pytest.raises(PlanError, match="1000 training patients"):
        terms_of(private(), tuple((n,) for n in range(1000)), 3, 100)


def test_noise_for_a_wanted_epsilon_grows_as_a_hospital_shrinks():
    plan = private(privacy__dp={"epsilon": 2.0, "delta": 1e-5})
    noise = []
    for count in (40, 400):
        patients = tuple((n,) for n in range(count))
        terms = terms_of(plan, patients, 3, 100)
        taken = NoisySteps(terms.rate, terms.noise_multiplier, 3 * terms.rounds)
        assert 1.8 < cost_of([taken], 1e-5).epsilon <= 2.0
        noise.append(terms.noise_multiplier)
    assert noise[0] > noise[1]


def test_the_budget_is_the_hospitals_and_a_rehearsal_has_none(tmp_path):
    assert client.dp_site.budget_of(tmp_path) == Budget()
    assert Policy().dp_epsilon is None
    assert Policy(dp_epsilon=3.0).dp_delta == 1e-5


def test_a_hospital_with_a_budget_refuses_plans_without_dp():
    with_budget = Policy(dp_epsilon=3.0)
    assert [no.code for no in objections(with_budget, slices())] == ["dp"]
    assert list(objections(with_budget, private())) == []
    assert list(objections(Policy(), slices())) == []
