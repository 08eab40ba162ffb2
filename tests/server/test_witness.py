"""What the hub has seen of a site's log is kept, and signed for whoever asks."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from common.errors import StoreError
from common.receipt import Receipt, read_receipt, signed
from common.signing import Mark
from server.hub import order_key
from server.witness import WITNESS, note_mark, receipt_for, seen

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MARKS = [Mark(number, f"{number:064x}") for number in (1, 2, 5, 9)]


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "ca").mkdir(mode=0o700)
    for hours, mark in enumerate(MARKS):
        note_mark(tmp_path, "north", mark, NOW + timedelta(hours=hours))
    return tmp_path


def test_every_mark_is_kept_in_the_order_in_which_it_came(hub):
    assert [one.mark for one in seen(hub, "north")] == MARKS
    assert seen(hub, "south") == []
    path = hub / WITNESS / "north.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_receipt_is_the_last_mark_signed_by_the_hub(hub):
    receipt = receipt_for(hub, "north")
    key = order_key(hub).public_key()
    again = read_receipt(receipt.model_dump_json().encode(), "north", key)
    assert again.mark == MARKS[-1]
    assert again.seen == NOW + timedelta(hours=3)
    assert receipt_for(hub, "south") is None


def test_a_log_that_went_back_is_an_alarm_and_takes_nothing_away(hub, caplog):
    note_mark(hub, "north", Mark(3, "f" * 64), NOW)
    assert "audit log of a site went back" in caplog.text
    assert [one.mark for one in seen(hub, "north")] == [*MARKS, Mark(3, "f" * 64)]


@pytest.mark.parametrize("cut", [1, 30])
def test_a_line_cut_by_a_power_failure_is_left_out_and_the_next_is_whole(hub, cut):
    path = hub / WITNESS / "north.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    kept = MARKS if cut == 1 else MARKS[:-1]
    assert [one.mark for one in seen(hub, "north")] == kept
    note_mark(hub, "north", Mark(10, "a" * 64), NOW)
    assert [one.mark for one in seen(hub, "north")] == [*kept, Mark(10, "a" * 64)]


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("garbage", [b"\xff", b"", b"{", b'{"number":5,"ha', b"[]"])
def test_a_whole_line_that_is_no_line_is_refused_wherever_it_stands(
    hub, place, garbage
):
    path = hub / WITNESS / "north.jsonl"
    lines = path.read_bytes().splitlines()
    lines[place] = garbage
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    for ask in (seen, receipt_for):
        with pytest.raises(StoreError, match=rf"damaged line {place + 1} in witness"):
            ask(hub, "north")


@pytest.mark.parametrize("rest", [b"\xff", b"garbage", b'{"number":5,"x":1}', b"\0"])
def test_only_the_beginning_of_a_line_of_ours_is_taken_for_a_torn_one(hub, rest):
    path = hub / WITNESS / "north.jsonl"
    path.write_bytes(path.read_bytes() + rest)
    with pytest.raises(StoreError, match="damaged line 5 in witness"):
        seen(hub, "north")
    note_mark(hub, "north", Mark(10, "a" * 64), NOW)  # an answer is never lost
    assert b"a" * 64 in path.read_bytes()
    with pytest.raises(StoreError, match="damaged line 5 in witness"):
        seen(hub, "north")  # nor is what shows the damage


def test_a_file_cut_anywhere_at_its_end_has_the_lines_before(hub):
    path = hub / WITNESS / "north.jsonl"
    whole = path.read_bytes()
    begin = whole[:-1].rindex(b"\n") + 1
    for end in range(begin, len(whole) + 1):
        path.write_bytes(whole[:end])
        kept = MARKS if end >= len(whole) - 1 else MARKS[:-1]
        assert [one.mark for one in seen(hub, "north")] == kept
        note_mark(hub, "north", Mark(10, "a" * 64), NOW)
        assert [one.mark for one in seen(hub, "north")] == [*kept, Mark(10, "a" * 64)]


def test_a_file_that_can_not_be_read_is_an_error(hub):
    path = hub / WITNESS / "north.jsonl"
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=r"can't read witness/north\.jsonl"):
        seen(hub, "north")


def test_a_damaged_line_is_refused_by_number(hub):
    path = hub / WITNESS / "north.jsonl"
    path.write_text(path.read_text().replace('"number":5', '"number":"x"'))
    with pytest.raises(StoreError, match=r"damaged line 3 in witness/north\.jsonl"):
        seen(hub, "north")


@given(st.data())
def test_a_receipt_with_any_byte_changed_is_refused(data):
    key = Ed25519PrivateKey.from_private_bytes(32 * b"h")
    receipt = Receipt(site="north", number=7, hash="ab" * 32, seen=NOW)
    text = signed(receipt, key).model_dump_json().encode()
    assert read_receipt(text, "north", key.public_key()).number == 7
    place = data.draw(st.integers(0, len(text) - 1))
    changed = bytearray(text)
    changed[place] ^= data.draw(st.integers(1, 127))
    try:
        read = read_receipt(bytes(changed), "north", key.public_key())
    except StoreError:
        return
    assert read.mark == receipt.mark  # the same in another spelling, like ab and AB
    assert (read.site, read.seen) == ("north", NOW)


def test_a_receipt_of_another_hub_or_about_another_site_is_refused(hub):
    text = receipt_for(hub, "north").model_dump_json().encode()
    key = order_key(hub).public_key()
    with pytest.raises(StoreError, match="about the log of 'north', expected 'south'"):
        read_receipt(text, "south", key)
    stranger = Ed25519PrivateKey.generate().public_key()
    with pytest.raises(StoreError, match="another hub's"):
        read_receipt(text, "north", stranger)
