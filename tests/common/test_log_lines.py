"""A log line has its numbers, on one line."""

import logging

from common.log_lines import EventFormatter
from server.record import RoundRecord, SiteRound

ROW = SiteRound(site="north", outcome="refused", reason="it sent 1 NaN", cases=3)


def line(text: str, **extra: object) -> str:
    record = logging.makeLogRecord({"msg": text, "levelname": "INFO", **extra})
    return EventFormatter().format(record).split(" INFO ", 1)[1]


def test_an_event_is_written_with_its_numbers():
    assert line("round", arm="federated", record=_round()) == (
        'round arm=federated number=2 outcome=closed updates="in the clear" '
        "model_digest=ab12 seconds=1.235"
    )
    assert line("reply", round=2, row=ROW).startswith(
        'reply round=2 site=north outcome=refused reason="it sent 1 NaN" cases=3 '
    )


def test_a_peer_s_words_neither_break_a_line_nor_flood_the_log():
    assert line("refused", why='x\n2026 INFO round="2"') == (
        r'refused why="x\n2026 INFO round=\"2\""'
    )
    assert len(line("refused", why="x" * 10_000)) < 400
    assert line("refused", why="") == 'refused why=""'


def test_a_plain_line_stays_as_it_is():
    assert line("site joined the hub") == "site joined the hub"


def _round() -> RoundRecord:
    return RoundRecord(
        number=2, outcome="closed", sites=[ROW], model_digest="ab12", seconds=1.23456
    )
