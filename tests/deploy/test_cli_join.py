"""Joining as coordinator and engineer do it: commands, two files, two phone calls."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import typer

from common.errors import DiskFullError, JoinError
from deploy.cli_join import client_app, server_app

VERBS = [
    [app, command.callback.__name__.split("_")[1]]
    for app, typer_app in (("server", server_app), ("client", client_app))
    for command in typer_app.registered_commands
    if command.callback.__module__ == "deploy.cli_join"
]


def spoken(said) -> str:
    """The fingerprint on the screen, as one reads it out."""
    (line,) = re.findall(r"^  ((?:[0-9A-F]{4} ?){16})$", said.out, re.MULTILINE)
    return line


def refused(said, *words: str) -> None:
    assert said.code == JoinError.exit_code == 50
    assert said.out == ""
    assert said.err.startswith("fedct: ")
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.err


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with images and a hub, whose fingerprint is known."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ct").mkdir()
    return tmp_path


@pytest.fixture
def hub(place, fedct):
    return spoken(fedct("server", "init", "hub", "--name", "hub.example.org"))


@pytest.fixture
def request_of(fedct):
    """Makes a hospital's folder; the fingerprint of its request."""

    def make(name: str = "charite", folder: str = "site") -> str:
        address = "hub.example.org:8443"
        options = ("--name", name, "--hub", address, "--data", "ct")
        said = fedct("client", "request", folder, *options)
        assert said.code == 0, said
        return spoken(said)

    return make


def test_help_has_an_example(fedct):
    assert len(VERBS) == 8
    for verb in [*VERBS, ["server"], ["client"]]:
        said = fedct(*verb, "--help")
        assert (said.code, said.err) == (0, "")
        assert "Example: fedct" in " ".join(said.out.replace("│", " ").split())


def test_a_hospital_joins_renews_and_is_revoked(fedct, hub, request_of, place):
    request = request_of()
    path = "site/charite.request.json"
    said = fedct("server", "enroll", "hub", path, "--fingerprint", request)
    assert "charite is let in; give it hub/kits/charite.kit.json" in said.out
    assert spoken(said) == hub

    kit = "hub/kits/charite.kit.json"
    said = fedct("client", "install", "site", kit, "--fingerprint", hub)
    assert said.out.startswith("charite has joined the hub hub.example.org")
    assert "charite" in fedct("server", "sites", "hub").out
    (row,) = json.loads(fedct("server", "sites", "hub", "--format", "json").out)[
        "sites"
    ]
    assert (row["name"], row["status"]) == ("charite", "active")

    assert fedct("client", "renew", "site").code == 0
    said = fedct("server", "enroll", "hub", "site/charite.renewal.json")
    assert said.out.startswith("charite stays in")
    assert fedct("client", "install", "site", kit).code == 0
    assert fedct("server", "renew", "hub").out.startswith("renewed the hub's cert")

    assert fedct("server", "revoke", "hub", "charite", "--yes").code == 0
    (row,) = json.loads(fedct("server", "sites", "hub", "--format", "json").out)[
        "sites"
    ]
    assert row["status"] == "revoked"
    refused(fedct("server", "enroll", "hub", "site/charite.renewal.json"), "revoked")


def test_a_person_is_asked_for_what_a_script_must_give(
    fedct, hub, request_of, monkeypatch
):
    request_of()
    enroll = ("server", "enroll", "hub", "site/charite.request.json")
    refused(fedct(*enroll), "no fingerprint", "--fingerprint")

    asked, answers = [], iter([False, True, False, True])

    def confirm(question: str, abort: bool) -> None:
        asked.append(question)
        if not next(answers):
            raise typer.Abort

    monkeypatch.setattr(typer, "confirm", confirm)
    monkeypatch.setattr("deploy.cli_join._is_asked", lambda: True)
    said = fedct(*enroll)
    assert said.code == 130
    assert "nothing was changed" in said.err
    assert "its fingerprint:" in said.out
    assert json.loads(fedct("server", "sites", "hub", "--format", "json").out) == {
        "sites": []
    }
    assert fedct(*enroll).code == 0
    install = ("client", "install", "site", "hub/kits/charite.kit.json")
    assert fedct(*install).code == 130
    assert fedct(*install).code == 0
    assert asked == 2 * ["Does the hospital read out the same?"] + 2 * [
        "Did the coordinator tell you the same?"
    ]


def test_a_script_without_a_fingerprint_installs_nothing(fedct, hub, request_of, place):
    told = request_of()
    path = "site/charite.request.json"
    kit = place / "charite.kit.json"
    fedct("server", "enroll", "hub", path, "--fingerprint", told, "--out", kit)
    refused(fedct("client", "install", "site", kit), "first kit and no fingerprint")
    wrong = hub[:-1] + ("0" if hub[-1] != "0" else "1")
    said = fedct("client", "install", "site", kit, "--fingerprint", wrong)
    refused(said, "not the one that was told")
    said = fedct("server", "enroll", "hub", path, "--out", kit)
    refused(said, "'charite.kit.json' that exists")
    assert not (place / "site/tls/site.crt").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("server init site --name hub.example.org", "folder in use"),
        ("server init new --name Hub:1", "got the name 'Hub:1'"),
        ("server enroll site site/charite.request.json", "no readable hub.toml"),
        ("server enroll hub nowhere.json", "'nowhere.json' can't be read"),
        ("server enroll hub hub/hub.toml", "no request (not JSON)"),
        ("server enroll hub site/charite.request.json --days 999", "1 to 397"),
        ("server revoke hub nobody --yes", "site 'nobody'"),
        ("server renew nowhere", "no readable hub.toml"),
        ("server sites site", "no readable hub.toml"),
        ("client request site --name a --hub h:1 --data ct", "folder in use"),
        ("client request new --name A --hub h:1 --data ct", "lower case letters"),
        ("client request new --name a --hub h --data ct", "host:port"),
        ("client request new --name a --hub h:1 --data no", "does not exist here"),
        ("client install hub site/charite.request.json", "no readable client.toml"),
        ("client install site site/charite.request.json", "is a request, expected a"),
        ("client install site nowhere.json", "'nowhere.json' can't be read"),
        ("client renew hub", "no readable client.toml"),
    ],
)
def test_bad_input_is_one_sentence_and_number_50(fedct, hub, request_of, argv, words):
    told = request_of()
    if "--days" in argv:
        argv += f" --fingerprint {told.replace(' ', '')}"
    refused(fedct(*argv.split()), words)


def fill(folder: Path) -> None:
    """Leave no room on the disk."""
    filler = (folder / "filler").open("wb", buffering=0)
    with filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))


def test_a_full_disk_is_said_and_what_was_asked_for_works_after_it(
    fedct, hub, place, small_disk
):
    def refused_for_room(*words: object) -> None:
        said = fedct(*words)
        assert (said.code, said.out) == (DiskFullError.exit_code, ""), said
        assert "no room" in said.err
        assert "make room and do the same again" in said.err

    site = small_disk / "site"
    made = ("--name", "charite", "--hub", "hub.example.org:8443", "--data", "ct")
    fill(small_disk)
    refused_for_room("client", "request", site, *made)
    (small_disk / "filler").unlink()
    request = spoken(fedct("client", "request", site, *made))
    path, kit = site / "charite.request.json", "hub/kits/charite.kit.json"
    assert not fedct("server", "enroll", "hub", path, "--fingerprint", request).code
    fill(small_disk)
    refused_for_room("client", "install", site, kit, "--fingerprint", hub)
    refused_for_room("client", "renew", site)
    refused_for_room("server", "init", small_disk / "hub", "--name", "hub.example")
    (small_disk / "filler").unlink()
    assert not list(small_disk.rglob("*.tmp"))
    said = fedct("client", "install", site, kit, "--fingerprint", hub)
    assert said.out.startswith("charite has joined")
