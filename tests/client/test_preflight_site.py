"""What is wrong in a site's own folder shows, with what to do."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import takewhile

import pytest

from client.audit import AUDIT, record_left
from client.desk import decide, pause, queue_plan, resume
from client.hub_road import hub_of
from client.install import install, read_kit
from client.joining import create_site
from client.preflight import preflight
from client.preflight_row import run_checks
from client.preflight_site import check_data, check_desk, check_rights, site_checks
from client.site_file import SIGN_KEY, HubAddress, SiteFile, read_site_file
from common.joining import read_exchanged
from common.signing import make_signing_key
from common.sources import Source
from server.asked import read_request
from server.authority import create_hub
from server.enrol import enroll
from server.hub import HubFile
from tests.client.conftest import left
from tests.client.tls_hub import hub
from tests.plans import SLICES

NOW = datetime.now(UTC)


@pytest.fixture
def join(tmp_path):
    """Makes the folder of a site that has joined a hub, as both sides' verbs do."""

    def make(days: int = 30, ago: timedelta = timedelta(0), port: int = 9):
        then = NOW - ago
        source = tmp_path / "data"
        source.mkdir()
        (source / "1.dcm").write_bytes(bytes(128) + b"DICM")
        settings = SiteFile(
            name="north",
            hub=HubAddress(address=f"127.0.0.1:{port}"),
            data=Source(source=str(source)),
        )
        made = create_hub(tmp_path / "hub", HubFile(name="127.0.0.1", port=port), then)
        request, _ = create_site(tmp_path / "site", settings, then)
        checked = read_request(read_exchanged(request))
        path = enroll(made, checked, checked.fingerprint, days, then, None)
        kit = read_kit(read_exchanged(path))
        install(tmp_path / "site", kit, kit.fingerprint, then)
        return tmp_path / "site"

    return make


def table(folder) -> dict:
    rows = run_checks(site_checks(folder, read_site_file(folder)))
    return {row.name: row for row in rows}


def test_a_site_that_has_joined_passes(join):
    rows = table(join())
    assert {row.verdict for row in rows.values()} == {"PASS"}, rows
    assert rows["own certificate"].found == "of north, good for 30.0 days"
    assert "3 keys" in rows["rights"].found


def test_a_certificate_past_two_thirds_of_its_life_is_to_be_renewed(join):
    row = table(join(days=30, ago=timedelta(days=21)))["own certificate"]
    assert (row.verdict, row.fix) == ("WARN", "renew it now: `fedct client renew`")


def test_an_expired_certificate_fails_with_what_to_do(join):
    row = table(join(days=3, ago=timedelta(days=4)))["own certificate"]
    assert row.verdict == "FAIL"
    assert "expired" in row.found
    assert "fedct client renew" in row.fix


def test_a_site_without_a_kit_fails_and_the_rest_goes_on(join):
    site = join()
    (site / "tls" / "site.crt").unlink()
    rows = table(site)
    assert rows["own certificate"].verdict == "FAIL"
    assert rows["data"].verdict == "PASS"


@pytest.mark.parametrize(
    ("name", "mode"), [(".", 0o750), ("keys", 0o711), ("keys/sign.key", 0o640)]
)
def test_what_is_open_to_others_fails(join, name, mode):
    site = join()
    (site / name).chmod(mode)
    row = check_rights(site)
    assert row.verdict == "FAIL"
    assert f"(mode {mode:04o})" in row.found


@pytest.mark.parametrize("name", ["tls.key", "node.key", "sign.key"])
def test_a_lost_key_fails_by_its_name(join, name):
    site = join()
    (site / "keys" / name).unlink()
    row = check_rights(site)
    assert (row.verdict, row.found) == ("FAIL", f"keys are not there: {name}")
    assert "join anew" in row.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_fails(join):
    site = join()
    os.chown(site / "keys" / "tls.key", 65534, 65534)
    row = check_rights(site)
    assert (row.verdict, "belongs to user 65534" in row.found) == ("FAIL", True)


def test_the_desk_tells_what_waits_and_whether_the_log_is_whole(tmp_path):
    assert check_desk(tmp_path).verdict == "PASS"
    entry = queue_plan(tmp_path, SLICES, "run")
    assert check_desk(tmp_path).verdict == "WARN"
    decide(tmp_path, entry.digest, "approved")
    assert check_desk(tmp_path).verdict == "PASS"
    pause(tmp_path, "x")
    assert check_desk(tmp_path).found == "paused: x"
    resume(tmp_path)
    (tmp_path / "keys").mkdir()
    key = make_signing_key(tmp_path / SIGN_KEY)
    record_left(tmp_path, left(1), key)
    assert "1 orders answered" in check_desk(tmp_path).found
    text = (tmp_path / AUDIT).read_text()
    (tmp_path / AUDIT).write_text(text.replace('"bytes_out":4001', '"bytes_out":2'))
    row = check_desk(tmp_path)
    assert (row.verdict, "line 1" in row.found) == ("FAIL", True)


# --- data ---------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "ct"
    (folder / "a" / "b").mkdir(parents=True)
    return folder


def test_data_are_met_by_what_the_files_are(data):
    def verdict(kind="dicom"):
        return check_data(Source(source=str(data), format=kind)).verdict

    assert verdict() == "FAIL"
    (data / "notes.dcm").write_text("no image")
    assert verdict() == "FAIL"
    (data / "a" / "b" / "IM1").write_bytes(bytes(128) + b"DICM")
    assert verdict() == "PASS"
    (data / "a" / "b" / "IM1").write_bytes(b"\x08\x00\x05\x00")  # no preamble
    assert verdict() == "PASS"
    for kind, name in (
        ("nifti", "x.NII.gz"),
        ("metaimage", "x.mhd"),
        ("images", "x.png"),
    ):
        assert verdict(kind) == "FAIL"
        (data / "a" / name).touch()
        assert verdict(kind) == "PASS"


def test_data_that_are_not_there_or_open_to_all_are_told(data):
    row = check_data(Source(source=str(data / "none")))
    assert (row.verdict, row.fix) == ("FAIL", "mount it")
    (data / "1.dcm").write_bytes(bytes(128) + b"DICM")
    data.chmod(0o777)
    row = check_data(Source(source=str(data)))
    assert (row.verdict, "every user" in row.found) == ("WARN", True)


def test_links_out_of_the_data_are_not_followed(data, tmp_path):
    (tmp_path / "1.dcm").write_bytes(bytes(128) + b"DICM")
    (data / "link").symlink_to(tmp_path)
    (data / "file").symlink_to(tmp_path / "1.dcm")
    assert check_data(Source(source=str(data))).verdict == "FAIL"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("sealed", [".", "a", "a/1.dcm"])
def test_data_that_this_user_may_not_read_fail(data, sealed):
    (data / "a" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    for folder in takewhile(lambda path: "pytest" in str(path), data.parents):
        folder.chmod(0o755)
    (data / sealed).chmod(0)
    os.seteuid(65534)
    try:
        row = check_data(Source(source=str(data)))
    finally:
        os.seteuid(0)
    assert (row.verdict, "user 65534 may not read" in row.found) == ("FAIL", True)


def test_a_search_without_end_is_a_warning(data, monkeypatch):
    monkeypatch.setattr("client.preflight_site.LOOK_S", 0.0)
    (data / "note").touch()
    row = check_data(Source(source=str(data)))
    assert (row.verdict, "0 s of looking" in row.found) == ("WARN", True)


# --- the whole table ----------------------------------------------------------------

NAMES = [
    "settings",
    "own certificate",
    "rights",
    "desk",
    "data",
    "proxy",
    "hub's name",
    "hub's port",
    "TLS 1.3",
    "hub's certificate",
    "accepted by the hub",
    "clock",
    "disk",
    "memory",
    "GPU",
    "decoders",
    "packages",
    "echo",
    "service",
]


@pytest.fixture
def quick(monkeypatch):
    """Without a proxy, and without the seconds that torch takes."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    probe = 'print(\'{"built": null, "gpus": []}\')'
    monkeypatch.setattr("client.preflight_machine._GPU", probe)


def test_the_whole_table_against_a_hub_that_is_there(join, tmp_path, quick):
    site, tls = join(), tmp_path / "hub" / "tls"
    with hub(site / "tls" / "ca.crt", (tls / "hub.crt", tls / "hub.key")) as port:
        text = (site / "client.toml").read_text()
        address = read_site_file(site).hub.address
        (site / "client.toml").write_text(text.replace(address, f"127.0.0.1:{port}"))
        # The hub is known by the name in its kit, wherever it is reached.
        assert hub_of(site, read_site_file(site)).name == "fedct-hub"
        rows = preflight(site)
    assert [row.name for row in rows] == NAMES
    network = {row.name: row for row in rows if row.name in NAMES[5:12]}
    assert {row.verdict for row in network.values()} == {"PASS"}, network
    machine = ("disk", "memory")  # whatever this one is like
    bad = [r.name for r in rows if r.verdict == "FAIL" and r.name not in machine]
    assert bad == ["echo"]  # this hub has no SuperLink


def test_wrong_settings_stop_no_other_check(join, quick):
    site = join()
    (site / "client.toml").write_text('name = "north"\n[policy]\napprove = "maybe"\n')
    rows = {row.name: row for row in preflight(site)}
    assert rows["settings"].verdict == "FAIL"
    assert "policy.approve" in rows["settings"].found
    assert sum("policy.approve" in row.found for row in rows.values()) == 1
    assert rows["rights"].verdict == "PASS"
    assert rows["decoders"].verdict == "PASS"
    assert (rows["service"].verdict, rows["service"].found) == ("WARN", "not started")


def test_a_hub_that_hangs_costs_its_rows_and_not_the_others(join, quick, monkeypatch):
    site = join()
    hung = threading.Event()
    monkeypatch.setattr("client.preflight_network._TIMEOUT_S", 0.5)
    monkeypatch.setattr(
        "client.preflight_line.socket.create_connection", lambda *_: hung.wait()
    )
    start = time.monotonic()
    rows = {row.name: row for row in preflight(site)}
    hung.set()
    assert time.monotonic() - start < 30
    assert rows["hub's port"].found == "no answer within 0 s"
    assert rows["data"].verdict == "PASS"
