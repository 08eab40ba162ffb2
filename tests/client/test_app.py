import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

import client.app
from client.app import SITE_FOLDER_KEY, SITES_VARIABLE, app
from client.service import SiteService
from client.site import SIGN_KEY
from common.error_numbers import parts_of
from common.errors import (
    ERROR_BASE,
    ContributionError,
    DiskFullError,
    EngineError,
    IntakeError,
    JoinError,
    OutOfMemoryError,
    PlanError,
    StoreError,
)
from common.exchange import Hello, Judgement, JudgeOrder, Roster, Update
from common.keys import read_signing_key, same_key
from common.plan_file import parse_plan
from common.signing import asked_of, public_text, verify
from common.wire import from_record, seal_in, to_record
from deploy.engine import InProcessGrid
from server.federation import first_model
from tests.client.conftest import order, slices
from tests.plans import SLICES

PLAN = parse_plan(SLICES)
HELLO = Hello("run", PLAN.digest, "", first_model(PLAN)[1].digest)


@pytest.fixture(autouse=True)
def _fresh_process():
    client.app._services.clear()
    yield
    client.app._services.clear()


def ask(folder: Path, content: RecordDict, kind: str) -> Message:
    """Send one message the way every engine does."""
    grid = InProcessGrid([folder])
    (reply,) = grid.send_and_receive([Message(content, 2, kind)])
    return reply


def hello(folder: Path) -> Message:
    return ask(folder, to_record(HELLO), "query")


def said_at(site: Path) -> str:
    """The last sentence in the site's own log."""
    return (site / "site.log").read_text().splitlines()[-1]


def texts(message: Message) -> str:
    """All that travels in a message, as one text."""
    if message.has_error():
        return f"{message.error.code} {message.error.reason}"
    arrays = [
        array.data
        for record in message.content.array_records.values()
        for array in record.values()
    ]
    return repr(message.content) + "".join(a.decode("latin-1") for a in arrays)


def test_it_is_a_flower_app_that_answers_all_three_questions(make_site, tmp_path):
    assert isinstance(app, ClientApp)
    site = make_site(tmp_path / "north", PLAN)
    roster = from_record(hello(site).content, Roster)
    train = order(PLAN, 1, 0)
    update = from_record(ask(site, to_record(train), "train").content, Update)
    digest = train.model_digest
    judge = JudgeOrder("run", PLAN.digest, 1, 1, "test", train.model, digest)
    judged = from_record(ask(site, to_record(judge), "evaluate").content, Judgement)
    assert (update.site, update.cases) == (roster.site, roster.train)
    assert judged.site == "north"
    assert judged.sums


def test_every_answer_is_sealed_for_its_order_by_the_key_of_the_site_s_folder(
    make_site, tmp_path
):
    site = make_site(tmp_path / "north", PLAN)
    train = order(PLAN, 1, 0)
    model, digest = train.model, train.model_digest
    judge = JudgeOrder("run", PLAN.digest, 1, 1, "test", model, digest)
    key = read_signing_key(site / SIGN_KEY).public_key()
    asked = [(HELLO, "query", Roster), (train, "train", Update)]
    for question, kind, expected in [*asked, (judge, "evaluate", Judgement)]:
        content = ask(site, to_record(question), kind).content
        answer = from_record(content, expected)
        verify(answer, asked_of(question, "north"), seal_in(content), key)
    assert from_record(hello(site).content, Roster).key == public_text(key)
    make_site(tmp_path / "north", PLAN)  # a rehearsal that is resumed
    assert same_key(read_signing_key(site / SIGN_KEY).public_key(), key)


def test_a_site_whose_key_others_may_read_answers_nothing(make_site, tmp_path):
    site = make_site(tmp_path / "north", PLAN)
    (site / SIGN_KEY).chmod(0o640)
    reply = hello(site)
    assert reply.error.code == ERROR_BASE + JoinError.exit_code
    assert said_at(site).endswith("make new keys")


def test_a_site_is_opened_once_for_all_messages(make_site, tmp_path, monkeypatch):
    opened = []
    real = client.app.open_site
    monkeypatch.setattr(
        client.app, "open_site", lambda *args: opened.append(args[0]) or real(*args)
    )
    site = make_site(tmp_path / "north", PLAN)
    for _ in range(3):
        assert not hello(site).has_error()
    assert opened == [site]


def test_an_unexpected_failure_stays_in_the_site_s_log(
    make_site, tmp_path, monkeypatch, caplog
):
    site = make_site(tmp_path / "north", PLAN)
    secret = "PHANTOM-NORTH-0001 in /data/PHANTOM-NORTH-0001/x.png"

    def fail(folder, plan):
        raise ValueError(secret)

    monkeypatch.setattr(client.app, "open_site", fail)
    for _ in range(2):
        reply = hello(site)
        assert reply.error == Error(ERROR_BASE + 1)
    log = site / "site.log"
    assert log.read_text().count(secret) == 2
    assert log.read_text().count("Traceback") == 2
    assert log.stat().st_mode & 0o777 == 0o600
    assert secret not in caplog.text


@pytest.mark.parametrize(
    "shortage",
    [
        lambda: torch.empty(1 << 50),
        lambda: np.empty(1 << 50),
        lambda: _raise(torch.OutOfMemoryError("CUDA out of memory")),
        lambda: _raise(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")),
    ],
    ids=["torch", "numpy", "cuda", "cudnn"],
)
def test_an_order_that_needs_too_much_memory_is_refused_and_the_next_is_served(
    make_site, tmp_path, monkeypatch, shortage
):
    site = make_site(tmp_path / "north", PLAN)
    train = to_record(order(PLAN, 1, 0))
    with monkeypatch.context() as patched:
        patched.setattr(SiteService, "train", lambda *_: shortage())
        reply = ask(site, train, "train")
    assert reply.error.code == ERROR_BASE + OutOfMemoryError.exit_code
    assert "batches of 2 patches of 16x16" in said_at(site)
    assert not client.app._services
    assert not ask(site, train, "train").has_error()


def _raise(error: Exception) -> None:
    raise error


def test_a_log_that_can_t_be_written_does_not_stop_the_answer(
    make_site, tmp_path, monkeypatch
):
    site = make_site(tmp_path / "north", PLAN)
    (site / "site.log").mkdir()

    def fail(folder, plan):
        raise OSError(28, "No space left on device", "/data/PHANTOM-NORTH-0001")

    monkeypatch.setattr(client.app, "open_site", fail)
    reply = hello(site)
    assert reply.error == Error(ERROR_BASE + DiskFullError.exit_code)


def test_a_deliberate_failure_travels_as_a_number_and_its_sentence_stays(
    make_site, tmp_path, monkeypatch
):
    site = make_site(tmp_path / "north", PLAN)

    def fail(folder, plan):
        raise PlanError("plan is wrong, expected a right one; mend it")

    monkeypatch.setattr(client.app, "open_site", fail)
    reply = hello(site)
    assert reply.error == Error(ERROR_BASE + PlanError.exit_code)
    assert "error 10: plan is wrong, expected a right one; mend it" in said_at(site)
    assert (site / "site.log").stat().st_mode & 0o777 == 0o600


def test_a_site_that_could_not_be_opened_is_tried_again(make_site, tmp_path):
    site = make_site(tmp_path / "north", PLAN)
    (site / "site.json").rename(site / "aside")
    assert hello(site).error.code == ERROR_BASE + StoreError.exit_code
    (site / "aside").rename(site / "site.json")
    assert not hello(site).has_error()


def test_another_plan_takes_the_place_of_the_last_one(make_site, tmp_path):
    site = make_site(tmp_path / "north", PLAN)
    assert not hello(site).has_error()
    make_site(tmp_path / "north", slices(training__steps=7))
    assert hello(site).error == Error(100 * (ERROR_BASE + 40) + 1)
    assert "approved is" in said_at(site)
    (site / "plan.toml").unlink()
    assert hello(site).error.code == ERROR_BASE + PlanError.exit_code


@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_message_that_is_no_order_is_refused(make_site, tmp_path, kind):
    site = make_site(tmp_path / "north", PLAN)
    foreign = RecordDict({"config": ConfigRecord({"run": "x"})})
    for content in (RecordDict(), foreign):
        reply = ask(site, content, kind)
        assert reply.error.code == ERROR_BASE + ContributionError.exit_code


def test_nodes_that_only_know_a_number_find_their_site(
    make_site, tmp_path, monkeypatch, caplog
):
    sites = [make_site(tmp_path / name, PLAN) for name in ("north", "south")]
    listed = f'["{sites[0]}", "{sites[1]}"]'
    monkeypatch.setenv(SITES_VARIABLE, listed)
    monkeypatch.setattr(client.app, "SITE_FOLDER_KEY", "not given")
    InProcessGrid([])  # Flower wants a task identity before it makes messages

    def node(number: int) -> Message:
        message = Message(to_record(HELLO), 2, "query")
        message.metadata.__dict__["_message_id"] = "m"
        config = {"partition-id": number}
        return app(message, Context(1, 2, config, RecordDict(), {}))

    assert from_record(node(1).content, Roster).site == "south"
    reply = node(2)
    assert reply.error == Error(ERROR_BASE + EngineError.exit_code)
    assert "node 2 found no site folder" in caplog.text
    assert SITE_FOLDER_KEY == "site-folder"


def test_no_patient_and_no_path_travels_whatever_goes_wrong(
    make_site, hospital_pictures, tmp_path
):
    manifest = (hospital_pictures / "manifest.csv").read_text()
    assert manifest.count("PHANTOM-") > 20
    replies = []

    site = make_site(tmp_path / "healthy", PLAN)
    replies += [hello(site), ask(site, to_record(order(PLAN, 1, 0)), "train")]
    replies.append(ask(site, to_record(order(PLAN, 3, 2)), "train"))
    assert [reply.has_error() for reply in replies] == [False, False, True]
    for path in (site / "state").rglob("*.*"):
        path.write_bytes(b"junk")
    client.app._services.clear()
    replies.append(ask(site, to_record(order(PLAN, 2, 1)), "train"))

    for number, harm in enumerate(HARMS):
        source = tmp_path / f"PHANTOM-SOURCE-{number}"
        shutil.copytree(hospital_pictures, source)
        harm(source)
        replies.append(hello(make_site(tmp_path / f"s{number}", PLAN, source=source)))
    large = slices(training__patch=[512, 512])
    replies.append(hello(make_site(tmp_path / "large", large)))
    nowhere = tmp_path / "PHANTOM-NOWHERE"
    replies.append(hello(make_site(tmp_path / "nowhere", PLAN, source=nowhere)))

    errors = [reply.error for reply in replies if reply.has_error()]
    assert {error.reason for error in errors} == {None}
    assert len(errors) >= 7
    assert {parts_of(e.code)[0] for e in errors} >= {
        kind.exit_code for kind in (PlanError, IntakeError, StoreError)
    }
    for reply in replies:
        said = texts(reply)
        assert "PHANTOM" not in said
        assert str(tmp_path) not in said
        assert str(hospital_pictures) not in said


def _no_pictures(source: Path) -> None:
    shutil.rmtree(source / "images")


def _junk_pictures(source: Path) -> None:
    for path in (source / "images").iterdir():
        path.write_bytes(b"no picture")


def _junk_manifest(source: Path) -> None:
    (source / "manifest.csv").write_bytes(b"\xff\xfe\x00PHANTOM-1")


def _no_column(source: Path) -> None:
    (source / "manifest.csv").write_text("patient\nPHANTOM-1\n")


def _a_file(source: Path) -> None:
    shutil.rmtree(source)
    source.write_text("PHANTOM-1")


HARMS = (_no_pictures, _junk_pictures, _junk_manifest, _no_column, _a_file)
