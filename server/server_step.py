"""From the round's mean update to the next global model.

FedAvg (McMahan 2017), FedProx (Li 2020) and FedBN (Li 2021) add the mean. FedAvgM (Hsu
2019, arXiv 1909.06335) keeps a momentum, FedAdam (Reddi 2021, arXiv 2003.00295,
algorithm 2) moments, SCAFFOLD (Karimireddy 2020, arXiv 1910.06378, eq. 5) a control
variate. The state is explicit and goes into every checkpoint.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32

from common.errors import ContributionError
from common.plan_federation import Federation

_CHUNK = 1 << 20
_BETA2 = np.float32(0.99)
_TAU = np.float32(1e-3)
"""FedAdam's adaptivity, as the paper recommends."""


@dataclass(frozen=True, eq=False)
class ServerState:
    """All that the server carries from round to round."""

    model: Float32[np.ndarray, " P"]
    """Global parameters."""
    first: Float32[np.ndarray, " P"] | None = None
    """FedAvgM: momentum. FedAdam: first moment."""
    second: Float32[np.ndarray, " P"] | None = None
    """FedAdam: second moment."""
    control: Float32[np.ndarray, " P"] | None = None
    """SCAFFOLD: server control variate c."""


def first_state(
    model: Float32[np.ndarray, " P"], federation: Federation
) -> ServerState:
    """The state before round 1."""
    if federation.algorithm == "fedavgm":
        return ServerState(model, first=np.zeros_like(model))
    if federation.algorithm == "fedadam":
        first, second = np.zeros_like(model), np.full_like(model, _TAU**2)
        return ServerState(model, first=first, second=second)
    if federation.algorithm == "scaffold":
        return ServerState(model, control=np.zeros_like(model))
    return ServerState(model)


def server_step(
    state: ServerState,
    mean: Float32[np.ndarray, " P"],
    control_mean: Float32[np.ndarray, " P"] | None,
    federation: Federation,
) -> ServerState:
    """The state after a round that closed.

    Args:
        state: Before the round; not changed.
        mean: Weighted mean of the accepted updates.
        control_mean: SCAFFOLD: sum of the accepted control changes over all sites'
            number; unset otherwise.
        federation: Algorithm and its constants.

    Raises:
        ContributionError: The new model would not be finite; a finite model is never
            replaced by such a one.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        new = _step(state, mean, control_mean, federation)
    if not _is_finite(new.model):
        raise ContributionError(
            "the server's step would make the model not finite, expected finite "
            "parameters; lower federation.server_learning_rate"
        )
    return new


def _step(
    state: ServerState,
    mean: Float32[np.ndarray, " P"],
    control_mean: Float32[np.ndarray, " P"] | None,
    federation: Federation,
) -> ServerState:
    rate = np.float32(federation.server_learning_rate)
    beta1 = np.float32(federation.server_momentum)
    if federation.algorithm == "fedavgm":
        assert state.first is not None
        first = beta1 * state.first + mean
        return replace(state, model=state.model + rate * first, first=first)
    if federation.algorithm == "fedadam":
        assert state.first is not None
        assert state.second is not None
        first = beta1 * state.first + (1 - beta1) * mean
        second = _BETA2 * state.second + (1 - _BETA2) * mean * mean
        step = rate * first / (np.sqrt(second) + _TAU)
        return ServerState(state.model + step, first, second)
    if federation.algorithm == "scaffold":
        assert state.control is not None
        assert control_mean is not None
        return replace(
            state, model=state.model + rate * mean, control=state.control + control_mean
        )
    model = rate * mean
    model += state.model
    return replace(state, model=model)


def _is_finite(vector: Float32[np.ndarray, " P"]) -> bool:
    """Whether every number is finite; looked at piece by piece, for little memory."""
    starts = range(0, vector.size, _CHUNK)
    return all(np.isfinite(vector[start : start + _CHUNK]).all() for start in starts)
