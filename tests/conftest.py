"""For every test: nothing is timed, and Ctrl-C is heard.

A busy machine is no counterexample of a property. And a suite that a script started in
the background ignores SIGINT, which its children would inherit.
"""

import signal

from hypothesis import settings

settings.register_profile("fedct", deadline=None)
settings.load_profile("fedct")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
