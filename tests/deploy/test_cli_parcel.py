"""A hospital without a line, at the command line: orders in, answers out, by files."""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from client.audit import read_audit
from common.errors import (
    ContributionError,
    EngineError,
    JoinError,
    PolicyError,
    UsageError,
)
from common.exchange import Hello, JudgeOrder, TrainOrder
from common.joining import Kit, KitSignatures, sign, signed_bytes, to_bytes
from common.parameters import digest_of, to_vector
from common.plan_file import load_plan, plan_toml
from deploy.engine import InProcessGrid
from deploy.parcel_work import PARCELS
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from deploy.run_state import read_request, read_run
from server.asking import question
from server.federation import first_model
from server.hub import open_hub
from server.parcel_book import enter, open_orders
from server.parcel_grid import ParcelGrid, Post
from server.parcel_taking import site_keys
from tests.deploy.conftest import SEGMENTATION
from tests.deploy.test_cli import refused
from tests.joining import content_of

NORTH = 2
PLAN = SEGMENTATION.replace("min_sites = 2", "min_sites = 1").replace(
    'name = "pictures"', 'name = "lung"'
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "ct", hospitals=HOSPITALS[:1], patients=6, seed=1)
    return folder / "ct"


@dataclass(frozen=True)
class Place:
    """A hub, the hospital `north`, and a run that reaches it by files."""

    folder: Path
    run_id: str = "run"

    @property
    def run(self) -> Path:
        return self.folder / "hub/runs/lung"

    def order(self, order: Hello | TrainOrder) -> Path:
        """An order that the run gives, on the stick."""
        hub = self.folder / "hub"
        keys = site_keys(hub, datetime.now(UTC))
        post = Post(hub, self.run, {"north": keys["north"]}, 3600.0)
        grid = ParcelGrid(InProcessGrid([]), post, lambda site: NORTH)
        grid.arrivals()
        one = grid.standing(NORTH, order, fresh=False)
        assert one is not None
        grid.push_messages([question(one.order, NORTH, 60.0)])
        (path,) = (hub / "parcels/out/north").glob("*.order")
        return path.rename(self.folder / path.name)

    def hello(self) -> Path:
        plan = load_plan(self.run / "plan.toml")
        text = plan_toml(plan, with_simulation=False)
        layout = first_model(plan)[1].digest
        return self.order(Hello(self.run_id, plan.digest, text, layout))

    def train(self) -> Path:
        plan = load_plan(self.run / "plan.toml")
        network, layout = first_model(plan)
        model = to_vector(network, layout)
        digest = digest_of(model)
        order = TrainOrder(self.run_id, plan.digest, 1, 0, model, digest)
        return self.order(order)


def join(fedct, name: str, images: Path) -> None:
    from common.certificates import fingerprint_of, read_certificate
    from common.joining import Request, request_fingerprint

    address = "hub.example.org:8443"
    options = ("--name", name, "--hub", address, "--data", images, "--format", "images")
    assert fedct("client", "request", name, *options).code == 0
    path = Path(name) / f"{name}.request.json"
    told = request_fingerprint(Request.model_validate_json(path.read_bytes()))
    assert fedct("server", "enroll", "hub", path, "--fingerprint", told).code == 0
    told = fingerprint_of(read_certificate(Path("hub/ca/ca.crt")))
    kit = f"hub/kits/{name}.kit.json"
    assert fedct("client", "install", name, kit, "--fingerprint", told).code == 0


@pytest.fixture
def place(tmp_path, monkeypatch, fedct, images) -> Place:
    monkeypatch.chdir(tmp_path)
    assert fedct("server", "init", "hub", "--name", "hub.example.org").code == 0
    join(fedct, "north", images)
    Path("lung.toml").write_text(PLAN)
    asked = fedct("server", "run", "hub", "lung.toml", "--parcel", "north", *QUIETLY)
    assert asked.code == 0, asked.err
    return Place(tmp_path)


QUIETLY = ("--no-follow", "--parcel-days", "3")


@pytest.fixture
def approved(place, fedct) -> Place:
    """Its plan is approved, and the hospital has introduced itself."""
    refused(fedct("client", "work", "north", place.hello()), PolicyError)
    digest = load_plan(place.run / "plan.toml").digest
    assert fedct("client", "approve", "north", digest).code == 0
    said = fedct("client", "work", "north", "north-lung-1-hello.order")
    assert said.code == 0, said.err
    assert fedct("server", "import", "hub", "north-lung-1-hello.answer").code == 0
    return place


@pytest.mark.parametrize("verb", [("client", "work"), ("server", "import")])
def test_help_has_an_example(fedct, verb):
    said = fedct(*verb, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Example: fedct {' '.join(verb)} " in " ".join(said.out.split())


def test_a_run_names_the_sites_that_are_reached_by_files(place, fedct):
    run = read_run(place.run)
    assert run.state == "queued"
    request = json.loads((place.run / "request.json").read_text())
    assert (request["parcels"], request["parcel_s"]) == (["north"], 3 * 86400.0)
    said = fedct("server", "run", "hub", "lung.toml", "--parcel", "east", *QUIETLY)
    refused(said, UsageError, "--parcel east", "(north)")


@pytest.mark.parametrize("days", ["1e300", "inf", "-inf", "nan", "0", "0.009", "3651"])
def test_a_time_that_no_calendar_has_is_refused(place, fedct, days):
    words = ("server", "run", "hub", "lung.toml", "--name", "other", "--no-follow")
    said = fedct(*words, "--parcel", "north", "--parcel-days", days)
    refused(said, UsageError, "--parcel-days", "expected 0.01 to 3650; choose")
    assert not (place.run.parent / "other").exists()


def test_the_longest_time_has_a_date(place, fedct):
    words = ("server", "run", "hub", "lung.toml", "--name", "other", "--no-follow")
    said = fedct(*words, "--parcel", "north", "--parcel-days", "3650")
    assert said.code == 0, said.err
    order = Hello("run", "p", "", "ab" * 32)
    request = read_request(place.run.parent / "other")
    entry = enter(place.run, "north", order, datetime.now(UTC), request.parcel_s)
    year = datetime.now(UTC).year + 9
    assert entry.due_text[:4] in (str(year), str(year + 1))


def test_a_plan_has_to_be_approved_and_then_the_same_order_is_worked_on(place, fedct):
    order = place.hello()
    said = fedct("client", "work", "north", order)
    refused(said, PolicyError, "approved", "give the order again", "--decline")
    assert not order.with_suffix(".answer").exists()
    listed = fedct("client", "approve", "north").out
    digest = load_plan(place.run / "plan.toml").digest
    assert digest in listed
    assert fedct("client", "approve", "north", digest[:8]).code == 0
    said = fedct("client", "work", "north", order)
    assert said.code == 0, said.err
    assert "north answers order 1 of run run; bring " in said.out
    assert order.with_suffix(".answer").exists()
    log = read_audit(Path("north"))
    assert [(line.kind, line.code) for line in log.lines] == [
        ("hello", 105301),
        ("hello", 0),
    ]


def test_what_can_not_be_done_is_said_once(place, fedct, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # as at a command line
    said = fedct("client", "work", "north", place.hello())
    refused(said, PolicyError)
    assert said.err.count("its engineer decides") == 1


def test_orders_to_judge_are_told_apart(place):
    model, layout = np.zeros(3, np.float32), "ab" * 32
    now = datetime.now(UTC)
    words = [
        enter(
            place.run,
            "north",
            JudgeOrder("run", "p", 2, 2, part, model, layout),
            now,
            9,
        ).words
        for part in ("validation", "test")
    ]
    assert words == [
        "judge validation patients, round 2",
        "judge test patients, round 2",
    ]
    assert read_run(place.run).parcels == []  # its run has not begun
    assert open_orders(place.run)[0].words == words[1]


def test_an_answer_is_taken_once_by_the_hub_that_runs_or_not(approved, fedct):
    order = approved.train()
    assert order.name == "north-lung-2-train.order"
    (Path("stick")).mkdir()
    said = fedct("client", "work", "north", order, "--out", "stick")
    assert said.code == 0, said.err
    answer = Path("stick/north-lung-2-train.answer")
    said = fedct("server", "import", "hub", answer)
    assert said.out == "took the answer of north in lung: train, round 1\n"
    before = content_of(Path("hub"))
    refused(fedct("server", "import", "hub", answer), ContributionError, "first answer")
    refused(fedct("server", "import", "hub", order), ContributionError, "is an order")
    assert content_of(Path("hub")) == before


def test_an_order_is_worked_on_once_and_its_answer_is_kept(approved, fedct):
    order = approved.train()
    assert fedct("client", "work", "north", order).code == 0
    before = content_of(Path("north"))
    for name in (order, "north-lung-1-hello.order"):
        said = fedct("client", "work", "north", name)
        refused(said, ContributionError, "nothing was taken from it")
    assert content_of(Path("north")) == before
    kept = Path("north", PARCELS, "run.answer").read_bytes()
    assert kept == order.with_suffix(".answer").read_bytes()


def test_an_order_that_is_altered_or_another_s_is_refused(
    approved, fedct, images, tmp_path
):
    join(fedct, "south", images)
    order = approved.train()
    before = content_of(Path("north")), content_of(Path("south"))
    said = fedct("client", "work", "south", order)
    refused(said, ContributionError, "is for site 'north'", "bring it to 'north'")
    whole = order.read_bytes()
    for place in (0, 9, 40, 300, 500, len(whole) - 1):
        altered = bytearray(whole)
        altered[place] ^= 1
        Path("altered.order").write_bytes(altered)
        refused(fedct("client", "work", "north", "altered.order"), ContributionError)
    assert (content_of(Path("north")), content_of(Path("south"))) == before


def test_a_good_answer_is_taken_though_another_one_is_refused(approved, fedct):
    order = approved.train()
    assert fedct("client", "work", "north", order).code == 0
    Path("junk.answer").write_bytes(b"junk")
    answers = "junk.answer", order.with_suffix(".answer"), "north-lung-1-hello.answer"
    said = fedct("server", "import", "hub", *answers)
    assert said.code == ContributionError.exit_code
    assert said.out == "took the answer of north in lung: train, round 1\n"
    assert len(said.err.splitlines()) == 2
    assert "'junk.answer' is no parcel" in said.err


def test_a_paused_site_writes_no_answer_unless_it_is_to_decline(approved, fedct):
    order = approved.train()
    assert fedct("client", "pause", "north").code == 0
    refused(fedct("client", "work", "north", order), PolicyError, "is paused")
    assert not order.with_suffix(".answer").exists()
    said = fedct("client", "work", "north", order, "--decline")
    assert "north declines order 2 of run run" in said.out
    assert fedct("client", "resume", "north").code == 0
    assert fedct("client", "work", "north", order).code == 0  # changed their mind


def test_an_answer_that_can_t_be_written_is_kept_at_the_site(approved, fedct):
    order = approved.train()
    said = fedct("client", "work", "north", order, "--out", "no/folder.answer")
    refused(said, EngineError, "copy it from there")
    kept = Path("north", PARCELS, "run.answer")
    assert fedct("server", "import", "hub", kept).code == 0
    refused(fedct("client", "work", "north", order, "--out", order), UsageError)


@pytest.mark.parametrize("order", ["", ".", "..", "/", "north"])
def test_a_folder_is_no_order(place, fedct, order):
    said = fedct("client", "work", "north", order)
    refused(said, UsageError, "which is a folder, expected a file; name the .order")


def test_a_site_with_an_older_kit_is_told_to_renew(approved, fedct):
    order = approved.train()
    path = Path("north/tls/kit.json")
    older = Kit.model_validate_json(path.read_bytes())
    older = older.model_copy(update={"order_key": None})
    key = open_hub(Path("hub"), datetime.now(UTC)).key
    signature = KitSignatures(authority=sign(key, signed_bytes(older)))
    path.write_bytes(to_bytes(older.model_copy(update={"signatures": signature})))
    refused(fedct("client", "work", "north", order), JoinError, "fedct client renew")
    assert fedct("client", "renew", "north").code == 0
    assert fedct("server", "enroll", "hub", "north/north.renewal.json").code == 0
    kit = "hub/kits/north.kit.json"
    assert fedct("client", "install", "north", kit).code == 0
    assert fedct("client", "work", "north", order).code == 0
