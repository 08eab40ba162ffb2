"""Parcels: what is taken, and that nothing else is."""

import hmac
import json
import stat
import struct
import zlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from flwr.app import ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import ContributionError
from common.exchange import TrainOrder, Update
from common.parcel import (
    _SUITE,
    AnswerParcel,
    Failure,
    OrderParcel,
    read_answer,
    read_order,
    write_answer,
    write_order,
)
from common.parcel_file import _MAGIC, _PURPOSE, Header, peek, write_parcel
from common.wire import from_record, to_record

HUB = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SITE = Ed25519PrivateKey.from_private_bytes(bytes(32))
REPLY = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
REPLY_TEXT = REPLY.public_key().public_bytes_raw().hex()
ID, OTHER_ID = "ab" * 16, "cd" * 16
WAITING = {ID: "north"}
KEYS = {"north": SITE.public_key(), "south": HUB.public_key()}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TRAIN = TrainOrder("run", "plan", 1, 0, np.arange(1000, dtype=np.float32), "model")
UPDATE = Update(
    "north", 1, "plan", np.arange(1000, dtype=np.float32), 7, 0.5, 2, 0.1, 9, 10
)


def an_order(content: RecordDict, number: int = 2) -> OrderParcel:
    due = int(NOW.timestamp()) + 60
    return OrderParcel(ID, "north", "train", REPLY_TEXT, "run", number, due, content)


@pytest.fixture
def order(tmp_path) -> Path:
    path = tmp_path / "1.order"
    parcel = an_order(to_record(TRAIN))
    write_order(path, parcel, HUB)
    return path


@pytest.fixture
def answer(tmp_path) -> Path:
    path = tmp_path / "1.answer"
    parcel = AnswerParcel(ID, "north", "train", to_record(UPDATE))
    write_answer(path, parcel, REPLY_TEXT, SITE)
    return path


def take_order(path: Path, **changes: object) -> OrderParcel:
    given = {"site": "north", "hub_key": HUB.public_key(), "answered": {}, "now": NOW}
    return read_order(path, **{**given, **changes})


def take_answer(path: Path, **changes: object) -> AnswerParcel:
    given = {"waiting": WAITING, "site_keys": KEYS, "reply_key": REPLY, **changes}
    return read_answer(path, **given)


def code_of(take: object, *arguments: object, **changes: object) -> str | None:
    with pytest.raises(ContributionError) as caught:
        take(*arguments, **changes)
    assert "nothing was taken from it" in str(caught.value)
    return caught.value.code


def test_an_order_arrives_to_the_bit(order):
    got = take_order(order)
    assert (got.message_id, got.site, got.kind) == (ID, "north", "train")
    assert got.reply_key == REPLY_TEXT
    sent = from_record(got.content, TrainOrder)
    assert sent.model.tobytes() == TRAIN.model.tobytes()
    assert sent.nonce == TRAIN.nonce


def test_an_answer_arrives_to_the_bit(answer):
    got = take_answer(answer)
    assert (got.message_id, got.site, got.kind) == (ID, "north", "train")
    delta = from_record(got.content, Update).delta
    assert delta.tobytes() == UPDATE.delta.tobytes()


def test_a_failure_arrives_as_a_number(tmp_path):
    failure = Failure(105302)
    path = tmp_path / "1.answer"
    parcel = AnswerParcel(ID, "north", "train", failure)
    write_answer(path, parcel, REPLY_TEXT, SITE)
    assert take_answer(path).content == failure


def test_parcels_are_for_their_owner_alone_and_compressed(order, answer):
    for path in (order, answer):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_size < UPDATE.delta.nbytes


def test_nothing_of_an_answer_can_be_read_on_the_way(tmp_path):
    path = tmp_path / "1.answer"
    words = ConfigRecord({"text": "a sentence that is not for everybody"})
    content = RecordDict({"facts": words})
    parcel = AnswerParcel(ID, "north", "train", content)
    write_answer(path, parcel, REPLY_TEXT, SITE)
    first = path.read_bytes()
    write_answer(path, parcel, REPLY_TEXT, SITE)
    head = len(first) - peek(path).content_bytes
    assert first[head:] != path.read_bytes()[head:]  # fresh key for every answer
    assert b"sentence" not in first


@pytest.mark.parametrize("name", ["order", "answer"])
def test_a_parcel_that_ends_early_is_refused_wherever_it_ends(name, request):
    path, take = request.getfixturevalue(name), TAKE[name]
    whole = path.read_bytes()
    for size in [*range(0, 700, 7), len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        expected = "format" if size == 0 else "truncated"
        assert code_of(take, path) == expected, size
    path.write_bytes(whole + b"\0")
    assert code_of(take, path) == "altered"


TAKE = {"order": take_order, "answer": take_answer}


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("name", ["order", "answer"])
def test_any_altered_byte_is_refused(name, request, data):
    path, take = request.getfixturevalue(name), TAKE[name]
    whole = path.read_bytes()
    try:
        altered = bytearray(whole)
        place = data.draw(st.integers(0, len(whole) - 1))
        altered[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(altered)
        assert code_of(take, path)
    finally:
        path.write_bytes(whole)


def test_another_order_s_content_under_this_one_s_header_is_refused(tmp_path):
    paths = {}
    for seed in range(200):  # until two contents are of one length
        model = np.random.default_rng(seed).normal(size=50).astype(np.float32)
        content = to_record(replace(TRAIN, model=model))
        path = tmp_path / f"{seed}.order"
        write_order(path, an_order(content), HUB)
        one = paths.setdefault(size := path.stat().st_size, path)
        if one != path:
            break
    content_bytes = peek(one).content_bytes
    mixed = one.read_bytes()[:-content_bytes] + path.read_bytes()[-content_bytes:]
    assert len(mixed) == size
    one.write_bytes(mixed)
    assert take_order(path)
    assert code_of(take_order, one) == "altered"


def test_an_order_of_another_hub_or_for_another_site_is_refused(order):
    assert code_of(take_order, order, hub_key=SITE.public_key()) == "key"
    assert code_of(take_order, order, site="south") == "site"


@pytest.mark.parametrize("name", ["order", "answer"])
def test_who_names_the_right_key_and_has_another_is_refused(name, request):
    """The key in the header is for a good error; what counts is the signature."""
    path, take = request.getfixturevalue(name), TAKE[name]
    right, content = peek(path), path.read_bytes()[-peek(path).content_bytes :]
    write_parcel(path, right, content, Ed25519PrivateKey.generate())
    forged = path.read_bytes().replace(peek(path).key.encode(), right.key.encode())
    path.write_bytes(forged)
    assert peek(path) == right
    assert code_of(take, path) == "signature"


def test_an_order_that_was_answered_or_is_older_is_refused(order):
    assert code_of(take_order, order, answered={"run": 2}) == "replay"
    assert code_of(take_order, order, answered={"run": 3}) == "older"
    got = take_order(order, answered={"run": 1, "other": 9})
    assert (got.run, got.number) == ("run", 2)


def test_an_order_whose_time_is_over_is_refused_with_both_times(order):
    assert take_order(order, now=NOW + timedelta(seconds=60))
    late = NOW + timedelta(seconds=120)
    with pytest.raises(ContributionError, match=r"by 2026-03-01 12:01.*it is.*12:02"):
        take_order(order, now=late)
    assert code_of(take_order, order, now=late) == "late"


@pytest.mark.parametrize("name", ["run", "number", "due", "reply_key"])
def test_an_order_that_lacks_what_it_needs_is_refused(order, name):
    content = order.read_bytes()[-peek(order).content_bytes :]
    header = peek(order).model_copy(update={name: None})
    write_parcel(order, header, content, HUB)
    assert code_of(take_order, order) == "format"


def test_an_answer_counts_only_while_it_is_waited_for(answer):
    assert code_of(take_answer, answer, waiting={}) == "replay"
    assert code_of(take_answer, answer, waiting={OTHER_ID: "north"}) == "replay"


def test_an_answer_of_a_site_that_was_not_asked_is_refused(tmp_path, answer):
    assert code_of(take_answer, answer, waiting={ID: "south"}) == "site"
    assert code_of(take_answer, answer, site_keys={}) == "key"
    assert code_of(take_answer, answer, site_keys={"north": HUB.public_key()}) == "key"


def test_an_answer_sealed_to_another_hub_is_refused(answer):
    other = X25519PrivateKey.generate()
    assert code_of(take_answer, answer, reply_key=other) == "sealed"


def test_an_encrypted_answer_can_t_be_sent_under_another_order_s_id(tmp_path, answer):
    content = answer.read_bytes()[-peek(answer).content_bytes :]
    header = peek(answer).model_copy(update={"message_id": OTHER_ID})
    write_parcel(answer, header, content, SITE)  # a site, or who has its key
    assert code_of(take_answer, answer, waiting={OTHER_ID: "north"}) == "sealed"


def test_an_order_is_no_answer_and_an_answer_no_order(order, answer):
    assert code_of(take_answer, order) == "kind"
    assert code_of(take_order, answer) == "kind"


def test_too_much_is_refused_before_it_is_read_or_unpacked(order, answer):
    for take, path in ((take_order, order), (take_answer, answer)):
        assert code_of(take, path, largest_bytes=3999) == "size"
        assert take(path, largest_bytes=5000)
    with order.open("ab") as file:
        file.truncate(3 << 20)
    assert code_of(take_order, order, largest_bytes=5000) == "size"


@pytest.mark.parametrize("claimed", [0, 3999, 1 << 20])
def test_content_that_unpacks_to_another_size_than_announced_is_refused(order, claimed):
    content = order.read_bytes()[-peek(order).content_bytes :]
    header = peek(order).model_copy(update={"unpacked_bytes": claimed})
    write_parcel(order, header, content, HUB)
    assert code_of(take_order, order) == "altered"


EMPTY = zlib.compress(b"")


@pytest.mark.parametrize("change", [lambda c: c[:-4], lambda c: c + b"more"])
def test_signed_content_that_does_not_end_where_it_should_is_refused(order, change):
    content = change(order.read_bytes()[-peek(order).content_bytes :])
    write_parcel(order, peek(order), content, HUB)
    assert code_of(take_order, order) == "altered"


@pytest.mark.parametrize("content", [b"", b"junk", EMPTY])
def test_signed_junk_is_refused(tmp_path, content):
    path = tmp_path / "1.order"
    about = {"message_id": ID, "site": "north", "kind": "train"}
    rest = {"run": "run", "number": 1, "due": 1 << 40, "reply_key": REPLY_TEXT}
    header = Header(format="fedct-order", unpacked_bytes=4, **about, **rest)
    write_parcel(path, header, content, HUB)
    assert code_of(take_order, path) == "altered"


def signed(path: Path, header: bytes) -> Path:
    length = struct.pack("<I", len(header))
    path.write_bytes(_MAGIC + length + header + HUB.sign(_PURPOSE + header))
    return path


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (b"{}", "format"),
        (b"[]", "format"),
        (b"\xff", "format"),
        (b"{" * 3000, "format"),
        (b"x" * 5000, "format"),
        (json.dumps({"version": 2, "new": 1}).encode(), "version"),
    ],
)
def test_a_header_of_another_version_or_of_nothing_is_refused(tmp_path, header, code):
    assert code_of(take_order, signed(tmp_path / "1.order", header)) == code


def test_what_is_no_parcel_or_no_file_is_refused(tmp_path):
    path = tmp_path / "1.order"
    assert code_of(take_order, path) == "file"
    assert code_of(take_order, tmp_path) == "file"
    path.write_bytes(b"PK\x03\x04 a zip file")
    assert code_of(take_order, path) == "format"


# --- RFC 9180, written a second time ------------------------------------------------


def expand(key: bytes, info: bytes, length: int) -> bytes:
    """HKDF-Expand (RFC 5869)."""
    out = block = b""
    while len(out) < length:
        count = bytes([len(out) // 32 + 1])
        block = hmac.digest(key, block + info + count, "sha256")
        out += block
    return out[:length]


def labelled(suite: bytes, label: bytes) -> bytes:
    return b"HPKE-v1" + suite + label


def shared_secret(secret: X25519PrivateKey, enc: bytes) -> bytes:
    """DHKEM(X25519, HKDF-SHA256).Decap."""
    suite, own = b"KEM\x00\x20", secret.public_key().public_bytes_raw()
    dh = secret.exchange(X25519PublicKey.from_public_bytes(enc))
    key = hmac.digest(bytes(32), labelled(suite, b"eae_prk") + dh, "sha256")
    return expand(key, b"\0\x20" + labelled(suite, b"shared_secret") + enc + own, 32)


def schedule(shared: bytes, info: bytes, aead: int, size: int) -> tuple[bytes, bytes]:
    """Key and base nonce, base mode."""
    suite = b"HPKE\x00\x20\x00\x01" + aead.to_bytes(2)

    def extract(salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return hmac.digest(salt, labelled(suite, label) + ikm, "sha256")

    hashed = (
        extract(bytes(32), b"psk_id_hash", b""),
        extract(bytes(32), b"info_hash", info),
    )
    context = b"\0" + b"".join(hashed)
    secret = extract(shared, b"secret", b"")

    def derive(label: bytes, length: int) -> bytes:
        return expand(
            secret, length.to_bytes(2) + labelled(suite, label) + context, length
        )

    return derive(b"key", size), derive(b"base_nonce", 12)


def test_our_second_writing_of_hpke_gives_the_vectors_of_rfc_9180():
    """Appendix A.1.1, sequence number 0."""
    enc = bytes.fromhex(
        "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"
    )
    secret = X25519PrivateKey.from_private_bytes(
        bytes.fromhex(
            "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"
        )
    )
    shared = shared_secret(secret, enc)
    assert shared.hex() == (
        "fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc"
    )
    key, nonce = schedule(shared, b"Ode on a Grecian Urn", 1, 16)
    assert key.hex() == "4531685d41d65f03dc48f6b8302c05b0"
    assert nonce.hex() == "56d890e5accaaf011cff4b7d"
    text = b"Beauty is truth, truth beauty"
    assert AESGCM(key).encrypt(nonce, text, b"Count-0").hex() == (
        "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9"
        "6d8770ac83d07bea87e13c512a"
    )


@given(st.binary(max_size=100), st.binary(max_size=50))
def test_answers_are_encrypted_by_rfc_9180(text, info):
    sealed = _SUITE.encrypt(text, REPLY.public_key(), info)
    enc, ciphertext = sealed[:32], sealed[32:]
    key, nonce = schedule(shared_secret(REPLY, enc), info, 2, 32)
    assert AESGCM(key).decrypt(nonce, ciphertext, b"") == text
    mine = AESGCM(key).encrypt(nonce, text, b"")
    assert _SUITE.decrypt(enc + mine, REPLY, info) == text
