"""What left a hospital, shown and checked at both ends, at the command line."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest

from client.audit import AUDIT, HEAD, Line, record_left
from client.site_file import SIGN_KEY
from common.errors import JoinError, StoreError, UsageError
from common.exchange import Answer
from common.keys import read_signing_key
from common.signing import Mark
from deploy.phantom.formats import write_images
from deploy.phantom.scanner import HOSPITALS
from deploy.site_tables import print_audit
from server.witness import note_mark
from tests.client.conftest import left
from tests.deploy.test_cli import refused
from tests.deploy.test_cli_parcel import join

RECEIPT = "north.receipt.json"


@pytest.fixture
def both(tmp_path, monkeypatch, fedct) -> Path:
    """A hub and a hospital that sent it five answers, of which the last was lost."""
    write_images(tmp_path / "ct", hospitals=HOSPITALS[:1], patients=2, seed=1)
    monkeypatch.chdir(tmp_path)
    assert fedct("server", "init", "hub", "--name", "hub.example.org").code == 0
    join(fedct, "north", tmp_path / "ct")
    key = read_signing_key(Path("north") / SIGN_KEY)
    for number in range(1, 6):
        line = record_left(Path("north"), left(number), key)
        if number < 5:
            mark = Mark(line.number, line.hash)
            note_mark(Path("hub"), "north", mark, datetime.now(UTC))
    return tmp_path


def altered(said, words: str) -> None:
    """The lines that hold are shown, and the first that does not is named."""
    assert said.code == StoreError.exit_code
    assert words in said.err
    assert "OK" not in said.out


def lines() -> list[str]:
    return (Path("north") / AUDIT).read_text().splitlines(keepends=True)


def write(kept: list[str]) -> None:
    (Path("north") / AUDIT).write_text("".join(kept))


@pytest.mark.parametrize("who", ["client", "server"])
def test_help_has_an_example(fedct, who):
    said = fedct(who, "audit", "--help")
    assert (said.code, said.err) == (0, "")
    assert f"Example: fedct {who} audit " in " ".join(said.out.split())


def test_both_sides_agree_about_an_untouched_log(both, fedct):
    said = fedct("server", "audit", "hub", "north", "--receipt", RECEIPT)
    assert said.code == 0, said.err
    assert "north: 4 answers seen; line 4 at " in said.out
    said = fedct("client", "audit", "north", "--against", RECEIPT)
    assert said.code == 0, said.err
    assert "OK: 5 lines" in said.out
    assert "to hub.example.org:8443: train of run run-1, round 3: update of" in said.out
    assert "approved 2026-03-01 12:00 UTC, policy cdcdcdcdcdcd" in said.out
    said = fedct("server", "audit", "hub", "north", "--log", f"north/{AUDIT}")
    assert "OK: 5 lines, none missing that the hub has seen" in said.out


@pytest.mark.parametrize("content", [None, b""])
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_hub_that_saw_nothing_does_not_say_that_nothing_is_missing(
    both, fedct, content, form
):
    witness = Path("hub") / "witness" / "north.jsonl"
    witness.unlink() if content is None else witness.write_bytes(content)
    log = f"north/{AUDIT}"
    said = fedct("server", "audit", "hub", "north", "--log", log, "--format", form)
    refused(
        said, UsageError, "seen no answer of 'north', expected some to hold 5 lines"
    )
    assert "none missing" not in said.out + said.err
    assert "put witness/north.jsonl back from a backup" in " ".join(said.err.split())


def test_a_damaged_witness_is_an_error(both, fedct):
    (Path("hub") / "witness" / "north.jsonl").write_bytes(b"\xff\n")
    said = fedct("server", "audit", "hub", "north", "--log", f"north/{AUDIT}")
    refused(said, StoreError, "damaged line 1 in witness/north.jsonl")


def test_every_answer_has_a_word(capsys):
    for answer in get_args(Answer):
        what = {"what": answer.__name__, "torn_bytes": 0, "hash": "", "signature": ""}
        line = left(1).model_dump() | what
        print_audit([Line(**line, number=1, time=datetime.now(UTC), before="")])
        said = capsys.readouterr().out
        assert answer.__name__ not in said
        assert re.search(r": (masked )?[a-z]+ of \d+ bytes, digest", said)


def test_lines_cut_off_the_end_show_at_both_ends_and_only_there(both, fedct):
    fedct("server", "audit", "hub", "north", "--receipt", RECEIPT)
    write(lines()[:3])
    altered(fedct("client", "audit", "north"), "it ends with line 3, and had 5")
    third = json.loads(lines()[2])
    head = {"number": 3, "hash": third["hash"]}
    (Path("north") / HEAD).write_text(json.dumps(head))
    assert fedct("client", "audit", "north").code == 0  # both files can't tell
    words = "ends with line 3, but the hub has seen line 4: lines were cut off"
    altered(fedct("client", "audit", "north", "--against", RECEIPT), words)
    log = f"north/{AUDIT}"
    altered(fedct("server", "audit", "hub", "north", "--log", log), words)


def test_a_log_written_anew_with_the_site_s_own_key_shows(both, fedct):
    fedct("server", "audit", "hub", "north", "--receipt", RECEIPT)
    for name in (AUDIT, HEAD):
        (Path("north") / name).unlink()
    key = read_signing_key(Path("north") / SIGN_KEY)
    for number in range(1, 6):
        record_left(Path("north"), left(number, bytes_out=1), key)
    assert fedct("client", "audit", "north").code == 0
    words = "line 4 is not the one that the hub has seen"
    altered(fedct("client", "audit", "north", "--against", RECEIPT), words)
    said = fedct("server", "audit", "hub", "north", "--log", f"north/{AUDIT}")
    altered(said, "line 1 is not the one that the hub has seen")


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda x: [x[0].replace("4001", "4000"), *x[1:]], "line 1 is not the line"),
        (lambda x: [x[0], x[2], x[1], *x[3:]], "line 2 is not the line"),
        (lambda x: x[1:], "line 1 is not the line"),
    ],
)
def test_a_log_that_was_altered_is_named_by_line_in_both_formats(
    both, fedct, harm, named
):
    write(harm(lines()))
    altered(fedct("client", "audit", "north"), named)
    said = fedct("client", "audit", "north", "--format", "json")
    assert said.code == StoreError.exit_code
    assert named in json.loads(said.out)["broken"]


def test_a_receipt_that_is_none_or_another_site_s_is_refused(both, fedct):
    against = ("client", "audit", "north", "--against")
    refused(fedct(*against, "nothing.json"), StoreError, "can't be read")
    Path("junk.json").write_text("{}")
    refused(fedct(*against, "junk.json"), StoreError, "another hub's")
    join(fedct, "south", Path("ct"))
    note_mark(Path("hub"), "south", Mark(1, "a" * 64), datetime.now(UTC))
    fedct("server", "audit", "hub", "south", "--receipt", RECEIPT)
    words = "about the log of 'south'", "fedct server audit HUB north --receipt"
    refused(fedct(*against, RECEIPT), StoreError, *words)


def test_a_log_of_another_site_is_said_to_be_that(both, fedct):
    join(fedct, "south", Path("ct"))
    said = fedct("server", "audit", "hub", "south", "--log", f"north/{AUDIT}")
    refused(said, UsageError, "audit log of 'north', expected that of 'south'")
    write([line.replace(":", ": ", 1) for line in lines()[:1]])  # of nobody
    said = fedct("server", "audit", "hub", "south", "--log", f"north/{AUDIT}")
    altered(said, "keep the file, let south run `fedct client audit`")
    assert "to go on" not in said.err
    said = fedct("server", "audit", "nohub", "south")
    refused(said, JoinError, "no readable hub.toml", "give the right folder")


def test_a_site_that_never_answered_has_no_receipt(both, fedct):
    join(fedct, "south", Path("ct"))
    said = fedct("server", "audit", "hub", "south", "--receipt", RECEIPT)
    assert (said.code, said.out) == (2, "south: 0 answers seen\n")
    assert "seen no answer of 'south' yet, expected one to write a receipt" in said.err
    assert fedct("server", "audit", "hub", "south").code == 0
    assert not Path(RECEIPT).exists()
    refused(fedct("server", "audit", "hub", "west"), JoinError, "'west'")
    found = json.loads(fedct("server", "audit", "hub", "north", "--format", "json").out)
    assert (found["seen"], found["last"]["number"]) == (4, 4)
