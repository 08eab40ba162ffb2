"""The one number that decides whether hub and site can work together.

It stands for everything that one writes and the other reads over the line: orders,
answers, what a seal covers, Flower's own wire. Versions of the package may differ; the
number may not, since a guess at what an older side means would show in a model, not in
an error. It is said when a site asks to join, in its kit, at the roll call, and in the
seal of each answer, so that a side that was updated alone is found out before it works.
"""

import re
from importlib.metadata import version
from typing import Final

from common.errors import VersionError

CONTRACT: Final = 4
"""Raised with every change of `common.exchange`, `common.canonical`, `common.signing`,
`common.wire`, `common.packing` or Flower's version that the other side would notice."""
FEDCT: Final = version("fedct")
"""This package's own; for people, nothing is decided by it."""
_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,24}")


def check_contract(writer: str, contract: object, fedct: object) -> None:
    """Refuse what a side wrote that speaks another contract; say which one to update.

    Args:
        writer: "site" or "hub"; this is the other one.
        contract: The number that came; anything at all.
        fedct: Its FedCT version, likewise.

    Raises:
        VersionError: It is another contract.
    """
    if type(contract) is int and contract == CONTRACT:
        return
    reader = {"site": "hub", "hub": "site"}[writer]
    theirs = "no contract number (an older FedCT)"
    newer = type(contract) is int and contract > CONTRACT
    if type(contract) is int:
        known = isinstance(fedct, str) and _VERSION.fullmatch(fedct)
        theirs = f"contract {contract} (FedCT {fedct if known else 'unknown'})"
    older = reader if newer else writer
    raise VersionError(
        f"{writer} speaks {theirs}, expected contract {CONTRACT} as the {reader} "
        f"(FedCT {FEDCT}) does; update FedCT at the {older}",
        code=older,
    )
