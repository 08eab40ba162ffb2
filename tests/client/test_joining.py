"""A hospital joins: its folder, its kit, and everything that is refused."""

from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from client.install import install, is_pinned, read_kit, read_membership
from client.joining import renew
from client.site_file import (
    HubAddress,
    SiteFile,
    new_settings,
    read_site_file,
    site_toml,
)
from common.certificates import (
    certificate_pem,
    fingerprint_of,
    issue,
)
from common.errors import JoinError
from common.joining import KitSignatures, Request, parse, sign, signed_bytes, to_bytes
from common.keys import read_ec_key
from common.signing import public_text
from server.asked import read_request
from server.enrol import enroll
from server.hub import order_key
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


@pytest.fixture
def told(hub):
    return fingerprint_of(hub.authority)


def next_kit(hub, asked: Asked, now, days: int = 90) -> bytes:
    """The kit of a renewal at this time."""
    path, _ = renew(asked.folder, now)
    return enroll(hub, read_request(path.read_bytes()), None, days, now).read_bytes()


def signed_anew(hub, kit, **changes) -> bytes:
    """A kit with other content, under the hub's own signature."""
    forged = kit.model_copy(update=changes)
    signature = sign(hub.key, signed_bytes(forged))
    signatures = KitSignatures(authority=signature)
    return to_bytes(forged.model_copy(update={"signatures": signatures}))


# --- the folder -------------------------------------------------------------------


def test_the_request_is_what_was_asked_for(asked):
    request = parse(asked.request, Request)
    assert (request.name, request.hub) == ("charite", "hub.example.org:8443")
    assert (request.purpose, request.created) == ("join", NOW)
    assert renew(asked.folder, NOW)[1].purpose == "renew"


def test_flower_takes_the_node_key(asked):
    key = read_ec_key(asked.folder / "keys/node.key")
    assert isinstance(key.curve, ec.SECP384R1)
    assert public_key_to_bytes(key.public_key()).startswith(b"-----BEGIN PUBLIC")
    assert b"OPENSSH PRIVATE KEY" in (asked.folder / "keys/node.key").read_bytes()


def test_a_killed_request_leaves_a_folder_that_is_made_at_the_next_try(tmp_path):
    step = 0
    while killed_at(step, lambda: a_site(tmp_path / f"site{step}")):  # noqa: B023
        folder = tmp_path / f"site{step}"
        with pytest.raises(JoinError, match=r"unfinished|no readable client\.toml"):
            read_site_file(folder)
        assert a_site(folder).path.exists()
        assert not list(folder.rglob("*.tmp"))
        step += 5
    assert step > 15


def test_a_site_without_a_certificate_says_what_is_next(asked):
    with pytest.raises(JoinError, match=r"charite\.request\.json to the hub's coord"):
        read_membership(asked.folder, NOW)


def test_lost_keys_are_named(asked):
    (asked.folder / "keys/sign.key").unlink()
    with pytest.raises(JoinError, match=r"'sign\.key' can't be read"):
        renew(asked.folder, NOW)
    tls = asked.folder / "keys/tls.key"
    (asked.folder / "keys/sign.key").write_bytes(tls.read_bytes())
    (asked.folder / "keys/sign.key").chmod(0o600)
    with pytest.raises(JoinError, match=r"'sign\.key' is damaged or holds another"):
        renew(asked.folder, NOW)
    tls.chmod(0o640)
    with pytest.raises(JoinError, match="expected mode 0600; run chmod 600"):
        renew(asked.folder, NOW)


# --- settings ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"device": "cuda:1", "threads": 8},
        {"network": {"proxy": "http://proxy.example.org:3128"}},
        {"policy": {"approve": "auto"}},
        {"hub": {"address": "[2001:db8::1]:443"}},
        {"data": {"source": '/a "b" \\ ü', "format": "images", "where": {"v": "GE"}}},
    ],
    ids=lambda changes: "-".join(changes) or "defaults",
)
def test_settings_are_read_as_they_were_written(asked, changes):
    before = {
        "name": "charite",
        "hub": {"address": "hub:8443"},
        "data": {"source": "/"},
    }
    settings = SiteFile.model_validate({**before, **changes})
    (asked.folder / "client.toml").write_text(site_toml(settings))
    assert read_site_file(asked.folder) == settings


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('device = "auto"', 'devise = "auto"', "line 4: devise: unknown key"),
        ('approve = "ask"', 'approved = "ask"', r"policy\.approved: unknown key"),
        ('approve = "ask"', 'approve = "no"', r"policy\.approve: .*got 'no'"),
        ('"hub.example.org:8443"', '"hub.example.org"', "host:port.*got 'hub.example"),
        ('# proxy = "http:', 'proxy = "ftp:', "expected http://host:port"),
        ('name = "charite"', 'name = "Charite"', "name: "),
        ("[data]", "[date]", "data: is missing"),
    ],
)
def test_a_wrong_client_toml_is_named_by_key_and_line(asked, old, new, words):
    path = asked.folder / "client.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(JoinError, match=words) as refused:
        read_site_file(asked.folder)
    assert "line " in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "hub",
        "hub:",
        "hub:0",
        "hub:65536",
        "hub:x",
        ":1",
        "2001:db8::1:443",
        "a b:1",
        "http://hub:1",
        "hub:٣",
        "[hub]:1",
        "hub:8443/v1",
        "hub:999999999999",
    ],
)
def test_a_wrong_address_is_refused(tmp_path, address):
    with pytest.raises(JoinError, match=r"hub\.address.*host:port"):
        new_settings("charite", address, tmp_path, "dicom")


def test_an_address_has_host_and_port():
    six = HubAddress(address="[2001:db8::1]:443")
    assert (six.host, six.port) == ("2001:db8::1", 443)


@pytest.mark.parametrize(
    "proxy", ["proxy:3128", "http://proxy", "http://p:1/x", "ftp://p:1"]
)
def test_a_wrong_proxy_is_refused(tmp_path, proxy):
    with pytest.raises(JoinError, match=r"network\.proxy.*http://host:port"):
        new_settings("charite", "hub:1", tmp_path, "dicom", proxy=proxy)


def test_data_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(JoinError, match="does not exist here"):
        new_settings("charite", "hub:1", tmp_path / "nowhere", "dicom")


# --- installing -------------------------------------------------------------------


def test_a_kit_is_installed_once_its_fingerprint_is_confirmed(hub, asked, told):
    checked = read_kit(let_in(hub, asked))
    assert not is_pinned(asked.folder, checked)
    now = NOW + DAY
    membership = install(asked.folder, checked, told, now)
    assert membership == read_membership(asked.folder, now)
    assert membership.fingerprint == told
    assert (membership.hub.name, membership.hub.tls_name) == ("hub.example.org",) * 2
    assert membership.not_after == NOW + 90 * DAY
    assert is_pinned(asked.folder, checked)


def test_installing_the_same_kit_again_changes_nothing_that_matters(hub, asked, told):
    checked = read_kit(let_in(hub, asked))
    first = install(asked.folder, checked, told, NOW)
    assert install(asked.folder, checked, None, NOW) == first


def test_the_next_kit_needs_no_fingerprint_and_no_new_key(hub, asked, told):
    install(asked.folder, read_kit(let_in(hub, asked)), told, NOW)
    before = content_of(asked.folder / "keys")
    soon = NOW + 80 * DAY
    assert read_membership(asked.folder, soon).is_renewal_due(soon)
    assert not read_membership(asked.folder, soon - 25 * DAY).is_renewal_due(
        soon - 25 * DAY
    )
    kit = read_kit(next_kit(hub, asked, soon))
    assert install(asked.folder, kit, None, soon).not_after == NOW + 170 * DAY
    assert content_of(asked.folder / "keys") == before


def test_a_site_learns_the_hub_s_order_key_and_no_other_one(hub, asked, told):
    key = order_key(hub.folder)
    kit = let_in(hub, asked)
    assert install(asked.folder, read_kit(kit), told, NOW).order_key == key.public_key()
    other = public_text(Ed25519PrivateKey.generate().public_key())
    mine = public_text(key.public_key())
    swapped = kit.replace(mine.encode(), other.encode())
    assert swapped != kit
    refused_at_once(swapped, "altered")
    (asked.folder / "tls/kit.json").write_bytes(swapped)
    with pytest.raises(JoinError, match="altered"):
        read_membership(asked.folder, NOW)


def test_a_kit_of_an_older_hub_is_good_and_has_no_order_key(hub, asked, told):
    kit = read_kit(let_in(hub, asked)).kit
    older = signed_anew(hub, kit, order_key=None)
    assert b"order_key" not in older
    assert install(asked.folder, read_kit(older), told, NOW).order_key is None
    refused_at_once(signed_anew(hub, kit, order_key="no key"), "expected 64 hex")


def refused_at_once(content: bytes, words: str) -> None:
    with pytest.raises(JoinError, match=words):
        read_kit(content)


def refused(
    asked: Asked, content: bytes, told: str | None, words: str, now=NOW
) -> None:
    """Refused with these words, and nothing at the site is touched."""
    before = content_of(asked.folder)
    with pytest.raises(JoinError, match=words):
        install(asked.folder, read_kit(content), told, now)
    assert content_of(asked.folder) == before


def test_a_first_kit_is_believed_only_for_its_fingerprint(hub, asked, told, tmp_path):
    kit = let_in(hub, asked)
    refused(asked, kit, None, "first kit and no fingerprint")
    refused(asked, kit, told[:63], "not the one that was told")
    refused(asked, kit, "", "not the one that was told")
    rogue = let_in(a_hub(tmp_path / "rogue"), asked)
    refused(asked, rogue, told, "not the one that was told.*do not install")


def test_a_joined_site_takes_no_kit_of_another_hub(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    rogue = a_hub(tmp_path / "rogue")
    words = "expected the hub it has joined"
    refused(site, let_in(rogue, site), None, words)
    refused(site, let_in(rogue, site), fingerprint_of(rogue.authority), words)


def test_a_wrong_fingerprint_is_refused_even_where_none_is_needed(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    refused(site, let_in(hub, site), "0" * 64, "not the one that was told")


def test_a_kit_of_another_site_is_refused_by_name(hub, asked, told, tmp_path):
    lyon = let_in(hub, a_site(tmp_path / "lyon", "lyon"))
    refused(asked, lyon, told, "'charite' got the kit of site 'lyon'")
    relabelled = signed_anew(hub, read_kit(lyon).kit, name="charite")
    refused(asked, relabelled, told, "'charite' got the kit")


def test_a_kit_for_other_keys_of_the_same_name_is_refused(hub, asked, told, tmp_path):
    twin = let_in(hub, a_site(tmp_path / "twin"))
    refused(asked, twin, told, "for other keys than it has")


def test_a_certificate_of_a_foreign_authority_is_refused(hub, asked, told, tmp_path):
    foreign = read_kit(let_in(a_hub(tmp_path / "foreign"), asked)).kit
    mixed = signed_anew(
        hub, read_kit(let_in(hub, asked)).kit, certificate=foreign.certificate
    )
    refused(asked, mixed, told, "certificate of another authority")


def test_a_certificate_for_a_server_is_refused(hub, asked, told):
    kit = read_kit(let_in(hub, asked))
    key = read_ec_key(asked.folder / "keys/tls.key").public_key()
    server = issue("charite", key, hub.issuer, "server", NOW, 90)
    forged = signed_anew(hub, kit.kit, certificate=certificate_pem(server))
    refused(asked, forged, told, "altered")


def test_a_site_can_not_be_an_authority(hub, asked, told, tmp_path):
    """A site's certificate and key in the place of the hub's."""
    site = joined(hub, tmp_path / "rogue", "rogue")
    kit = read_kit(let_in(hub, asked)).kit
    own = (site.folder / "tls/site.crt").read_text()
    forged = kit.model_copy(update={"authority": own})
    signature = sign(read_ec_key(site.folder / "keys/tls.key"), signed_bytes(forged))
    signatures = KitSignatures(authority=signature)
    forged = forged.model_copy(update={"signatures": signatures})
    refused(asked, to_bytes(forged), told, "altered")


def test_a_kit_outside_its_time_is_refused_with_both_times(hub, asked, told):
    kit = let_in(hub, asked, days=30)
    early = "clock says 2026-02-27 12:00:00 UTC; set the clock"
    late = r"expired at 2026-03-31 12:00:00 UTC.*says 2026-04-10 12:00:00 UTC.*new kit"
    refused(asked, kit, told, early, NOW - 2 * DAY)
    refused(asked, kit, told, late, NOW + 40 * DAY)
    slow = install(asked.folder, read_kit(kit), told, NOW - timedelta(hours=14))
    assert slow.not_after == NOW + 30 * DAY


def test_an_older_kit_does_not_replace_a_newer_one(hub, asked, told):
    first = let_in(hub, asked)
    install(asked.folder, read_kit(first), told, NOW)
    second = next_kit(hub, asked, NOW + DAY)
    install(asked.folder, read_kit(second), None, NOW + DAY)
    refused(asked, first, None, "expected one not older", NOW + DAY)


def test_an_expired_site_says_how_to_renew_and_can(hub, asked, told):
    install(asked.folder, read_kit(let_in(hub, asked)), told, NOW)
    late = NOW + 100 * DAY
    with pytest.raises(JoinError, match="fedct client renew"):
        read_membership(asked.folder, late)
    with pytest.raises(JoinError, match=r"good from 2026-02-28 12:00:00 UTC"):
        read_membership(asked.folder, NOW - 2 * DAY)
    kit = read_kit(next_kit(hub, asked, late))
    assert install(asked.folder, kit, None, late).not_after == NOW + 190 * DAY


def test_a_changed_name_or_a_foreign_certificate_is_noticed(hub, tmp_path):
    site = joined(hub, tmp_path / "site")
    other = joined(hub, tmp_path / "other", "lyon")
    toml = site.folder / "client.toml"
    was = toml.read_text()
    toml.write_text(was.replace('"charite"', '"chartres"'))
    with pytest.raises(JoinError, match="'chartres', expected 'charite'"):
        read_membership(site.folder, NOW)
    toml.write_text(was)
    theirs = (other.folder / "tls/site.crt").read_text()
    (site.folder / "tls/site.crt").write_text(theirs)
    with pytest.raises(JoinError, match="install the newest kit again"):
        read_membership(site.folder, NOW)


def test_a_killed_install_is_finished_by_the_next(hub, asked, told):
    checked = read_kit(let_in(hub, asked))
    step = 0
    while killed_at(step, lambda: install(asked.folder, checked, told, NOW)):
        step += 1
    assert step >= 9
    assert read_membership(asked.folder, NOW).fingerprint == told


def test_a_killed_renewal_leaves_a_site_that_can_connect(hub, asked, told):
    install(asked.folder, read_kit(let_in(hub, asked)), told, NOW)
    kit = read_kit(next_kit(hub, asked, NOW + DAY))
    step = 0
    while killed_at(step, lambda: install(asked.folder, kit, None, NOW + DAY)):
        assert read_membership(asked.folder, NOW + DAY).fingerprint == told
        step += 1
    assert read_membership(asked.folder, NOW + DAY).not_after == NOW + 91 * DAY
    assert not list((asked.folder / "tls").glob("*.tmp"))
