"""What an engineer reads in a terminal: status, the audit log, preflight.

Words that came from a server are shown with every unprintable character written out, so
that they can't move the cursor or hide what stands beside them.
"""

import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.audit import Line
from client.desk_control import Status
from client.preflight_row import Row
from common.error_numbers import spoken

_ANSWERS = {
    "Roster": "roster",
    "Update": "update",
    "Judgement": "judgement",
    "RoundKeys": "keys",
    "SealedShares": "shares",
    "MaskedUpdate": "masked update",
    "Opening": "opening",
}
"""What a line of the log names, in the words of the how-tos."""
_COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "bold red"}


def print_status(status: Status, site: str) -> None:
    """Print what a site is doing."""
    if status.started is not None:
        print(f"site {site}: service runs since {time_text(status.started)}, ", end="")
        print(f"process {status.pid}, FedCT {status.version}")
    else:
        print(f"site {site}: no service runs")
    activity = status.activity
    if activity is not None:
        running = status.pid is not None
        said = f"{activity.doing} since {time_text(activity.since)}"
        if activity.run is not None:
            said += f", run {visible(activity.run)}"
        if activity.round is not None:
            said += f", round {activity.round}"
        if activity.step is not None:
            said += f", step {activity.step} of {activity.steps}"
        print(f"  {'now' if running else 'at last'}: {said}")
        if activity.last_error is not None and activity.last_error_at is not None:
            at = time_text(activity.last_error_at)
            number = str(activity.last_error)
            if activity.last_check is not None:
                number += f".{activity.last_check}"
            print(f"  last failed order: error {number}, {at}; site.log says why")
    counts = f"{status.approved} approved, {status.waiting} waiting"
    print(f"  plans: {counts}, {status.denied} denied")
    if status.pause is not None:
        reason = visible(status.pause.reason) or "no reason given"
        print(f"  paused since {time_text(status.pause.since)}: {reason}")


def print_audit(lines: Sequence[Line]) -> None:
    """Print lines of the audit log, each as one line."""
    for line in lines:
        order: str = line.kind if line.kind != "unknown" else "what was no order"
        if line.run is not None:
            order += f" of run {visible(line.run)}"
        if line.round is not None:
            order += f", round {line.round}"
        left = f"error {spoken(line.code)}"
        if line.code == 0:
            digest, policy = (line.digest or "")[:16], (line.policy or "")[:12]
            size = f" of {line.bytes_out} bytes" if line.bytes_out else ""  # in arrays
            left = (
                f"{_ANSWERS.get(line.what, line.what)}{size}, "
                f"digest {digest}; "
                f"plan {visible((line.plan or '')[:12])} {line.allowed}, "
                f"policy {policy}"
            )
        print(f"{line.number}  {time_text(line.time)}  to {line.to}: {order}: {left}")


def print_checks(rows: Sequence[Row]) -> None:
    """Print the preflight table."""
    table = Table("check", "", "found, and what to do", show_lines=False)
    for row in rows:
        said = Text(visible(" ".join(row.found.split())))
        if row.fix is not None:
            said.append(f"\n-> {visible(row.fix)}", style="bold")
        table.add_row(row.name, Text(row.verdict, style=_COLOURS[row.verdict]), said)
    Console(highlight=False).print(table)


def visible(text: str) -> str:
    """The text with every character that does not print written as its code."""
    return "".join(
        c if c.isprintable() and not unicodedata.combining(c) else f"\\u{ord(c):04x}"
        for c in text
    )


def time_text(time: datetime) -> str:
    """A time as all tables show it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
