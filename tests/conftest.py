"""For every test: nothing is timed, Ctrl-C is heard, and what takes minutes goes first.

A busy machine is no counterexample of a property. And a suite that a script started in
the background ignores SIGINT, which its children would inherit.
"""

import signal

import pytest
from hypothesis import settings

settings.register_profile("fedct", deadline=None)
settings.load_profile("fedct")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole federations first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.path.parent.name != "federation")
