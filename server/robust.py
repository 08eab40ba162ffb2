"""Updates held until the round ends, for rules that have to see them side by side.

Held on disk, in a file without a name in the run folder, which is gone with the process
however that ends. It takes a model (4 bytes a parameter) per site; memory holds one
update and a quarter of a megabyte a site, and what is read back is read piece by piece.

Not covered here: secrecy of the updates from the hub. These rules are for updates in
the clear; a plan has either them or secure aggregation.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from common.plan_federation import Federation, replies_needed
from server.aggregate import Aggregate, Gate, WeightedMean
from server.robust_rules import (
    add_squared_distances,
    clipped_shares,
    coordinate_median,
    geometric_median_shares,
    krum_shares,
    trimmed_mean,
)

_CHUNK = 1 << 14
"""Parameters looked at together: 64 KiB a site, so that they stay in the cache."""


def open_aggregate(
    federation: Federation,
    num_params: int,
    *,
    min_sites: int,
    folder: Path,
    usual_norm: float | None,
    last_norm: float | None,
    is_baseline: bool = False,
) -> Aggregate:
    """What the plan's rule begins a round with.

    Args:
        federation: `[federation]` of the plan.
        num_params: P, the length of every update vector.
        min_sites: Fewest accepted sites; the rule may need more.
        folder: Where updates are held, if they are.
        usual_norm: See `server.aggregate.Gate`.
        last_norm: Median norm of the last round that counted; unset: there is none.
        is_baseline: Whether one site trains alone, or a pool of all: there is nobody to
            be robust against, so it gets the mean.
    """
    rule = federation.aggregation
    clip_norm = federation.clip_norm or last_norm
    if rule == "mean" or is_baseline:
        return WeightedMean(num_params, min_sites=min_sites, usual_norm=usual_norm)
    if rule == "clipped_mean" and clip_norm:
        return WeightedMean(
            num_params,
            min_sites=min_sites,
            usual_norm=usual_norm,
            clip_norm=clip_norm,
        )
    needed = max(min_sites, replies_needed(federation))
    gate = Gate(num_params, min_sites=needed, usual_norm=usual_norm)
    return HeldUpdates(federation, num_params, gate, folder)


class HeldUpdates:
    """One round's updates: `add` each reply in roster order, then read `mean` once."""

    def __init__(
        self, federation: Federation, num_params: int, gate: Gate, folder: Path
    ) -> None:
        """Hold nothing yet.

        Args:
            federation: Names the rule and its constants.
            num_params: P, the length of every update vector.
            gate: Checks updates, and keeps the weights of those that it let in.
            folder: Must be the hub's own; needs room for a model per site.
        """
        self._federation = federation
        self._num_params = num_params
        self._gate = gate
        self._norms: list[float] = []
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (ends with self)

    @property
    def weights(self) -> dict[str, float]:
        """Share of each accepted site in the result.

        Median and trimmed mean look at one parameter at a time: there, all sites count
        alike. A shortened update counts for less, so shares may sum to less than 1.
        """
        sites = list(self._gate.weights)
        if not self._is_enough or self._shares is None:
            return {site: 1.0 / len(sites) for site in sites}
        return dict(zip(sites, self._shares.tolist(), strict=True))

    def add(self, site: str, delta: Float32[np.ndarray, " P"], weight: float) -> float:
        """Hold one site's update. A refused update leaves no trace.

        Returns:
            The Euclidean norm of the update.

        Raises:
            ContributionError: See `Gate.check`.
            OSError: The disk is full; the round can't go on.
        """
        norm = self._gate.check(site, delta, weight)
        self._file.seek(len(self._norms) * self._row_bytes)
        self._file.write(np.ascontiguousarray(delta).data)
        self._file.flush()
        self._norms.append(norm)
        self._gate.weights[site] = float(weight)
        return norm

    def mean(self) -> Float32[np.ndarray, " P"]:
        """What the plan's rule makes of the updates; they are dropped.

        Raises:
            QuorumError: Fewer sites were accepted than quorum and rule need.
        """
        with self._file:
            self._gate.close()
            result = np.empty(self._num_params, dtype=np.float32)
            shares = self._shares
            for start, block in self._blocks():
                part = result[start : start + block.shape[1]]
                if shares is not None:
                    part[:] = np.einsum("n,nc->c", shares, block.astype(np.float64))
                elif self._federation.aggregation == "median":
                    part[:] = coordinate_median(block)
                else:
                    part[:] = trimmed_mean(block, self._federation.faulty_sites)
        return result

    @cached_property
    def _shares(self) -> Float64[np.ndarray, " N"] | None:
        """Coefficients of the updates; unset where the rule has none."""
        federation, rule = self._federation, self._federation.aggregation
        weights = np.array(list(self._gate.weights.values()))
        if rule in ("median", "trimmed_mean"):
            return None
        if rule == "clipped_mean":
            norms = np.array(self._norms)
            return clipped_shares(norms, weights, float(np.median(norms)))
        squared = np.zeros((len(weights), len(weights)))
        for _, block in self._blocks():
            add_squared_distances(squared, block)
        if rule == "geometric_median":
            return geometric_median_shares(squared, weights)
        most = len(weights) - federation.faulty_sites - 2
        keep = 1 if rule == "krum" else min(federation.krum_keep or most, most)
        return krum_shares(squared, federation.faulty_sites, keep)

    @property
    def _is_enough(self) -> bool:
        return len(self._gate.weights) >= replies_needed(self._federation)

    @property
    def _row_bytes(self) -> int:
        return self._num_params * np.dtype(np.float32).itemsize

    def _blocks(self) -> Iterator[tuple[int, Float32[np.ndarray, "N C"]]]:
        """The updates, some parameters at a time: the first one's index, and all rows.

        Read, not mapped: what a map shows can vanish, and its pages count as memory.
        """
        sites = len(self._norms)
        for start in range(0, self._num_params, _CHUNK):
            size = min(_CHUNK, self._num_params - start)
            block = np.empty((sites, size), dtype=np.float32)
            for row in range(sites):
                offset = row * self._row_bytes + start * block.itemsize
                read = os.preadv(self._file.fileno(), [block[row].data], offset)
                assert read == block[row].nbytes
            yield start, block
