"""What a site keeps of masked rounds on its disk: with whom, and what of it.

Which sum of a round was opened must outlive the process, or a server could have it
forgotten by waiting for a restart: a round that is repeated, as after a hub's crash,
must open the very same sum, since two sums that differ by one site tell that site's
update. Each site gives its shares to one sum; but the first may open without this
site's, so a site masks the round again only among so many of the same sites that two
sums would need the shares of one of them twice, and only the very same numbers: with
another largest weight, say, sums of one round would be equations to solve.

The secrets of a round are never written down.
"""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from pydantic import TypeAdapter, ValidationError

from client.kept_texts import read_texts, write_texts
from client.private_files import make_private_folder
from client.state import SiteState, load_state, save_state
from common.errors import ContributionError, StoreError
from common.secagg.fixed_point import Masked
from common.secagg.terms import Terms

OPENED = "opened.json"
"""In a run's folder of states: round to the digest of what was opened."""
MASKED = "masked.json"
"""Beside it: round to the groups in which it was masked, each with its threshold; and
to the digest of the numbers that were."""
_CARRIED = "carried"
"""Beside it: what rounding lost (16 bits), by round."""
_GROUPS = TypeAdapter(list[tuple[int, list[str]]])


def check_group(
    folder: Path, number: int, group: Collection[str], threshold: int, colluders: int
) -> None:
    """Refuse a group of sites beside which another's sum of the round could open.

    Say that a sum was opened in an earlier group of n sites, with the shares of t of
    them, and one is to be opened in this group, of m with u. If t + u is more than all
    sites of both groups, some site would have to give its shares twice, which none
    does but those that side with the server.

    Args:
        folder: The run's folder of states.
        number: The round.
        group: Sites whose keys of the round were put together now.
        threshold: Shares that open a sum of theirs.
        colluders: Sites that may give theirs twice.

    Raises:
        ContributionError: This site masked the round in such a group; `code` is
            "spent".
    """
    for needed, others in _groups(folder, number):
        if needed + threshold <= len({*others, *group}) + colluders:
            raise ContributionError(
                f"round {number} was masked among {len(others)} sites before and is "
                f"asked for among {len(group)}, expected the same ones or nearly all "
                "of them; both sums could be opened, and their difference tells too "
                "much",
                code="spent",
            )


def note_masked(
    folder: Path,
    number: int,
    group: Collection[str],
    threshold: int,
    numbers: Masked,
) -> None:
    """Write down with whom a round is masked, and what, before the vector leaves.

    Args:
        folder: The run's folder of states.
        number: The round.
        group: Sites whose keys of the round were put together.
        threshold: Shares that open a sum of theirs.
        numbers: What will be masked, the weight among it; its digest is written.

    Raises:
        ContributionError: Other numbers were masked in this round before: two sums of
            it would be two equations in the same updates; `code` is "spent".
    """
    digest = hashlib.sha256(np.ascontiguousarray(numbers).data).hexdigest()
    known, new = _groups(folder, number), (threshold, sorted(group))
    texts, place = read_texts(folder / MASKED), f"numbers {number}"
    if texts.get(place, digest) != digest:
        raise ContributionError(
            f"round {number} was masked with other numbers before, expected the same: "
            "the largest weight or the number of slots is another one, the training "
            "cases changed, or this device does not compute the same twice; nothing "
            "was sent, and the next round is asked for as always",
            code="spent",
        )
    if new not in known or place not in texts:
        make_private_folder(folder)
        text = json.dumps([*known, new] if new not in known else known)
        write_texts(folder / MASKED, {**texts, str(number): text, place: digest})


def _groups(folder: Path, number: int) -> list[tuple[int, list[str]]]:
    """Threshold and sites of each group in which the round was masked here."""
    text = read_texts(folder / MASKED).get(str(number), "[]")
    try:
        return _GROUPS.validate_json(text)
    except ValidationError as error:
        raise StoreError(
            f"site found a {MASKED} that is not what FedCT wrote, expected groups of "
            "sites by round; put it back from a backup",
            code="memory",
        ) from error


def note_opening(
    folder: Path, number: int, lineage: str, survivors: tuple[str, ...]
) -> None:
    """Write down which sum is opened, before a share leaves.

    Args:
        folder: The run's folder of states.
        number: The round.
        lineage: Of the memory after the round, and so of its model.
        survivors: Sites in the sum.

    Raises:
        ContributionError: Another sum of this round was opened before; `code` is
            "spent".
    """
    text = json.dumps([lineage, sorted(survivors)])
    digest = hashlib.sha256(text.encode()).hexdigest()
    known = read_texts(folder / OPENED)
    if known.get(str(number), digest) != digest:
        raise ContributionError(
            f"round {number} was opened for other sites, another model or another "
            "memory before, expected the same; two such sums would tell one site's "
            "update",
            code="spent",
        )
    if str(number) not in known:
        make_private_folder(folder)
        write_texts(folder / OPENED, {**known, str(number): digest})


def load_carried(folder: Path, number: int, terms: Terms) -> Float32[np.ndarray, " P"]:
    """What rounding had lost after round `number`; zeros for round 0.

    A coarser grid leaves more over. If some sites could be given one, what they carry
    would drown their next updates, and a sum would be the last site's.

    Args:
        folder: The run's folder of states.
        number: The round to go on from.
        terms: Of the round at hand.

    Raises:
        ContributionError: It is left over from rounds with another largest weight or
            number of slots; `code` is "lineage".
        StoreError: It is gone or damaged.
    """
    if number == 0:
        return np.zeros(terms.size, np.float32)
    state = load_state(folder / _CARRIED, number)
    if state.carried is None or state.grid != terms.grid:
        raise ContributionError(
            f"site carries what rounding left over up to round {number} under a weight "
            f"cap and slots of {state.grid}, expected {terms.grid} as in the keys of "
            f"round {terms.round}; it can take part where all begin anew",
            code="lineage",
        )
    return state.carried.numpy().copy()


def save_carried(
    folder: Path,
    number: int,
    carried: Float32[np.ndarray, " P"],
    grid: tuple[int, int],
    keep: int,
) -> None:
    """Write what rounding has lost after round `number`; round `keep`'s stays."""
    make_private_folder(folder)  # not open to others as a mere parent would be
    state = SiteState(carried=torch.from_numpy(carried), grid=grid)
    save_state(folder / _CARRIED, number, state, keep)
