"""The hub's authority against OpenSSL, TLS 1.3, a failing machine and bad requests."""

import multiprocessing
import shutil
import socket
import ssl
import stat
import subprocess
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.auth.superexec_secret import load_superexec_auth_secret

from client.install import read_kit
from client.joining import renew, write_request
from client.site_file import read_site_file
from common.certificates import fingerprint_of, read_certificate
from common.errors import JoinError
from common.joining import request_fingerprint, to_bytes
from common.new_folder import MARKER, new_folder
from server.asked import read_request
from server.authority import certify_hub
from server.enrol import enroll, is_known, remarks
from server.hub import CA_CRL, ORDER_KEY, HubFile, open_hub, order_key
from server.register import (
    entry_of,
    read_register,
    sites,
    verify_key_of,
)
from server.revocation import CRL_LIFE, refresh_crl, revoke
from tests.joining import (
    NOW,
    Asked,
    a_hub,
    a_site,
    content_of,
    joined,
    killed_at,
    let_in,
)

DAY = timedelta(days=1)


@pytest.fixture
def hub(tmp_path):
    return a_hub(tmp_path / "hub")


@pytest.fixture
def asked(tmp_path):
    return a_site(tmp_path / "site")


def verify(hub, certificate: Path, *options: str) -> str:
    """OpenSSL's verdict: OK, or its words."""
    day = str(int((NOW + DAY).timestamp()))
    command = ["openssl", "verify", "-x509_strict", "-attime", day]
    command += ["-CAfile", str(hub.folder / "ca/ca.crt")]
    said = subprocess.run(
        [*command, *options, certificate],
        capture_output=True,
        text=True,
        check=False,
    )
    return "OK" if said.returncode == 0 else said.stderr


def with_crl(hub) -> tuple[str, ...]:
    return "-crl_check", "-CRLfile", str(hub.folder / CA_CRL), "-purpose", "sslclient"


# --- the folder -------------------------------------------------------------------


def test_nobody_else_can_read_a_hub_or_a_site(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    revoke(hub, "charite", NOW)
    for root in (hub.folder, site.folder):
        for path in (root, *root.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


def test_the_authority_signs_sites_and_no_other_authority(hub):
    constraints = hub.authority.extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    usage = hub.authority.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert usage.value.crl_sign
    assert not usage.value.digital_signature
    life = hub.authority.not_valid_after_utc - NOW
    assert life == timedelta(days=3650)


def test_flower_takes_the_secret_and_the_node_key(hub, asked, tmp_path):
    let_in(hub, asked)
    secret = load_superexec_auth_secret(str(hub.folder / "secret"))
    assert secret is not None
    assert len(secret) == 32
    line = tmp_path / "node.pub"
    line.write_text(entry_of(hub.folder, "charite").node_key)
    assert try_load_public_key(line).startswith(b"-----BEGIN PUBLIC KEY-----")
    assert verify_key_of(hub.folder, "charite").startswith("-----BEGIN PUBLIC KEY")


def test_a_folder_in_use_is_not_touched(tmp_path):
    (tmp_path / "mine").write_text("mine")
    for make in (a_hub, a_site):
        with pytest.raises(JoinError, match="folder in use"):
            make(tmp_path)
    assert content_of(tmp_path) == {"mine": b"mine"}


def test_a_folder_being_made_is_not_swept(tmp_path):
    with new_folder(tmp_path / "hub", "hub"):
        with pytest.raises(JoinError, match="being made already"):
            a_hub(tmp_path / "hub")
        assert (tmp_path / "hub" / MARKER).exists()


def test_a_place_without_rights_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JoinError, match="can't be made"):
        a_hub(tmp_path / "file" / "hub")


def test_a_killed_init_leaves_a_folder_that_is_made_at_the_next_try(tmp_path):
    step = 0
    while killed_at(step, lambda: a_hub(tmp_path / f"hub{step}")):  # noqa: B023
        folder = tmp_path / f"hub{step}"
        with pytest.raises(JoinError, match=r"unfinished|no readable hub\.toml"):
            open_hub(folder, NOW)
        made = a_hub(folder)
        assert open_hub(folder, NOW).authority == made.authority
        assert not list(folder.rglob("*.tmp"))
        step += 7
    assert step > 20


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name = "hub.example.org"\nprot = 1\n', "line 2: prot: unknown key"),
        ("port = 1\n", "name: is missing"),
        ('name = "a b"\n', "line 1: name: hub got the name 'a b'"),
        ('name = "a"\nport = 70000\n', "line 2: port: .*got 70000"),
        ("name = ", "not valid TOML"),
        ('name = "a"\nport = 1\nport = 2\n', "line 3: port: stands .* second time"),
        ("[a.b]\n[c]\n[a.b]\n", r"line 3: table \[a\.b\] stands there a second time"),
        ('name = "a"\n\nport = yes\n', "line 3: port: Invalid value$"),
    ],
)
def test_a_wrong_hub_toml_is_named_by_key_and_line(hub, text, words):
    (hub.folder / "hub.toml").write_text(text)
    with pytest.raises(JoinError, match=words):
        open_hub(hub.folder, NOW)


def test_a_damaged_hub_says_which_file(hub, tmp_path):
    other = a_hub(tmp_path / "other")
    shutil.copy(other.folder / "ca/ca.key", hub.folder / "ca/ca.key")
    with pytest.raises(JoinError, match=r"ca\.key that is not the key of its ca\.crt"):
        open_hub(hub.folder, NOW)
    (hub.folder / "ca/ca.key").write_text("x")
    with pytest.raises(JoinError, match=r"'ca\.key' is damaged"):
        open_hub(hub.folder, NOW)
    (hub.folder / "ca/ca.key").chmod(0o644)
    with pytest.raises(JoinError, match="others may open"):
        open_hub(hub.folder, NOW)
    (hub.folder / "ca/issued.json").write_text('{"issued"')
    with pytest.raises(JoinError, match=r"no readable ca/issued\.json"):
        sites(hub.folder, NOW)
    with pytest.raises(JoinError, match=r"no readable hub\.toml"):
        open_hub(tmp_path, NOW)


def test_a_clock_that_is_wrong_at_the_hub_is_told_with_both_times(hub):
    for now, words in (
        (
            NOW - 2 * DAY,
            "good from 2026-02-28 12:00:00 UTC.*says 2026-02-27 12:00:00 UTC",
        ),
        (NOW + 4000 * DAY, "expired at 2036-02-27"),
    ):
        with pytest.raises(JoinError, match=words):
            open_hub(hub.folder, now)


# --- certificates -----------------------------------------------------------------


def test_openssl_takes_what_was_issued_for_what_it_is(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    site_crt, tls = site.folder / "tls/site.crt", hub.folder / "tls"
    assert verify(hub, site_crt, *with_crl(hub)) == "OK"
    assert "purpose" in verify(hub, site_crt, "-purpose", "sslserver")

    server = ("-purpose", "sslserver", "-verify_hostname")
    assert verify(hub, tls / "hub.crt", *server, "hub.example.org") == "OK"
    assert verify(hub, tls / "loopback.crt", *server, "localhost") == "OK"
    assert "hostname mismatch" in verify(hub, tls / "hub.crt", *server, "localhost")
    assert "purpose" in verify(hub, tls / "hub.crt", "-purpose", "sslclient")


def test_a_hub_with_an_address_for_a_name_has_a_name_for_nginx(tmp_path):
    hub = a_hub(tmp_path / "hub", "10.0.0.7")
    crt = hub.folder / "tls/hub.crt"
    assert verify(hub, crt, "-purpose", "sslserver", "-verify_ip", "10.0.0.7") == "OK"
    assert verify(hub, crt, "-verify_hostname", hub.settings.tls_name) == "OK"
    assert HubFile(name="2001:db8::1").address == "[2001:db8::1]:8443"
    assert hub.settings.tls_name == "fedct-hub" != a_hub(tmp_path / "b").settings.name


def test_the_hub_is_renewed_with_the_keys_it_has(hub):
    path = hub.folder / "tls/hub.crt"
    before = read_certificate(path)
    end = certify_hub(hub, NOW + 300 * DAY)
    after = read_certificate(path)
    assert after.public_key() == before.public_key()
    assert after.serial_number != before.serial_number
    assert after.not_valid_after_utc == end == NOW + 697 * DAY


def handshake(hub, site: Asked | None, server: tuple[Path, Path], name: str) -> str:
    """Connect over TLS 1.3: "ok", or whose side refused."""
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(*server)
    there.load_verify_locations(hub.folder / "ca/ca.crt")
    there.load_verify_locations(hub.folder / CA_CRL)
    there.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    there.verify_mode = ssl.CERT_REQUIRED
    here = ssl.create_default_context(cafile=str(hub.folder / "ca/ca.crt"))
    here.minimum_version = ssl.TLSVersion.TLSv1_3
    if site is not None:
        here.load_cert_chain(site.folder / "tls/site.crt", site.folder / "keys/tls.key")
    a, b = socket.socketpair()
    said: list[str] = []

    def serve() -> None:
        with b, suppress(OSError):
            try:
                with there.wrap_socket(b, server_side=True) as line:
                    line.send(b"in")
            except ssl.SSLCertVerificationError as error:
                said.append(error.verify_message)
            except ssl.SSLError as error:
                said.append(error.reason or "")

    thread = threading.Thread(target=serve)
    thread.start()
    with a:
        try:
            with here.wrap_socket(a, server_hostname=name) as line:
                got = line.recv(2)
        except ssl.SSLCertVerificationError as error:
            got, said = b"", [f"site: {error.verify_message}"]
        except (ssl.SSLError, OSError):
            got = b""
    thread.join()
    return "ok" if got == b"in" else said[0]


def test_tls_lets_in_who_was_let_in_and_nobody_else(tmp_path):
    today = datetime.now(UTC)  # TLS goes by the machine's clock
    hub = a_hub(tmp_path / "hub", now=today)
    foreign = a_hub(tmp_path / "foreign", now=today)
    site = joined(hub, tmp_path / "a", now=today)
    rogue = joined(foreign, tmp_path / "b", now=today)
    tls, name = hub.folder / "tls", "hub.example.org"
    public = tls / "hub.crt", tls / "hub.key"
    assert handshake(hub, site, public, name) == "ok"
    assert "issuer" in handshake(hub, rogue, public, name)
    assert "DID_NOT_RETURN" in handshake(hub, None, public, name)

    pretender = site.folder / "tls/site.crt", site.folder / "keys/tls.key"
    loopback = tls / "loopback.crt", tls / "loopback.key"
    abroad = foreign.folder / "tls/hub.crt", foreign.folder / "tls/hub.key"
    assert handshake(hub, site, pretender, "charite").startswith("site: unsuitable")
    assert handshake(hub, site, loopback, name).startswith("site: Hostname mismatch")
    assert handshake(hub, site, abroad, name).startswith("site: ")

    second = joined(hub, tmp_path / "c", "lyon", today)
    revoke(hub, "charite", today)
    assert handshake(hub, site, public, name) == "certificate revoked"
    assert handshake(hub, second, public, name) == "ok"


# --- enrolling --------------------------------------------------------------------


def test_a_site_is_let_in_and_the_register_says_so(hub, asked):
    kit = read_kit(let_in(hub, asked, days=30))
    (row,) = sites(hub.folder, NOW)
    assert (row.name, row.status) == ("charite", "active")
    assert row.not_after == NOW + 30 * DAY
    assert row.fingerprint == fingerprint_of(kit.certificate)
    assert kit.fingerprint == fingerprint_of(hub.authority)
    assert sites(hub.folder, NOW + 31 * DAY)[0].status == "expired"


def test_the_same_request_gives_the_same_certificate_and_kit(hub, asked):
    first = let_in(hub, asked)
    before = content_of(hub.folder)
    assert let_in(hub, asked, NOW + DAY) == first
    assert content_of(hub.folder) == before

    kit = hub.folder / "kits/charite.kit.json"
    kit.unlink()
    again = read_kit(let_in(hub, asked, NOW + DAY))
    assert again.certificate == read_kit(first).certificate
    kit.write_bytes(first[:-9])
    assert read_kit(let_in(hub, asked)).certificate == again.certificate
    assert len(read_register(hub.folder).issued) == 1


def test_an_older_hub_gets_its_order_key_at_first_need_and_kits_are_made_anew(
    hub, asked
):
    older = hub.folder / ORDER_KEY
    older.unlink()
    first = read_kit(let_in(hub, asked))
    assert order_key(hub.folder).public_key() == first.order_key
    assert stat.S_IMODE(older.stat().st_mode) == 0o600
    older.unlink()
    again = read_kit(let_in(hub, asked))
    assert again.order_key == order_key(hub.folder).public_key() != first.order_key
    assert again.certificate == first.certificate
    older.write_bytes(b"junk")
    with pytest.raises(JoinError, match="damaged"):
        order_key(hub.folder)


def test_a_renewal_needs_no_phone_and_replaces_the_kit(hub, asked):
    first = read_kit(let_in(hub, asked))
    path, _ = renew(asked.folder, NOW + 80 * DAY)
    checked = read_request(path.read_bytes())
    assert is_known(hub, checked)
    kit = read_kit(enroll(hub, checked, None, 90, NOW + 80 * DAY).read_bytes())
    assert kit.certificate.serial_number != first.certificate.serial_number
    assert kit.certificate.not_valid_after_utc == NOW + 170 * DAY
    assert kit.certificate.public_key() == first.certificate.public_key()
    assert [row.not_after for row in sites(hub.folder, NOW)] == [NOW + 170 * DAY]


def test_a_site_may_renew_after_its_certificate_expired(hub, asked):
    let_in(hub, asked, days=1)
    path, _ = renew(asked.folder, NOW + 9 * DAY)
    enroll(hub, read_request(path.read_bytes()), None, 90, NOW + 9 * DAY)
    assert sites(hub.folder, NOW + 9 * DAY)[0].status == "active"


def refused(hub, asked: Asked, told: str | None, words: str, **changes) -> None:
    """Refused with these words, and nothing at the hub is touched."""
    before = content_of(hub.folder)
    settings = {"days": 90, "now": NOW, **changes}
    with pytest.raises(JoinError, match=words):
        enroll(hub, read_request(asked.request), told, **settings)
    assert content_of(hub.folder) == before


def test_what_is_not_let_in_leaves_no_trace(hub, asked, tmp_path):
    refused(hub, asked, None, "no fingerprint, expected the one that the hospital")
    wrong = asked.told[:-1] + ("0" if asked.told[-1] != "0" else "1")
    refused(hub, asked, wrong, "not the one that was told")
    refused(hub, asked, asked.told, "--days 0, expected 1 to 397", days=0)
    refused(hub, asked, asked.told, "--days 398, expected 1 to 397", days=398)
    late = {"now": NOW + 3600 * DAY}
    refused(hub, asked, asked.told, "at most the 50 that its authority", **late)
    (tmp_path / "there.json").touch()
    out = {"out": tmp_path / "there.json"}
    refused(hub, asked, asked.told, "'there.json' that exists", **out)
    out = {"out": tmp_path / "nowhere" / "kit.json"}
    refused(hub, asked, asked.told, "has no folder", **out)


def test_a_name_belongs_to_the_keys_that_first_had_it(hub, asked, tmp_path):
    let_in(hub, asked)
    other = a_site(tmp_path / "other")
    refused(hub, other, other.told, "fedct server revoke HUB charite")
    revoke(hub, "charite", NOW)
    let_in(hub, other)
    assert sites(hub.folder, NOW)[0].status == "active"
    refused(hub, asked, asked.told, "revoked at 2026-03-01 12:00:00 UTC")


def test_keys_belong_to_one_name(hub, asked, tmp_path):
    let_in(hub, asked)
    settings = read_site_file(asked.folder).model_copy(update={"name": "lyon"})
    request = write_request(asked.folder, settings, "join", NOW)
    path = tmp_path / "lyon.request.json"
    path.write_bytes(to_bytes(request))
    twin = Asked(asked.folder, path, request_fingerprint(request))
    refused(hub, twin, twin.told, "with a key of site 'charite'")


def test_revoked_keys_never_come_back(hub, asked):
    let_in(hub, asked)
    revoke(hub, "charite", NOW)
    path, request = renew(asked.folder, NOW)
    again = Asked(asked.folder, path, request_fingerprint(request))
    refused(hub, again, again.told, "begin with a new folder")
    refused(hub, asked, asked.told, "begin with a new folder")


def test_a_renewal_for_another_hub_is_refused(hub, asked):
    path, request = renew(asked.folder, NOW)
    stray = Asked(asked.folder, path, request_fingerprint(request))
    refused(hub, stray, stray.told, "which it never let in")


def test_a_coordinator_is_told_of_another_hub_and_of_a_clock(tmp_path, asked):
    hub = a_hub(tmp_path / "hub", "hub2.example.org")
    checked = read_request(asked.request)
    (other,) = remarks(hub, checked, NOW)
    assert "hub.example.org:8443, this one is hub2.example.org:8443" in other
    _, clock = remarks(hub, checked, NOW - DAY)
    assert "from 2026-03-01 12:00:00 UTC, and it is 2026-02-28" in clock


def test_a_killed_enroll_lets_a_site_in_or_not(tmp_path):
    hub, asked = a_hub(tmp_path / "hub"), a_site(tmp_path / "site")
    old = a_site(tmp_path / "old", "lyon")
    let_in(hub, old)
    step = 0
    while True:
        folder = tmp_path / f"copy{step}"
        shutil.copytree(hub.folder, folder)
        copy = open_hub(folder, NOW)
        died = killed_at(step, lambda: let_in(copy, asked))  # noqa: B023
        names = [row.name for row in sites(folder, NOW)]
        assert names in (["lyon"], ["charite", "lyon"])
        kit = read_kit(let_in(copy, asked))
        entry = read_register(folder).latest()["charite"]
        assert int(entry.serial, 16) == kit.certificate.serial_number
        assert len(read_register(folder).issued) == 2
        if not died:
            break
        step += 1
    assert step == 6  # file, name, folder; register and kit


def _let_in(hub, asked: Asked) -> None:
    let_in(hub, asked)


def test_many_can_be_let_in_at_once(hub, tmp_path):
    names = [f"site-{number}" for number in range(6)]
    asked = [a_site(tmp_path / name, name) for name in names]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_let_in, args=(hub, one)) for one in asked]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [row.name for row in sites(hub.folder, NOW)] == names


# --- revoking ---------------------------------------------------------------------


def crl_number(hub) -> int:
    crl = x509.load_pem_x509_crl((hub.folder / CA_CRL).read_bytes())
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_openssl_refuses_every_certificate_of_a_revoked_site(hub, tmp_path):
    site, other = joined(hub, tmp_path / "a"), joined(hub, tmp_path / "b", "lyon")
    first = tmp_path / "first.crt"
    shutil.copy(site.folder / "tls/site.crt", first)
    path, _ = renew(site.folder, NOW)
    kit = read_kit(
        enroll(hub, read_request(path.read_bytes()), None, 90, NOW).read_bytes()
    )
    second = tmp_path / "second.crt"
    second.write_text(kit.kit.certificate)
    assert verify(hub, second, *with_crl(hub)) == "OK"
    revoke(hub, "charite", NOW)
    for certificate in (first, second):
        assert "certificate revoked" in verify(hub, certificate, *with_crl(hub))
    assert verify(hub, other.folder / "tls/site.crt", *with_crl(hub)) == "OK"
    assert [row.status for row in sites(hub.folder, NOW)] == ["revoked", "active"]


def test_revoking_twice_keeps_the_first_time(hub, asked):
    let_in(hub, asked)
    first = revoke(hub, "charite", NOW)
    assert revoke(hub, "charite", NOW + DAY).revoked == first.revoked == NOW


def test_revoking_nobody_names_who_there_is(hub, asked):
    let_in(hub, asked)
    with pytest.raises(JoinError, match=r"'nobody', expected .* \(charite\)"):
        revoke(hub, "nobody", NOW)
    with pytest.raises(JoinError, match="'nobody'"):
        verify_key_of(hub.folder, "nobody")


def test_a_killed_revoke_is_made_good_when_the_hub_starts(tmp_path):
    hub = a_hub(tmp_path / "hub")
    site = joined(hub, tmp_path / "site")
    step = 0
    while True:
        folder = tmp_path / f"copy{step}"
        shutil.copytree(hub.folder, folder)
        copy = open_hub(folder, NOW)
        died = killed_at(step, lambda: revoke(copy, "charite", NOW))  # noqa: B023
        status = sites(folder, NOW)[0].status
        assert refresh_crl(copy, NOW) == (died and status == "revoked" and step < 5)
        verdict = verify(copy, site.folder / "tls/site.crt", *with_crl(copy))
        assert (verdict == "OK") == (status == "active")
        if not died:
            break
        step += 1
    assert step == 6


def test_the_list_is_renewed_at_half_its_life_and_ends_with_it(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    assert not refresh_crl(hub, NOW + CRL_LIFE / 3)
    assert crl_number(hub) == 1
    assert refresh_crl(hub, NOW + CRL_LIFE / 2)
    assert crl_number(hub) == 2
    stale = str(int((NOW + 2 * CRL_LIFE).timestamp()))
    said = verify(hub, site.folder / "tls/site.crt", *with_crl(hub), "-attime", stale)
    assert "CRL has expired" in said
    (hub.folder / CA_CRL).unlink()
    assert refresh_crl(hub, NOW + CRL_LIFE / 2)
    assert crl_number(hub) == 3


def test_an_expired_certificate_leaves_the_list(hub, asked):
    let_in(hub, asked, days=1)
    revoke(hub, "charite", NOW)
    crl = x509.load_pem_x509_crl((hub.folder / CA_CRL).read_bytes())
    assert len(crl) == 1
    assert refresh_crl(hub, NOW + 9 * DAY)
    crl = x509.load_pem_x509_crl((hub.folder / CA_CRL).read_bytes())
    assert len(crl) == 0
    assert sites(hub.folder, NOW + 9 * DAY)[0].status == "revoked"
