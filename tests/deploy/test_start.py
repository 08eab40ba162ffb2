"""What is looked at before a hub or a hospital's service is started."""

import re
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest

from common.errors import JoinError, SupervisorError
from deploy import start
from deploy.start import alone, is_running, start_client, start_hub
from tests.federation.chain import free_port
from tests.joining import a_hub, a_site, joined

NOW = datetime.now(UTC)


@pytest.fixture
def started(monkeypatch):
    """Programs that would be started, and what was told."""
    seen = []
    monkeypatch.setattr(start, "supervise", lambda *a: seen.append(a[1]))
    return seen


@pytest.mark.parametrize("key", ["port", "superlink_port"])
def test_a_hub_does_not_begin_beside_another_one_on_its_port(
    tmp_path, started, monkeypatch, key
):
    monkeypatch.setattr(start, "_LET_GO_S", 0.3)
    hub = a_hub(tmp_path / "hub", now=NOW)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        toml = hub.folder / "hub.toml"
        text = toml.read_text().replace("18443", str(free_port()))
        text = re.sub(rf"^{key} = .*$", f"{key} = {port}", text, flags=re.MULTILINE)
        toml.write_text(text)
        with pytest.raises(SupervisorError, match=rf"port {port} .*another {key} in"):
            start_hub(hub.folder, threading.Event(), print)
    assert started == []
    assert not is_running(hub.folder)


def test_two_supervisors_of_one_folder_are_refused(tmp_path, started):
    site = joined(a_hub(tmp_path / "hub", now=NOW), tmp_path / "site", now=NOW)
    assert not is_running(site.folder)
    assert not list(site.folder.glob("*.lock"))  # looking leaves nothing behind
    with alone(site.folder, "site"):
        assert is_running(site.folder)
        with pytest.raises(SupervisorError, match="running in this folder already"):
            start_client(site.folder, threading.Event(), print)
    start_client(site.folder, threading.Event(), print)
    assert len(started) == 1


def test_a_site_that_has_not_joined_is_told_what_is_next(tmp_path, started):
    with pytest.raises(JoinError, match="fedct client install"):
        start_client(a_site(tmp_path / "site").folder, threading.Event(), print)
    assert started == []


@pytest.mark.parametrize(
    ("days", "words"),
    [(1, None), (80, "renew it now"), (100, "has a certificate that expired")],
)
def test_a_certificate_that_ends_is_told_at_the_start_and_stops_nothing(
    tmp_path, started, monkeypatch, days, words
):
    site = joined(a_hub(tmp_path / "hub", now=NOW), tmp_path / "site", now=NOW)
    monkeypatch.setattr(start, "_now", lambda: NOW + timedelta(days=days))
    said: list[str] = []
    start_client(site.folder, threading.Event(), said.append)
    assert len(started) == 1
    assert said == [] if words is None else words in said[0]
