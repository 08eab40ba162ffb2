"""Seals: what verifies, and that nothing else does."""

import stat
from dataclasses import fields, replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, RecordDict
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.canonical import canonical, digest_of_answer
from common.errors import ContributionError, JoinError, VersionError
from common.exchange import Answer, Hello, Judgement, JudgeOrder, Roster, Update
from common.keys import private_pem, public_pem, read_signing_key
from common.signing import (
    Asked,
    Mark,
    asked_of,
    fingerprint,
    make_signing_key,
    public_from_text,
    public_text,
    seal,
    verify,
)
from common.wire import from_record, seal_in, to_record

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PUBLIC = KEY.public_key()

WORDS = st.text(max_size=6)
WHOLE = st.integers(-(2**62), 2**62)
REAL = st.floats(allow_nan=False)
FLOATS = hnp.arrays(np.float32, st.integers(0, 5))
SUMS = st.dictionaries(WORDS, hnp.arrays(np.float64, st.integers(0, 3)), max_size=3)
NONE = st.none()
ROSTERS = st.builds(
    Roster, WORDS, WHOLE, WHOLE, WHOLE, WHOLE, WHOLE, st.one_of(NONE, WORDS)
)
UPDATES = st.builds(
    Update,
    site=WORDS,
    round=WHOLE,
    plan_digest=WORDS,
    delta=FLOATS,
    cases=WHOLE,
    loss=REAL,
    steps=WHOLE,
    train_s=REAL,
    accepted=WHOLE,
    found=WHOLE,
    control_delta=st.one_of(NONE, FLOATS),
)
JUDGEMENTS = st.builds(
    Judgement, WORDS, WHOLE, st.sampled_from(["validation", "test"]), SUMS
)
ANSWERS = st.one_of(ROSTERS, UPDATES, JUDGEMENTS)


def plain(answer: Answer) -> object:
    """An answer as nested tuples that compare by value, told apart by kind and sign."""

    def value(x: object) -> object:
        if isinstance(x, np.ndarray):
            return (x.dtype.str, x.tobytes())
        if isinstance(x, dict):
            return sorted((name, value(v)) for name, v in x.items())
        return x.hex() if isinstance(x, float) else x

    named = [(f.name, value(getattr(answer, f.name))) for f in fields(answer)]
    return (type(answer).__name__, named)


def as_bytes(answer: Answer) -> bytes:
    return b"".join(bytes(chunk) for chunk in canonical(answer))


def asked_for(answer: Answer) -> Asked:
    """A question that this answer answers."""
    number = getattr(answer, "round", 0)
    plan = getattr(answer, "plan_digest", "plan")
    model = None if isinstance(answer, Roster) else "model"
    return Asked("run", number, answer.site, plan, model, "00" * 16)


def update(**changes: object) -> Update:
    made = Update(
        "north", 3, "plan", np.ones(4, np.float32), 7, 0.5, 2, 0.1, 9, 10, None
    )
    return replace(made, **changes)


def refusal(*arguments: object) -> ContributionError:
    with pytest.raises(ContributionError) as caught:
        verify(*arguments)
    return caught.value


@given(ANSWERS, ANSWERS)
def test_canonical_bytes_are_equal_only_for_equal_answers(one, other):
    assert (as_bytes(one) == as_bytes(other)) == (plain(one) == plain(other))


@given(ANSWERS, st.data())
def test_a_change_to_one_field_changes_the_canonical_bytes(answer, data):
    field = data.draw(st.sampled_from([f.name for f in fields(answer)]))
    donor = data.draw({Roster: ROSTERS, Update: UPDATES}.get(type(answer), JUDGEMENTS))
    changed = replace(answer, **{field: getattr(donor, field)})
    assume(plain(changed) != plain(answer))
    assert as_bytes(changed) != as_bytes(answer)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (update(site="ab", plan_digest="c"), update(site="a", plan_digest="bc")),
        (update(cases=1, steps=23), update(cases=12, steps=3)),
        (update(loss=0.0), update(loss=-0.0)),
        (
            update(control_delta=None),
            update(control_delta=np.zeros(0, np.float32)),
        ),
        (
            update(delta=np.ones(2, np.float32), control_delta=np.ones(1, np.float32)),
            update(delta=np.ones(1, np.float32), control_delta=np.ones(2, np.float32)),
        ),
        (
            Judgement("s", 1, "test", {"a": np.ones(2), "b": np.ones(1)}),
            Judgement("s", 1, "test", {"a": np.ones(1), "b": np.ones(2)}),
        ),
        (
            Judgement("s", 1, "test", {"a": np.ones(1)}),
            Judgement("s", 1, "test", {"b": np.ones(1)}),
        ),
    ],
)
def test_nothing_runs_over_into_its_neighbour(one, other):
    assert as_bytes(one) != as_bytes(other)


@pytest.mark.parametrize("lengths", [True, False])
def test_a_vector_can_t_pass_for_two_by_holding_what_stands_between_them(lengths):
    one, name = np.ones(1), "b" * 6  # so that what is between is whole float64
    size = (6).to_bytes(8, "little") if lengths else b""
    nbytes = (8).to_bytes(8, "little") if lengths else b""
    between = b"s" + size + name.encode() + b"g" + nbytes
    both = np.concatenate([one, np.frombuffer(between), one])
    two = Judgement("s", 1, "test", {"a": one, name: one})
    assert (between in as_bytes(two)) == lengths
    assert as_bytes(two) != as_bytes(Judgement("s", 1, "test", {"a": both}))


def test_vectors_are_handed_to_the_hash_where_they_lie():
    delta = np.arange(1000, dtype=np.float32)
    chunks = [c for c in canonical(update(delta=delta)) if isinstance(c, memoryview)]
    assert [np.shares_memory(np.asarray(c), delta) for c in chunks] == [True]


def test_the_order_of_sums_plays_no_part():
    one = Judgement("s", 1, "test", {"a": np.ones(1), "b": np.zeros(1)})
    other = Judgement("s", 1, "test", {"b": np.zeros(1), "a": np.ones(1)})
    assert digest_of_answer(one) == digest_of_answer(other)


@given(ANSWERS)
def test_a_sealed_answer_verifies_after_the_wire(answer):
    asked = asked_for(answer)
    record = to_record(answer, seal(answer, asked, KEY))
    got = from_record(record, type(answer))
    verify(got, asked, seal_in(record), PUBLIC)


@given(ANSWERS, st.data())
def test_any_flipped_byte_of_the_message_is_refused(answer, data):
    asked = asked_for(answer)
    record = to_record(answer, seal(answer, asked, KEY))
    places = [
        (name, key, index)
        for name, part in record.items()
        for key, value in part.items()
        for index in range(len(raw_of(value)))
    ]
    name, key, index = data.draw(st.sampled_from(places))
    flip(record, name, key, index, data.draw(st.integers(1, 255)))
    with pytest.raises((ContributionError, VersionError)):
        taken(record, type(answer), asked)


def taken(record: RecordDict, kind: type, asked: Asked) -> None:
    """What the server does before anything else."""
    verify(from_record(record, kind), asked, seal_in(record), PUBLIC)


def raw_of(value: object) -> bytes:
    """A value of a record as bytes in which one can be flipped."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass")
    if isinstance(value, int):
        return value.to_bytes(8, signed=True)
    if isinstance(value, float):
        return np.float64(value).tobytes()
    return value.data


def flip(record: RecordDict, name: str, key: str, index: int, by: int) -> None:
    value = record[name][key]
    raw = bytearray(raw_of(value))
    raw[index] ^= by
    if isinstance(value, bytes):
        record[name][key] = bytes(raw)
    elif isinstance(value, str):
        text = raw.decode("utf-16-le", "replace")
        assume("\ufffd" not in text and text != value)
        record[name][key] = text
    elif isinstance(value, int):
        record[name][key] = int.from_bytes(raw, signed=True)
    elif isinstance(value, float):
        (record[name][key],) = np.frombuffer(raw, np.float64).tolist()
    else:
        value.data = bytes(raw)


@pytest.mark.parametrize("bit", [0, 255, 256, 511])
def test_a_flipped_bit_of_the_signature_is_refused(bit):
    sealed = seal(update(), asked_for(update()), KEY)
    raw = bytearray(sealed.signature)
    raw[bit // 8] ^= 1 << bit % 8
    forged = replace(sealed, signature=bytes(raw))
    assert refusal(update(), sealed.asked, forged, PUBLIC).code == "signature"


def test_how_far_the_audit_log_was_is_signed_with_the_answer():
    mark = Mark(7, "ab" * 32)
    answer, asked = update(), asked_for(update())
    sealed = seal(answer, asked, KEY, None, mark)
    record = to_record(answer, sealed)
    assert seal_in(record).mark == mark
    verify(answer, asked, seal_in(record), PUBLIC)
    for other in (None, Mark(6, mark.hash), Mark(7, "cd" * 32)):
        said = refusal(answer, asked, replace(sealed, mark=other), PUBLIC)
        assert said.code == "signature"
    without = seal(answer, asked, KEY)
    assert seal_in(to_record(answer, without)).mark is None
    forged = replace(without, mark=mark)
    assert refusal(answer, asked, forged, PUBLIC).code == "signature"


@pytest.mark.parametrize("left_out", ["log_number", "log_hash"])
def test_half_a_mark_is_a_malformed_seal(left_out):
    mark = Mark(7, "ab" * 32)
    record = to_record(update(), seal(update(), asked_for(update()), KEY, None, mark))
    facts = dict(record["seal"])
    del facts[left_out]
    record["seal"] = ConfigRecord(facts)
    with pytest.raises(ContributionError) as caught:
        seal_in(record)
    assert caught.value.code == "seal"


def test_another_site_s_key_is_refused_even_if_it_claims_this_one_s():
    sealed = seal(update(), asked_for(update()), OTHER)
    assert refusal(update(), sealed.asked, sealed, PUBLIC).code == "key"
    forged = replace(sealed, key=fingerprint(PUBLIC))
    assert refusal(update(), sealed.asked, forged, PUBLIC).code == "signature"


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"run": "older"}, "run", "for run older, expected run"),
        ({"round": 2}, "round", "for round 2, expected 3"),
        ({"site": "south"}, "site", "for site south, expected north"),
        ({"plan_digest": "b"}, "plan", "for plan b, expected plan"),
        ({"model_digest": "b"}, "model", "for model b, expected model"),
        ({"nonce": "11" * 16}, "nonce", "it is a replay of an earlier answer"),
    ],
)
def test_an_answer_to_another_question_is_refused_by_what_differs(change, code, words):
    asked = asked_for(update())
    elsewhere = seal(update(), replace(asked, **change), KEY)
    error = refusal(update(), asked, elsewhere, PUBLIC)
    assert error.code == code
    assert words in str(error)
    moved = replace(elsewhere, asked=asked)  # the claim altered, not the signature
    assert refusal(update(), asked, moved, PUBLIC).code == "signature"


@pytest.mark.parametrize(
    "change", [{"site": "south"}, {"round": 2}, {"plan_digest": ""}]
)
def test_an_answer_that_contradicts_its_own_seal_is_refused(change):
    asked, answer = asked_for(update()), update(**change)
    error = refusal(answer, asked, seal(answer, asked, KEY), PUBLIC)
    assert error.code == "content"


def test_an_answer_of_another_kind_with_the_same_fields_does_not_verify():
    roster = Roster("north", 1, 1, 1, 1, 1)
    judged = Judgement("north", 0, "test", {})
    asked = asked_for(roster)
    assert refusal(judged, asked, seal(roster, asked, KEY), PUBLIC).code == "signature"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r.pop("seal"), "without a seal"),
        (lambda r: r["seal"].pop("nonce"), "Asked.nonce came as NoneType"),
        (lambda r: r["seal"].update({"round": 1.5}), "Asked.round came as float"),
        (lambda r: r["seal"].update({"signature": "a"}), "Seal.signature came as str"),
        (lambda r: r["seal"].update({"more": 1}), r"unknown fields \['more'\]"),
    ],
)
def test_a_malformed_seal_is_refused_by_field(change, named):
    record = to_record(update(), seal(update(), asked_for(update()), KEY))
    change(record)
    with pytest.raises(ContributionError, match=named) as caught:
        seal_in(record)
    assert caught.value.code == "seal"


def test_orders_are_questions_with_a_nonce_of_their_own():
    hellos = [Hello("run", "plan", "text", "layout") for _ in range(100)]
    assert len({hello.nonce for hello in hellos}) == 100
    assert all(len(bytes.fromhex(hello.nonce)) == 16 for hello in hellos)
    asked = asked_of(hellos[0], "north")
    assert asked == Asked("run", 0, "north", "plan", None, hellos[0].nonce)
    order = JudgeOrder("run", "plan", 4, 2, "test", np.ones(1, np.float32), "model")
    asked = asked_of(order, "north")
    assert asked == Asked("run", 4, "north", "plan", "model", order.nonce)


def test_a_key_file_is_private_and_made_once(tmp_path):
    path = tmp_path / "sign.key"
    key = make_signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert public_text(make_signing_key(path).public_key()) == public_text(
        key.public_key()
    )
    assert [p.name for p in tmp_path.iterdir()] == ["sign.key"]


def test_a_key_without_a_seed_is_new_every_time(tmp_path):
    seeds = [None, None, bytes(32), bytes(32)]
    paths = [tmp_path / f"{i}.key" for i in range(4)]
    made = [make_signing_key(*both) for both in zip(paths, seeds, strict=True)]
    texts = [public_text(key.public_key()) for key in made]
    assert texts[2] == texts[3] == public_text(OTHER.public_key())
    assert len(set(texts)) == 3


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path, mode):
    path = tmp_path / "sign.key"
    make_signing_key(path)
    path.chmod(mode)
    with pytest.raises(JoinError, match="others may open, expected mode 0600"):
        read_signing_key(path)


def test_a_file_that_is_no_signing_key_is_refused(tmp_path):
    path = tmp_path / "sign.key"
    for content in (b"", b"junk", private_pem(generate_private_key(SECP256R1()))):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(JoinError, match="damaged or holds another kind"):
            read_signing_key(path)
    with pytest.raises(JoinError, match="can't be read"):
        read_signing_key(tmp_path / "none")


def test_a_verifying_key_survives_as_text_and_nothing_else_is_one():
    assert public_from_text(public_text(PUBLIC)) == PUBLIC
    assert public_from_text(public_pem(PUBLIC)) == PUBLIC
    elliptic = public_pem(generate_private_key(SECP256R1()).public_key())
    for text in ("", "ab", "zz" * 32, "é", public_text(PUBLIC)[2:], elliptic):
        with pytest.raises(JoinError, match="a verifying key came as"):
            public_from_text(text)
