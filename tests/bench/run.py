"""All benchmarks, one after another, each in a process of its own.

    python tests/bench/run.py [engine aggregate round intake]

Their tables stand in docs/benchmarks.md. They print ratios of two ways of doing the
same, taken in turn in one run; absolute times are those of a machine that does other
things too.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run those asked for; the exit status is the first that was not 0."""
    names = sorted(path.stem[len("bench_") :] for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="*", help=f"of {', '.join(names)}; default: all")
    chosen = parser.parse_args().name or names
    if unknown := sorted({*chosen} - {*names}):
        parser.error(f"there is no {unknown[0]}, expected some of {', '.join(names)}")
    worst = 0
    for name in chosen:
        print(f"\n== {name}", flush=True)
        command = [sys.executable, str(HERE / f"bench_{name}.py")]
        worst = worst or subprocess.run(command, check=False).returncode
    return worst


if __name__ == "__main__":
    sys.exit(main())
