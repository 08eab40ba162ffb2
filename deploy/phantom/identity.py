"""UIDs and dates of phantoms: functions of the seed, never of chance or the clock."""

import hashlib

from pydicom.uid import UID

IMPLEMENTATION_UID = UID("2.25.204118307217061520134236140771021498117")
"""Says in every file which program wrote it; a random UUID, fixed once."""
DATE, TIME = "20250401", "101500"
"""All phantoms were scanned at once."""


def uid_of(*parts: object) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on the parts alone."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return UID(f"2.25.{int.from_bytes(digest[:16], 'big')}")
