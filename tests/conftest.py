"""For every test: no property is timed, since a busy machine is no counterexample."""

from hypothesis import settings

settings.register_profile("fedct", deadline=None)
settings.load_profile("fedct")
