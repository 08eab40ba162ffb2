"""The log of orders shows what was changed, and survives being cut."""

import hashlib
import itertools
import json
import resource
import threading

import pytest

from client.order_log import FIRST, ORDERS, Served, read_orders, record_order
from common.errors import StoreError


def served(number: int = 1, **changes: object) -> Served:
    given = {
        "kind": "train",
        "run": "run-1",
        "round": number,
        "plan": "ab" * 32,
        "code": 0,
        "bytes_in": 4000,
        "bytes_out": 4000 + number,
        "sha256": hashlib.sha256(bytes([number])).hexdigest(),
        **changes,
    }
    return Served(**given)


@pytest.fixture
def log(tmp_path):
    """A log of five orders."""
    for number in range(1, 6):
        record_order(tmp_path, served(number))
    return tmp_path


def lines(folder) -> list[bytes]:
    return (folder / ORDERS).read_bytes().splitlines(keepends=True)


def test_an_untouched_log_holds_and_says_what_left(log):
    found = read_orders(log)
    assert found.broken is None
    assert [line.number for line in found.lines] == [1, 2, 3, 4, 5]
    assert [line.bytes_out for line in found.lines] == [4001, 4002, 4003, 4004, 4005]
    assert found.lines[0].before == FIRST
    assert all(b.before == a.hash for a, b in itertools.pairwise(found.lines))
    assert (log / ORDERS).stat().st_mode & 0o777 == 0o600


def test_the_hash_of_a_line_can_be_worked_out_by_others(log):
    line = json.loads(lines(log)[2])
    own = line.pop("hash")
    text = json.dumps({**line, "hash": ""}, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == own


def test_every_byte_that_is_changed_is_found(log):
    whole = (log / ORDERS).read_bytes()
    starts = [0, *itertools.accumulate(map(len, lines(log)))]
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        (log / ORDERS).write_bytes(changed)
        number = sum(start <= place for start in starts)
        found = read_orders(log)
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
    (log / ORDERS).write_bytes(b"".join(harm(lines(log))))
    assert read_orders(log).broken.startswith(f"line {broken} ")


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_by_a_power_failure_is_replaced_and_counted(log, cut):
    whole = (log / ORDERS).read_bytes()
    record_order(log, served(6))
    (log / ORDERS).write_bytes((log / ORDERS).read_bytes()[: len(whole) + cut])
    assert len(read_orders(log).lines) == 5
    line = record_order(log, served(7))
    assert (line.number, line.round, line.torn_bytes) == (6, 7, cut)
    assert (log / ORDERS).read_bytes().startswith(whole)
    assert read_orders(log).broken is None


def test_a_long_torn_line_leaves_nothing_behind_a_short_one(log):
    record_order(log, served(6, run="r" * 64, bytes_in=10**15))
    (log / ORDERS).write_bytes((log / ORDERS).read_bytes()[:-1])
    record_order(log, served(6, run="r", sha256=None))
    found = read_orders(log)
    assert (len(found.lines), found.broken) == (6, None)
    assert (log / ORDERS).read_bytes().endswith(b"}\n")


def test_a_line_that_was_sealed_anew_does_not_fit_the_next(log):
    kept = lines(log)
    line = {**json.loads(kept[1]), "bytes_out": 1, "hash": ""}
    text = json.dumps(line, separators=(",", ":"))
    line["hash"] = hashlib.sha256(text.encode()).hexdigest()
    kept[1] = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    (log / ORDERS).write_bytes(b"".join(kept))
    assert read_orders(log).broken == "line 3 does not follow the one before"


def test_after_a_broken_last_line_nothing_is_served(log):
    whole = (log / ORDERS).read_bytes()
    (log / ORDERS).write_bytes(whole.replace(b'"bytes_out":4005', b'"bytes_out":4'))
    with pytest.raises(StoreError, match="broken last line"):
        record_order(log, served(6))


def test_orders_recorded_by_several_threads_form_one_chain(tmp_path):
    threads = [
        threading.Thread(target=record_order, args=(tmp_path, served(n)))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_orders(tmp_path)
    assert found.broken is None
    assert sorted(line.round for line in found.lines) == list(range(1, 9))


def test_a_disk_that_takes_half_a_line_refuses_and_goes_on_later(log):
    size = (log / ORDERS).stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
    try:
        with pytest.raises(StoreError, match="nothing was sent"):
            record_order(log, served(6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record_order(log, served(6)).torn_bytes == 100
    assert read_orders(log).broken is None


def test_words_of_a_server_are_cut(tmp_path):
    line = record_order(tmp_path, served(run="\x1b" * 9999, plan="p" * 9999))
    assert (len(line.run), len(line.plan)) == (64, 64)
    assert record_order(tmp_path, served(2)).number == 2
    assert read_orders(tmp_path).broken is None


def test_a_site_that_served_nothing_has_an_empty_log(tmp_path):
    assert read_orders(tmp_path).lines == ()
