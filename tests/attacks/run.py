"""All attacks, each with its control, and the table of what came of them.

    python -m tests.attacks.run [--only WORDS] [--write PAGE]

`make attacks` runs it. Every module of this folder takes part whose tests are rows
(`tests.attacks.rows`).
"""

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- begin of the table -->", "<!-- end of the table -->"
HEAD = (
    "| adversary | attack | defence | without it (control) | with it | | s |",
    "|---|---|---|---|---|---|---|",
)
_PAGE_TABLE = re.compile(r"\n### (.+)\n\n((?:\|.*\n?)+)")


@dataclass
class Result:
    """What came of one row, over all forms of its test."""

    row: Any
    passed: bool = True
    seconds: float = 0.0
    seen: dict[str, list[str]] = field(
        default_factory=lambda: {"control": [], "defended": []}
    )


class Attacks:
    """Takes the rows, and notes how they went (a plugin of pytest)."""

    def __init__(self, only: str) -> None:
        """Take the rows whose adversary or attack holds these words; all if empty."""
        self._only = only.lower()
        self._rows: dict[str, Any] = {}
        self.results: dict[tuple[str, str], Result] = {}
        self.tables: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Leave out what is no row, or was not asked for."""
        marked = {item: mark.args[0] for item in items for mark in _marks(item)}
        items[:] = [
            item
            for item, row in marked.items()
            if self._only in f"{row.adversary} {row.attack}".lower()
        ]
        self._rows = {item.nodeid: marked[item] for item in items}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """One phase of one test."""
        row = self._rows[report.nodeid]
        result = self.results.setdefault((row.adversary, row.attack), Result(row))
        if report.when == "call" or report.outcome != "passed":
            result.passed &= report.outcome == "passed"
        if report.when == "call":
            result.seconds += report.duration
            for key, said in report.user_properties:
                if key in result.seen:
                    result.seen[key].append(said)
                elif key == "table":
                    self.tables[said[0]] = said[1]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = str(crash.message if crash else report.longrepr)[-200:]
            result.seen["defended"].append(why)
        if report.skipped:
            result.seen["defended"].append(str(report.longrepr[-1]))

    def lines(self) -> dict[tuple[str, str], str]:
        """Adversary and attack to the row's line of Markdown."""
        return {key: _line(result) for key, result in self.results.items()}


def _marks(item: Any) -> Any:
    return item.iter_markers("attack")


def _line(result: Result) -> str:
    seen = ("; ".join(dict.fromkeys(said)) for said in result.seen.values())
    cells = (result.row.adversary, result.row.attack, result.row.defence, *seen)
    verdict = "PASS" if result.passed else "FAIL"
    text = " | ".join(re.sub(r"[|\s]+", " ", str(cell)) for cell in (*cells, verdict))
    return f"| {text} | {result.seconds:.0f} |"


def page(lines: dict[tuple[str, str], str], tables: dict[str, str]) -> str:
    """What is printed, and stands in the page: rows by adversary, then the tables."""
    rows = "\n".join([*HEAD, *(lines[key] for key in sorted(lines))])
    more = (
        f"### {title}\n\n{table.strip()}" for title, table in sorted(tables.items())
    )
    return "\n\n".join([rows, *more])


def write(path: Path, attacks: Attacks, *, whole: bool = False) -> None:
    """Renew the page; what was not run now stays as it is, unless all was run."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    old = "" if whole else old
    lines = {}
    for line in old.split("\n### ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and line not in HEAD:
            lines[cells[0], cells[1]] = line
    tables = dict(_PAGE_TABLE.findall(old))
    now = page(lines | attacks.lines(), tables | attacks.tables)
    path.write_text(f"{before}{BEGIN}\n{now}\n{END}{after}")


def main() -> int:
    """Run the attacks; the exit code is pytest's."""
    parser = argparse.ArgumentParser(description="attacks, each with its control")
    parser.add_argument("--only", default="", help="words of a row")
    parser.add_argument("--write", type=Path, help="page whose table is renewed")
    options = parser.parse_args()
    attacks = Attacks(options.only)
    code = pytest.main(
        [
            *(str(FOLDER), "-m", "attack", "-q", "--no-header"),
            *("-p", "no:cacheprovider", "--continue-on-collection-errors"),
        ],
        plugins=[attacks],
    )
    print(page(attacks.lines(), attacks.tables))
    if options.write and attacks.results:
        write(options.write, attacks, whole=not options.only)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
