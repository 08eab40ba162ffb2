"""Requests and kits between hub and site: taken whole, or refused."""

import base64
import json
import random
import string

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from client.install import read_kit
from client.joining import write_request
from client.site_file import NODE_KEY, SIGN_KEY, TLS_KEY, read_site_file
from common.certificates import check_site_name, grouped, host_of, same_fingerprint
from common.errors import JoinError
from common.joining import (
    LARGEST_BYTES,
    Kit,
    Request,
    RequestSignatures,
    canonical,
    is_signed,
    parse,
    read_exchanged,
    request_fingerprint,
    sign,
    signed_bytes,
    to_bytes,
)
from common.keys import openssh_line, read_ec_key, read_signing_key
from server.asked import read_request
from tests.joining import NOW, a_hub, a_site, let_in

READ = {"request": read_request, "kit": read_kit}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A hub, two hospitals, and the files of the first."""
    root = tmp_path_factory.mktemp("world")
    hub, site = a_hub(root / "hub"), a_site(root / "site")
    other = a_site(root / "other", "lyon")
    files = {"request": site.request, "kit": let_in(hub, site)}
    return {"hub": hub, "site": site, "other": other, **files}


@pytest.mark.parametrize("what", READ)
def test_what_was_written_is_read(world, what):
    assert READ[what](world[what])


@pytest.mark.parametrize("what", READ)
def test_a_flip_of_any_byte_is_refused(world, what):
    content, dice = world[what], random.Random(1)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= dice.randrange(1, 256)
        with pytest.raises(JoinError):
            READ[what](bytes(changed))


@pytest.mark.parametrize("what", READ)
@given(data=st.data())
def test_a_cut_a_swap_or_an_insertion_is_refused(world, what, data):
    content = world[what]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    changed = content[:start] + data.draw(st.binary(max_size=9)) + content[end:]
    if changed != content:
        with pytest.raises(JoinError):
            READ[what](changed)


@pytest.mark.parametrize("what", READ)
def test_the_same_content_written_otherwise_is_refused(world, what):
    content = json.loads(world[what])
    assert canonical(content) == world[what]
    for otherwise in (
        json.dumps(content).encode(),
        world[what].replace(b"\n", b"\r\n"),
        world[what] + b"\n",
        world[what].replace(b'"version": 1', b'"version": 1,\n "version": 1'),
        world[what].replace(b'"version": 1', b'"version": 1.0'),
        world[what].replace(b'"version": 1', b'"version": true'),
    ):
        with pytest.raises(JoinError):
            READ[what](otherwise)


@pytest.mark.parametrize("swapped", ["csr", "node_key", "verify_key"])
def test_nobody_can_put_another_key_into_a_request(world, swapped):
    """Even who holds the two other keys and signs anew with them."""
    site, other = world["site"], world["other"]
    keys = {
        "tls": read_ec_key(site.folder / TLS_KEY),
        "node": read_ec_key(site.folder / NODE_KEY),
        "sign": read_signing_key(site.folder / SIGN_KEY),
    }
    settings = read_site_file(site.folder)
    mine = write_request(site.folder, settings, "join", NOW)
    named_alike = read_site_file(other.folder).model_copy(update={"name": "charite"})
    theirs = write_request(other.folder, named_alike, "join", NOW)
    forged = mine.model_copy(update={swapped: getattr(theirs, swapped)})
    signed = signed_bytes(forged)
    made = {which: sign(key, signed) for which, key in keys.items()}
    forged = forged.model_copy(update={"signatures": RequestSignatures(**made)})
    with pytest.raises(JoinError, match="altered"):
        read_request(to_bytes(forged))
    unsigned = mine.model_copy(update={swapped: getattr(theirs, swapped)})
    with pytest.raises(JoinError, match="altered"):
        read_request(to_bytes(unsigned))


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP521R1()], ids=lambda c: c.name
)
def test_a_key_of_another_curve_is_refused(world, curve):
    folder = world["site"].folder
    mine = write_request(folder, read_site_file(folder), "join", NOW)
    node = ec.generate_private_key(curve)
    forged = mine.model_copy(update={"node_key": openssh_line(node.public_key())})
    signed = signed_bytes(forged)
    signatures = RequestSignatures(
        tls=sign(read_ec_key(folder / TLS_KEY), signed),
        node=sign(node, signed),
        sign=sign(read_signing_key(folder / SIGN_KEY), signed),
    )
    forged = forged.model_copy(update={"signatures": signatures})
    with pytest.raises(JoinError, match="altered"):
        read_request(to_bytes(forged))


def test_a_signature_is_of_one_message_and_one_key():
    for key in (
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
    ):
        made = sign(key, b"m")
        assert is_signed(key.public_key(), b"m", made)
        assert not is_signed(key.public_key(), b"n", made)
        assert not is_signed(key.public_key(), b"m", made[:-4])
        assert not is_signed(key.public_key(), b"m", "é")


def test_a_signature_has_one_writing():
    """Base64 leaves bits of its last letter open."""
    key = ed25519.Ed25519PrivateKey.generate()
    made = sign(key, b"m")
    letters = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    other = letters[letters.index(made[-3]) ^ 1]
    twin = f"{made[:-3]}{other}=="
    assert base64.b64decode(twin) == base64.b64decode(made)
    assert is_signed(key.public_key(), b"m", made)
    assert not is_signed(key.public_key(), b"m", twin)


@pytest.mark.parametrize(
    ("what", "version", "words"),
    [
        ("request", 2, "update FedCT here"),
        ("request", 0, "update FedCT at the site"),
        ("kit", 2, "update FedCT here"),
        ("kit", 0, "update FedCT at the hub"),
    ],
)
def test_another_version_says_who_has_to_update(world, what, version, words):
    content = {**json.loads(world[what]), "version": version, "news": 1}
    with pytest.raises(JoinError, match=words):
        READ[what](canonical(content))


def test_a_kit_is_no_request_and_the_error_says_who_gives_what(world):
    with pytest.raises(JoinError, match="is a join kit, expected a request"):
        parse(world["kit"], Request)
    with pytest.raises(JoinError, match="is a request, expected a join kit"):
        parse(world["request"], Kit)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * LARGEST_BYTES, b'{"format": NaN}'],
    ids=lambda content: repr(content[:9]),
)
def test_something_else_is_refused(content):
    for read in READ.values():
        with pytest.raises(JoinError):
            read(content)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(JoinError, match=r"'no\.kit\.json' can't be read \(No such"):
        read_exchanged(tmp_path / "no.kit.json")
    (tmp_path / "film.json").write_bytes(bytes(LARGEST_BYTES + 1))
    with pytest.raises(JoinError, match="more than 65536 bytes"):
        read_exchanged(tmp_path / "film.json")
    with pytest.raises(JoinError, match="can't be read"):
        read_exchanged(tmp_path)


def test_a_request_holds_no_secret(world):
    site = world["site"]
    for path in (site.folder / "keys").iterdir():
        body = path.read_text().splitlines()[1:-1]
        assert all(line.encode() not in site.request for line in body)
    assert str(site.folder).encode() not in site.request


# --- fingerprints and names -------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(0, 63))
def test_a_fingerprint_is_known_as_a_person_writes_it(raw, position):
    digits = raw.hex()
    for told in (digits, grouped(digits), grouped(digits).replace(" ", ":") + "\n"):
        assert same_fingerprint(told, digits)
    other = format(int(digits[position], 16) ^ 1, "x")
    assert not same_fingerprint(
        digits[:position] + other + digits[position + 1 :], digits
    )
    assert not same_fingerprint(digits[:position], digits)
    assert not same_fingerprint("", digits)


def test_a_fingerprint_of_a_request_is_of_all_it_says(world):
    request = parse(world["request"], Request)
    renamed = request.model_copy(update={"hub": "evil.example.org:8443"})
    assert request_fingerprint(request) != request_fingerprint(renamed)
    assert len(grouped(request_fingerprint(request)).split()) == 16


@pytest.mark.parametrize("name", ["a", "7", "charite", "site-1", "a" * 32])
def test_a_good_name(name):
    assert check_site_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", "a-", "Charite", "a b", "a_b", "a.b", "ä", "a" * 33, "a\n", "../a", "٣"],
)
def test_a_bad_name_is_refused(name):
    with pytest.raises(JoinError, match="32 lower case letters"):
        check_site_name(name)


@pytest.mark.parametrize("name", ["pooled", "public"])
def test_a_name_with_another_meaning_is_refused(name):
    with pytest.raises(JoinError, match="another meaning"):
        check_site_name(name)


@pytest.mark.parametrize("name", ["hub", "hub.example.org", "10.0.0.7", "2001:db8::1"])
def test_a_good_host(name):
    assert str(host_of(name).value) == name


@pytest.mark.parametrize(
    "name", ["", "Hub", "a..b", "-a.b", "hub:8443", "a" * 64, "*.b"]
)
def test_a_bad_host_is_refused(name):
    with pytest.raises(JoinError, match="DNS name"):
        host_of(name)
