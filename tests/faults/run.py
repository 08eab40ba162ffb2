"""The fault exam: every row on a real federation, and the table of what was seen.

    python -m tests.faults.run [--rows 1-18,23] [--seeds N] [--full] [--write PAGE]

`make faults` runs it. `--full` keeps the product's waiting times and gives the long
faults their full length.
"""

import argparse
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"


@dataclass
class Result:
    """What came of one row, over all its seeds and forms."""

    row: Any
    passed: bool = True
    seconds: float = 0.0
    seen: list[str] = field(default_factory=list)
    left: int = 1
    """Tests of the row that have not ended; with any, nothing is known of the row."""


class Exam:
    """Takes the chosen rows, and notes how they went (a plugin of pytest)."""

    def __init__(self, chosen: set[int]) -> None:
        """Take these rows; all if empty."""
        self._chosen = chosen
        self._rows: dict[str, Any] = {}
        self.results: dict[int, Result] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave the other rows and the tests of the tools out; in order of the rows."""
        marked = [(item, mark) for item in items for mark in item.iter_markers("row")]
        marked.sort(key=lambda pair: pair[1].args[0].number)
        self._rows = {item.nodeid: mark.args[0] for item, mark in marked}
        items[:] = [
            item
            for item, mark in marked
            if not self._chosen or mark.args[0].number in self._chosen
        ]
        for item in items:
            row = self._rows[item.nodeid]
            result = self.results.setdefault(row.number, Result(row, left=0))
            result.left += 1

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        result = self.results[self._rows[report.nodeid].number]
        if report.when == "call" or report.outcome != "passed":
            result.passed &= report.outcome == "passed"
        if report.when == "call":
            result.seconds += report.duration
            result.seen += [
                text for key, text in report.user_properties if key == "seen"
            ]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            result.seen.append(str(crash.message if crash else report.longrepr)[-200:])
        if report.skipped:
            result.seen.append(str(report.longrepr[-1]))
        if report.when == "teardown":
            result.left -= 1
            verdict = "PASS" if result.passed else "FAIL"
            more = f", {result.left} more of it to come" if result.left else ""
            done = f"row {result.row.number}: {verdict}, {result.seconds:.0f} s{more}"
            print(f"\n{done}", flush=True)

    def table(self) -> str:
        """Markdown; of rows that an interruption left unfinished, nothing."""
        lines = [
            "| # | fault | expected | seen | | s |",
            "|---|---|---|---|---|---|",
        ]
        for _, result in sorted(self.results.items()):
            if result.left:
                continue
            row, verdict = result.row, "PASS" if result.passed else "FAIL"
            seen = "; ".join(dict.fromkeys(result.seen))
            cells = (row.number, row.fault, row.expected, seen, verdict)
            text = " | ".join(re.sub(r"[|\s]+", " ", str(cell)) for cell in cells)
            lines.append(f"| {text} | {result.seconds:.0f} |")
        return "\n".join(lines)


def numbers(text: str) -> set[int]:
    """`1-4,7` as a set."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def write(path: Path, table: str) -> None:
    """Put rows into the page's table; rows that were not run now stay as they are."""
    page = path.read_text()
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    rows: dict[int, str] = defaultdict(str)
    head: list[str] = table.splitlines()[:2]
    for line in [*old.splitlines(), *table.splitlines()]:
        if match := re.match(r"\| (\d+) \|", line):
            rows[int(match[1])] = line
    lines = [*head, *(rows[number] for number in sorted(rows))]
    path.write_text("\n".join([before + BEGIN, *lines, END + after]))


def main() -> int:
    """Run the exam; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description="fault exam of the real federation")
    parser.add_argument("--rows", default="", help="like 1-18,23; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="for rows of chance")
    parser.add_argument("--full", action="store_true", help="nothing is shortened")
    parser.add_argument("--write", type=Path, help="page whose table is renewed")
    options = parser.parse_args()
    os.environ["FEDCT_FAULTS_SEEDS"] = str(options.seeds)
    if options.full:
        os.environ["FEDCT_FAULTS_FULL"] = "1"
    exam = Exam(numbers(options.rows))
    code = pytest.main(
        [
            *(str(FOLDER), "-m", "row", "-q", "--no-header", "-p", "no:cacheprovider"),
            *("--continue-on-collection-errors", "-s"),
        ],
        plugins=[exam],
    )
    print(exam.table())
    if options.write and exam.results:
        write(options.write, exam.table())
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
