import numpy as np
import pytest

from common.errors import ContributionError
from server.server_step import first_state, server_step
from tests.plans import plan

MODEL = np.array([1.0, -2.0, 0.5], np.float32)
MEAN = np.array([0.1, 0.0, -0.2], np.float32)


def federation(algorithm: str, **changes: object):
    settings = {"federation__algorithm": algorithm}
    if algorithm == "scaffold":
        settings |= {"training__optimizer": "sgd", "training__momentum": 0.0}
    if algorithm == "fedbn":
        settings |= {"model__norm": "batch"}
    changes = {f"federation__{k}": v for k, v in changes.items()}
    return plan(**settings, **changes).federation


@pytest.mark.parametrize("algorithm", ["fedavg", "fedprox", "fedbn"])
def test_fedavg_and_its_client_side_kin_add_the_mean(algorithm):
    f = federation(algorithm)
    new = server_step(first_state(MODEL, f), MEAN, None, f)
    assert np.allclose(new.model, MODEL + MEAN)


def test_the_servers_rate_scales_the_step():
    f = federation("fedavg", server_learning_rate=0.5)
    new = server_step(first_state(MODEL, f), MEAN, None, f)
    assert np.allclose(new.model, MODEL + 0.5 * MEAN)


def test_fedavgm_is_heavy_ball():
    f = federation("fedavgm", server_momentum=0.9)
    state = first_state(MODEL, f)
    for _ in range(2):
        state = server_step(state, MEAN, None, f)
    assert np.allclose(state.model, MODEL + MEAN + 1.9 * MEAN, atol=1e-6)


def test_fedadam_follows_algorithm_2_of_reddi_2021():
    f = federation("fedadam", server_learning_rate=0.01, server_momentum=0.9)
    state = first_state(MODEL, f)
    m, v, x = 0.0, 1e-6, MODEL.astype(np.float64)
    for _ in range(5):
        state = server_step(state, MEAN, None, f)
        m = 0.9 * m + 0.1 * MEAN.astype(np.float64)
        v = 0.99 * v + 0.01 * MEAN.astype(np.float64) ** 2
        x = x + 0.01 * m / (np.sqrt(v) + 1e-3)
    assert np.allclose(state.model, x, atol=1e-6)


def test_scaffold_moves_model_and_control():
    f = federation("scaffold")
    control = np.array([0.5, 0.0, 1.0], np.float32)
    new = server_step(first_state(MODEL, f), MEAN, control, f)
    assert np.allclose(new.model, MODEL + MEAN)
    assert np.allclose(new.control, control)


def test_a_finite_model_is_never_replaced_by_another():
    f = federation("fedavg", server_learning_rate=1e38)
    state = first_state(MODEL, f)
    with pytest.raises(ContributionError, match="not finite"):
        server_step(state, np.full(3, 1e5, np.float32), None, f)
    assert np.array_equal(state.model, MODEL)


def test_a_step_does_not_change_the_state_it_starts_from():
    f = federation("fedadam")
    state = first_state(MODEL.copy(), f)
    before = [t.copy() for t in (state.model, state.first, state.second)]
    server_step(state, MEAN, None, f)
    after = [state.model, state.first, state.second]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
