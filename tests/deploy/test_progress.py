import io
import logging
import re

import pytest
from rich.console import Console

from deploy.progress import ProgressHandler, show_progress, tell_phantom, tell_work
from server.record import RoundRecord, SiteRound

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def console(terminal: bool) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=100, color_system=None
    )


@pytest.fixture
def lines():
    """The handler off a terminal, and what it wrote."""
    return attached(console(False))


def attached(where: Console):
    handler = ProgressHandler(where)
    logger = logging.getLogger("fedct.test_progress")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.DEBUG)
    handler.start()
    return logger, handler, where.file.getvalue


def round_record(number: int, dice: float = 0.5) -> RoundRecord:
    return RoundRecord(
        number=number,
        outcome="closed",
        sites=[
            SiteRound(site="north", outcome="accepted"),
            SiteRound(site="south", outcome="late", reason="no answer"),
        ],
        validation={},
        validation_mean={"dice": dice},
        model_digest="0" * 64,
        seconds=1.25,
    )


def arm(name: str, done: int, rounds: int) -> dict[str, object]:
    return {"arm": name, "monitor": "dice", "rounds": rounds, "done": done}


def some_events(logger: logging.Logger, rounds: int = 3) -> None:
    logger.info("phantom", extra={"hospital": "north", "done": 1, "total": 2})
    logger.info("phantom", extra={"hospital": "north", "done": 2, "total": 2})
    logger.info("intake", extra={"site": "north"})
    logger.debug("work", extra={"what": "files", "done": 1, "total": 3})
    logger.info("taken in", extra={"site": "north", "accepted": 7, "found": 9})
    logger.info("arm", extra=arm("federated", 0, rounds))
    for number in range(1, rounds + 1):
        logger.debug("step", extra={"site": "north", "done": 1, "steps": 2})
        record = {"arm": "federated", "record": round_record(number, number / 10)}
        logger.info("round", extra=record)


def test_off_a_terminal_every_event_worth_keeping_is_one_plain_line(lines):
    logger, handler, said = lines
    some_events(logger)
    handler.stop()
    assert said().splitlines() == [
        "phantom hospital north: 2 patients written",
        "intake north: 7 of 9 accepted",
        "federated round 1/3 closed: 1/2 sites, dice 0.100, 1.2 s",
        "federated round 2/3 closed: 1/2 sites, dice 0.200, 1.2 s",
        "federated round 3/3 closed: 1/2 sites, dice 0.300, 1.2 s",
    ]


def test_a_line_is_never_broken_and_brackets_are_not_styles(lines):
    logger, handler, said = lines
    reason = "plan has no [simulation] and training.patch [64, 64] " + "x" * 150
    row = SiteRound(site="south", outcome="failed", reason=reason)
    logger.info("reply", extra={"arm": "federated", "round": 2, "row": row})
    logger.warning("not judged", extra={"arm": "a", "site": "b", "why": "[/] [red]"})
    handler.stop()
    assert said().splitlines() == [
        f"round 2: south failed {reason}",
        "not judged a, b, [/] [red]",
    ]


def test_a_resumed_arm_says_where_it_goes_on(lines):
    logger, handler, said = lines
    logger.info("arm", extra=arm("pooled", 2, 3))
    handler.stop()
    assert said() == "pooled: resumed after round 2\n"


def test_accepted_replies_and_unknown_events_are_silent(lines):
    logger, handler, said = lines
    row = SiteRound(site="north", outcome="accepted")
    logger.info("reply", extra={"arm": "federated", "round": 1, "row": row})
    logger.info("something new", extra={"x": 1})
    logger.debug("no method of ours", extra={})
    handler.stop()
    assert said() == ""


def test_off_a_terminal_a_long_reading_says_now_and_then_how_far_it_is(
    lines, monkeypatch
):
    logger, handler, said = lines
    clock = iter([0.5, 1.5, 2.5, 2.6, 3.0, 4.8, 4.9])
    handler._said = 0.0
    monkeypatch.setattr("deploy.progress.time.monotonic", lambda: next(clock))
    for done in range(1, 6):
        logger.debug("work", extra={"what": "files", "done": done, "total": 9})
    handler.stop()
    assert said().splitlines() == ["files 3/9", "files 5/9"]


def test_on_a_terminal_a_bar_shows_and_clean_lines_stay():
    logger, handler, said = attached(console(True))
    some_events(logger)
    handler._bar.refresh()
    shown = ESCAPE.sub("", said())
    assert "federated" in shown
    assert "3/3" in shown
    assert "closed, dice 0.300" in shown
    handler.stop()
    left = screen(said())
    assert left == [
        "phantom hospital north: 2 patients written",
        "intake north: 7 of 9 accepted",
    ]
    assert said().count("\x1b[?25l") == said().count("\x1b[?25h")  # the cursor is back


def screen(written: str) -> list[str]:
    """What a terminal shows in the end: lines not erased by later codes."""
    rows, at = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\n|\r)", written):
        if part == "\n":
            at += 1
            rows += [""] * (at + 1 - len(rows))
        elif part == "\x1b[1A":
            at -= 1
        elif part == "\x1b[2K":
            rows[at] = ""
        elif part and not part.startswith("\x1b") and part != "\r":
            rows[at] += part
    return [row.rstrip() for row in rows if row.strip()]


def test_the_block_gives_back_the_logger_whatever_happens(capsys):
    logger = logging.getLogger("fedct")
    before = (list(logger.handlers), logger.level, logger.propagate)

    def stopped() -> None:
        with show_progress():
            tell_phantom("east", 4, 4)
            tell_work("files", 1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert (list(logger.handlers), logger.level, logger.propagate) == before
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "phantom hospital east: 4 patients written\n"
