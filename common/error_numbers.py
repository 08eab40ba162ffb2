"""The numbers by which a site says that an order was not done, and no more.

A sentence can hold what must not leave a hospital, whoever wrote it and with whatever
care; a number out of this table can't. The sentence stays in the site's own log; the
hub has one of its own for every number (`server.error_sentences`).

An error travels as `ERROR_BASE` plus its exit code. Where the hub can do more with
knowing which check it was, the check's number stands behind that in two digits: 1053 is
any no of a hospital's policy, 105302 says that the site is paused. People read 53.2.
"""

from collections.abc import Mapping
from typing import Final

from common.errors import ERROR_BASE, FedctError, TransportError

UNFORESEEN: Final = ERROR_BASE + FedctError.exit_code
"""What stands for every failure that is none of ours."""

ORDER_LOST: Final = 100 * (ERROR_BASE + TransportError.exit_code) + 1
"""A site got an order whose parts it could not read, and asks for it again."""

CHECKS: Final[Mapping[tuple[int, str], int]] = {
    (23, "note"): 1,
    (23, "state"): 2,
    (23, "audit"): 3,
    (23, "ledger"): 4,
    (23, "memory"): 5,
    (23, "desk"): 6,
    (40, "plan"): 1,
    (40, "model"): 2,
    (40, "layout"): 3,
    (40, "run"): 4,
    (40, "parcel"): 5,
    (40, "cohort"): 11,
    (40, "roster"): 12,
    (40, "threshold"): 13,
    (40, "keys"): 14,
    (40, "signature"): 15,
    (40, "share"): 16,
    (40, "survivors"): 17,
    (40, "spent"): 18,
    (40, "headroom"): 19,
    (40, "weights"): 20,
    (40, "question"): 21,
    (40, "masks"): 22,
    (40, "key"): 23,
    (40, "nonce"): 24,
    (40, "duplicate"): 25,
    (40, "content"): 26,
    (40, "round"): 27,
    (40, "range"): 28,
    (40, "lineage"): 29,
    (51, "order"): 1,
    (53, "approval"): 1,
    (53, "paused"): 2,
    (53, "queue"): 3,
    (53, "hours"): 4,
    (53, "rounds"): 5,
    (53, "cohort"): 6,
    (53, "masks"): 7,
    (53, "dp"): 8,
    (53, "clip"): 9,
    (53, "budget"): 10,
    (53, "kind"): 11,
    (53, "schema"): 12,
    (53, "roster"): 13,
    (53, "runs"): 14,
    (54, "died"): 1,
    (56, "hub"): 1,
    (56, "site"): 2,
}
"""Exit code and `FedctError.code` to the number of the check; a number is never given
to another check."""


def number_of(error: FedctError) -> int:
    """What an error travels as."""
    kind = ERROR_BASE + error.exit_code
    check = CHECKS.get((error.exit_code, error.code or ""))
    return kind if check is None else 100 * kind + check


def parts_of(number: int) -> tuple[int, int | None]:
    """The exit code, and the number of the check, in what came; any integer will do."""
    kind, check = divmod(number, 100) if number >= 100 * ERROR_BASE else (number, None)
    return kind - ERROR_BASE, check


def spoken(number: int) -> str:
    """As people read it: 53.2."""
    exit_code, check = parts_of(number)
    return str(exit_code) if check is None else f"{exit_code}.{check}"
