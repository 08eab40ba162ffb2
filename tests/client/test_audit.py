"""The audit log shows what was changed, by whomever, and survives being cut."""

import hashlib
import itertools
import json
import resource
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import client.audit
from client.audit import (
    AUDIT,
    FIRST,
    HEAD,
    check_log,
    missing,
    read_audit,
    record_left,
    statement,
)
from client.private_files import write_private
from client.site_file import SIGN_KEY
from common.errors import JoinError, StoreError
from common.keys import private_pem
from common.signing import Mark
from tests.client.conftest import left

KEY, OTHERS_KEY = (Ed25519PrivateKey.from_private_bytes(32 * b) for b in (b"a", b"b"))


@pytest.fixture(autouse=True)
def _key(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    write_private(tmp_path / SIGN_KEY, private_pem(KEY))


@pytest.fixture
def log(tmp_path):
    """A log of five answers."""
    for number in range(1, 6):
        record_left(tmp_path, left(number), KEY)
    return tmp_path


def lines(folder) -> list[bytes]:
    return (folder / AUDIT).read_bytes().splitlines(keepends=True)


def test_an_untouched_log_holds_and_says_what_left(log):
    found = read_audit(log)
    assert found.broken is None
    assert [line.number for line in found.lines] == [1, 2, 3, 4, 5]
    assert [line.bytes_out for line in found.lines] == [4001, 4002, 4003, 4004, 4005]
    assert found.lines[0].before == FIRST
    assert all(b.before == a.hash for a, b in itertools.pairwise(found.lines))
    assert (log / AUDIT).stat().st_mode & 0o777 == 0o600


def test_the_hash_of_a_line_and_its_signature_can_be_checked_by_others(log):
    line = json.loads(lines(log)[2])
    own, signature = line.pop("hash"), line.pop("signature")
    text = json.dumps({**line, "hash": "", "signature": ""}, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == own
    KEY.public_key().verify(bytes.fromhex(signature), statement(own))


def test_every_byte_that_is_changed_is_found(log):
    whole = (log / AUDIT).read_bytes()
    starts = [0, *itertools.accumulate(map(len, lines(log)))]
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        (log / AUDIT).write_bytes(changed)
        number = sum(start <= place for start in starts)
        found = read_audit(log)
        assert found.broken is not None, place
        assert found.broken.startswith(f"line {number} "), place
        assert len(found.lines) == number - 1


@pytest.mark.parametrize(
    ("harm", "broken"),
    [
        (lambda x: [x[0], *x[2:]], 2),
        (lambda x: x[1:], 1),
        (lambda x: [x[0], x[2], x[1], *x[3:]], 2),
        (lambda x: [x[0], x[0], *x[1:]], 2),
        (lambda x: [*x, x[-1]], 6),
        (lambda x: [x[0], b"\n", *x[1:]], 2),
    ],
)
def test_lines_taken_out_moved_or_repeated_are_found(log, harm, broken):
    (log / AUDIT).write_bytes(b"".join(harm(lines(log))))
    assert read_audit(log).broken.startswith(f"line {broken} ")


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_by_a_power_failure_is_replaced_and_counted(log, cut):
    whole, head = (log / AUDIT).read_bytes(), (log / HEAD).read_bytes()
    record_left(log, left(6), KEY)
    (log / HEAD).write_bytes(head)  # written after the line is on the disk
    (log / AUDIT).write_bytes((log / AUDIT).read_bytes()[: len(whole) + cut])
    assert len(read_audit(log).lines) == 5
    line = record_left(log, left(7), KEY)
    assert (line.number, line.round, line.torn_bytes) == (6, 7, cut)
    assert (log / AUDIT).read_bytes().startswith(whole)
    assert read_audit(log).broken is None


def test_a_long_torn_line_leaves_nothing_behind_a_short_one(log):
    head = (log / HEAD).read_bytes()
    record_left(log, left(6, run="r" * 64, bytes_in=10**15), KEY)
    (log / HEAD).write_bytes(head)
    (log / AUDIT).write_bytes((log / AUDIT).read_bytes()[:-1])
    record_left(log, left(6, run="r", digest=None), KEY)
    found = read_audit(log)
    assert (len(found.lines), found.broken) == (6, None)
    assert (log / AUDIT).read_bytes().endswith(b"}\n")


def hashed(text: bytes, before: str, **changes: object) -> tuple[bytes, str]:
    """A line with other content, and with the hashes that it must have then."""
    line = {**json.loads(text), **changes, "before": before}
    blank = {**line, "hash": "", "signature": ""}
    digest = hashlib.sha256(json.dumps(blank, separators=(",", ":")).encode())
    line["hash"] = digest.hexdigest()
    return json.dumps(line, separators=(",", ":")).encode() + b"\n", line["hash"]


def test_a_line_that_was_hashed_anew_is_not_signed(log):
    kept = lines(log)
    kept[1], _ = hashed(kept[1], json.loads(kept[0])["hash"], bytes_out=1)
    (log / AUDIT).write_bytes(b"".join(kept))
    assert read_audit(log).broken == "line 2 is not signed by the site's key"


def test_a_whole_log_that_was_hashed_anew_is_not_signed(log):
    forged, before = [], FIRST
    for text in lines(log):
        line, before = hashed(text, before, to="elsewhere:1")
        forged.append(line)
    (log / AUDIT).write_bytes(b"".join(forged))
    assert read_audit(log).broken == "line 1 is not signed by the site's key"
    with pytest.raises(StoreError, match="altered: line 1 is not signed"):
        record_left(log, left(6), KEY)


def test_a_log_that_was_signed_by_another_key_is_not_the_site_s(log):
    for name in (AUDIT, HEAD):
        (log / name).unlink()
    record_left(log, left(1), OTHERS_KEY)
    assert read_audit(log).broken == "line 1 is not signed by the site's key"
    (log / SIGN_KEY).unlink()
    with pytest.raises(JoinError, match="can't be read"):
        read_audit(log)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_a_line_of_another_log_of_the_same_site_does_not_follow(log, number):
    ours = lines(log)
    for name in (AUDIT, HEAD):
        (log / name).unlink()
    for other in range(1, 6):
        record_left(log, left(other, bytes_out=1), KEY)
    spliced = [*ours[: number - 1], *lines(log)[number - 1 :]]
    (log / AUDIT).write_bytes(b"".join(spliced))
    found = read_audit(log)
    assert found.broken == f"line {number} does not follow the one before"
    assert len(found.lines) == number - 1


@pytest.mark.parametrize(
    ("kept", "head", "broken"),
    [
        (4, None, "it ends with line 4, and had 5"),
        (0, None, "it ends with line 0, and had 5"),
        (5, b"", "audit.head is missing"),
        (1, b"", "audit.head is missing"),
        (5, b'{"number":-1,"hash":"00"}', "audit.head is not what was written"),
        (5, b"{}", "audit.head is not what was written"),
        (5, b'{"number":5,"hash":"00"}', "line 5 is not the one that audit.head names"),
        (5, b'{"number":0,"hash":"00"}', "audit.head is not what was written"),
    ],
)
def test_behind_lines_that_were_cut_off_nothing_is_left(log, kept, head, broken):
    (log / AUDIT).write_bytes(b"".join(lines(log)[:kept]))
    if head == b"":
        (log / HEAD).unlink()
    elif head is not None:
        (log / HEAD).write_bytes(head)
    before = (log / AUDIT).read_bytes()
    assert read_audit(log).broken == broken
    with pytest.raises(StoreError, match="that was altered: ") as refused:
        record_left(log, left(6), KEY)
    assert refused.value.code == "audit"
    assert (log / AUDIT).read_bytes() == before


def test_a_log_whose_last_mark_a_power_failure_kept_back_goes_on(log, tmp_path):
    head = (log / HEAD).read_bytes()
    record_left(log, left(6), KEY)
    (log / HEAD).write_bytes(head)
    assert read_audit(log).broken is None
    record_left(log, left(7), KEY)
    assert [line.round for line in read_audit(log).lines] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("whole", [False, True])
def test_a_site_killed_about_its_first_line_goes_on(tmp_path, whole):
    record_left(tmp_path, left(1), KEY)
    (tmp_path / HEAD).write_text(json.dumps({"number": 0, "hash": FIRST}))
    if not whole:
        (tmp_path / AUDIT).write_bytes((tmp_path / AUDIT).read_bytes()[:50])
    assert read_audit(tmp_path).broken is None
    record_left(tmp_path, left(2), KEY)
    found = read_audit(tmp_path)
    assert found.broken is None
    assert [line.round for line in found.lines] == [1, 2][not whole :]


def test_a_mark_that_the_disk_kept_back_from_the_first_line_is_no_harm(
    tmp_path, monkeypatch
):
    honest = client.audit.write_last

    def fail(path, mark):
        if mark.number == 1:
            raise OSError(28, "no space left")
        honest(path, mark)

    monkeypatch.setattr(client.audit, "write_last", fail)
    with pytest.raises(StoreError, match="nothing was sent"):
        record_left(tmp_path, left(1), KEY)
    monkeypatch.undo()
    assert read_audit(tmp_path).broken is None
    assert record_left(tmp_path, left(2), KEY).number == 2


def test_lines_cut_off_both_files_are_missed_by_who_has_seen_them(log):
    whole = read_audit(log)
    marks = [Mark(line.number, line.hash) for line in whole.lines]
    assert missing(whole, marks) is None
    (log / AUDIT).write_bytes(b"".join(lines(log)[:3]))
    third = {"number": 3, "hash": marks[2].hash}
    (log / HEAD).write_text(json.dumps(third))
    cut = read_audit(log)
    assert cut.broken is None  # the two files alone can't tell
    assert missing(cut, marks[:3]) is None
    assert missing(cut, marks[4:]) == (
        "it ends with line 3, but the hub has seen line 5: lines were cut off"
    )
    record_left(log, left(4, bytes_out=1), KEY)  # by somebody who has the key
    record_left(log, left(5), KEY)
    anew = read_audit(log)
    assert anew.broken is None
    assert missing(anew, marks) == "line 4 is not the one that the hub has seen"


@pytest.mark.parametrize("known", [False, True])
def test_a_log_is_checked_before_anything_is_begun(log, known):
    """Whether or not this process has looked at it before."""
    whole, head = (log / AUDIT).read_bytes(), (log / HEAD).read_bytes()
    if known:
        check_log(log)
    for harm, said in (
        (lambda: (log / AUDIT).write_bytes(whole[:-5]), "it ends with line 4"),
        (lambda: (log / AUDIT).write_bytes(whole.replace(b"run-1", b"run-2")), "line"),
        ((log / AUDIT).unlink, "it ends with line 0, and had 5"),
        ((log / HEAD).unlink, "audit.head is missing"),
    ):
        harm()
        if not known:
            client.audit._ends.clear()
        with pytest.raises(StoreError, match=f"altered: {said}") as refused:
            check_log(log)
        assert refused.value.code == "audit"
        (log / AUDIT).write_bytes(whole)
        (log / HEAD).write_bytes(head)
    before = (log / AUDIT).stat().st_mtime_ns
    check_log(log)
    assert (log / AUDIT).stat().st_mtime_ns == before
    assert record_left(log, left(6), KEY).number == 6


def test_a_site_without_a_log_may_begin(tmp_path):
    check_log(tmp_path)
    assert not (tmp_path / AUDIT).exists()


@pytest.mark.parametrize("line", [1, 3, 5])
def test_behind_an_altered_line_nothing_is_left(log, line):
    whole = (log / AUDIT).read_bytes()
    changed = whole.replace(b'"bytes_out":400%d' % line, b'"bytes_out":4999')
    (log / AUDIT).write_bytes(changed)
    with pytest.raises(StoreError, match=f"altered: line {line} is not") as caught:
        record_left(log, left(6), KEY)
    assert caught.value.code == "audit"
    assert (log / AUDIT).read_bytes() == changed
    (log / AUDIT).write_bytes(whole)
    assert record_left(log, left(6), KEY).number == 6


def test_orders_recorded_by_several_threads_form_one_chain(tmp_path):
    threads = [
        threading.Thread(target=record_left, args=(tmp_path, left(n), KEY))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_audit(tmp_path)
    assert found.broken is None
    assert sorted(line.round for line in found.lines) == list(range(1, 9))


def test_a_disk_that_takes_half_a_line_refuses_and_goes_on_later(log):
    size = (log / AUDIT).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(StoreError, match="nothing was sent"):
            record_left(log, left(6), KEY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record_left(log, left(6), KEY).torn_bytes == 100
    assert read_audit(log).broken is None


def test_words_of_a_server_are_cut(tmp_path):
    line = record_left(tmp_path, left(run="\x1b" * 9999, plan="p" * 9999), KEY)
    assert (len(line.run), len(line.plan)) == (64, 64)
    assert record_left(tmp_path, left(2), KEY).number == 2
    assert read_audit(tmp_path).broken is None


def test_a_site_that_served_nothing_has_an_empty_log(tmp_path):
    assert read_audit(tmp_path).lines == ()


def test_a_mark_that_can_not_be_read_is_named(log):
    (log / HEAD).unlink()
    (log / HEAD).mkdir()
    with pytest.raises(StoreError, match="head can't be read"):
        read_audit(log)
    with pytest.raises(StoreError, match="nothing was sent"):
        record_left(log, left(6), KEY)
