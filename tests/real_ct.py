"""Public CT that is too large for the repository: where it lies, or a skip."""

import os
from pathlib import Path

import pytest

ROOT = Path(
    os.environ.get("FEDCT_TEST_DATA", Path(__file__).parents[2] / "shared" / "data")
)


def data(name: str = ".") -> Path:
    """A file or folder of it; a test that asks for what is absent is skipped."""
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"real CT is absent ({path}); set FEDCT_TEST_DATA")
    return path
