import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.errors import ModelError
from common.parameters import (
    digest_of,
    layout_of,
    load_vector,
    parts_of,
    to_state,
    to_vector,
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))


def test_a_vector_written_and_read_back_is_the_same_vector():
    layout = layout_of(network(), keep_norms_local=False)
    vector = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    net = network()
    load_vector(net, layout, vector)
    assert np.array_equal(to_vector(net, layout), vector)


def test_adding_vectors_is_adding_networks():
    layout = layout_of(network(), keep_norms_local=False)
    a, b = network(1), network(2)
    total = network()
    load_vector(total, layout, to_vector(a, layout) + to_vector(b, layout))
    for name in layout.names:
        expected = a.state_dict()[name] + b.state_dict()[name]
        assert torch.equal(total.state_dict()[name], expected)


def test_the_vector_holds_running_statistics_but_no_counters():
    layout = layout_of(network(), keep_norms_local=False)
    assert "1.running_mean" in layout.names
    assert "1.num_batches_tracked" not in layout.names
    # 3*1*3*3+3 convolution, 4*3 norm, 2*3+2 convolution
    assert layout.size == 30 + 12 + 8


def test_fedbn_leaves_everything_of_a_norm_layer_at_the_site():
    layout = layout_of(network(), keep_norms_local=True)
    assert layout.size == 30 + 8
    assert set(layout.local) == {n for n in network().state_dict() if n[0] == "1"}
    net = network(3)
    before = {n: net.state_dict()[n].clone() for n in layout.local}
    load_vector(net, layout, np.zeros(layout.size, np.float32))
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize(
    "vector",
    [np.zeros(49, np.float32), np.zeros(50, np.float64), np.zeros((1, 50), np.float32)],
)
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(vector):
    net = network()
    layout = layout_of(net, keep_norms_local=False)
    before = to_vector(net, layout)
    with pytest.raises(ModelError, match=r"expected float32\[50\]"):
        load_vector(net, layout, vector)
    assert np.array_equal(to_vector(net, layout), before)


def test_a_state_dict_from_a_vector_loads_into_the_network():
    layout = layout_of(network(), keep_norms_local=False)
    vector = np.arange(layout.size, dtype=np.float32)
    net = network(4)
    net.load_state_dict(to_state(layout, vector, network()))
    assert np.array_equal(to_vector(net, layout), vector)


@given(st.integers(0, 49), st.integers(0, 31))
def test_the_digest_sees_every_bit(position, bit):
    vector = np.zeros(50, np.float32)
    changed = vector.copy()
    changed.view(np.uint32)[position] ^= np.uint32(1 << bit)
    assert digest_of(changed) != digest_of(vector)


def test_parts_are_views_in_the_shape_of_their_tensors():
    layout = layout_of(network(), keep_norms_local=False)
    vector = np.zeros(layout.size, np.float32)
    for name, part in parts_of(vector, layout):
        assert part.shape == tuple(network().state_dict()[name].shape)
        part[...] = 1
    assert vector.min() == 1
