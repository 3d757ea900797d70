from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rednet.errors import ArgumentError
from rednet.layers import CondConv2d
from tests.layers.cases import GEOMETRIES, convolution_like, randomized
from tests.tolerances import assert_close


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("temperature", [1, 5])
def test_the_kernel_is_the_published_sum(geometry: dict, temperature: float) -> None:
    layer = randomized(CondConv2d(8, 6, **geometry, num_experts=3)).double().eval()
    layer.set_temperature(temperature)
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    for index in range(2):
        routing = torch.sigmoid(layer.routing_fn(image[index].mean((1, 2))) / temperature)
        kernel = torch.einsum("e,eoihw->oihw", routing, layer.weight)
        bias = None if layer.bias is None else routing @ layer.bias
        expected = convolution_like(layer, image[index : index + 1], kernel, bias)
        assert_close(layer(image)[index : index + 1], expected)


def test_the_routing_of_plain_weights_depends_on_the_image() -> None:
    layer = CondConv2d(8, 4, 3, num_experts=5)
    layer.load_state_dict(nn.Conv2d(8, 4, 3).state_dict())
    weight, bias = layer.routing_fn.weight, layer.routing_fn.bias
    assert weight[:2].any()
    torch.testing.assert_close(weight[2:4], -weight[:2])
    torch.testing.assert_close(bias[2:4], -bias[:2])
    assert not weight[4].any() and not bias[4].any()


def test_a_bias_starts_as_that_of_conv2d() -> None:
    bias = CondConv2d(8, 64, 3, num_experts=4).bias
    bound = (8 * 3 * 3) ** -0.5
    assert bound / 2 < bias.abs().max() <= bound and bias.min() < 0 < bias.max()


def test_one_bias_of_the_layer_is_not_mixed() -> None:
    layer = randomized(CondConv2d(8, 6, 3, num_experts=3, expert_bias=False)).double()
    without = CondConv2d(8, 6, 3, num_experts=3, bias=False).double()
    without.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "bias"})
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    assert layer.bias.shape == (6,)
    assert_close(layer(image), without(image) + layer.bias[:, None, None])


def test_one_bias_loads_a_plain_one() -> None:
    plain = nn.Conv2d(8, 6, 3).double()
    layer = CondConv2d(8, 6, 3, expert_bias=False).double()
    layer.load_state_dict(plain.state_dict())
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    assert_close(layer(image), plain(image))


def shared_pair() -> tuple[CondConv2d, CondConv2d]:
    first = randomized(CondConv2d(8, 8, 1, num_experts=3)).double()
    second = randomized(CondConv2d(8, 6, 3, padding=1, num_experts=3)).double()
    second.share_routing(first)
    return first, second


def test_layers_share_the_routing_of_the_first() -> None:
    first, second = shared_pair()
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    assert not [name for name, _ in second.named_parameters() if "routing" in name]
    output = second(first(image))
    routing = torch.sigmoid(first.routing_fn(image.mean((2, 3))))
    hidden = first(image)
    for index in range(2):
        kernel = torch.einsum("e,eoihw->oihw", routing[index], second.weight)
        expected = convolution_like(
            second, hidden[index : index + 1], kernel, routing[index] @ second.bias
        )
        assert_close(output[index : index + 1], expected)
    output.sum().backward()
    assert first.routing_fn.weight.grad.abs().sum() > 0


def test_a_copied_pair_shares_by_itself() -> None:
    pair = nn.Sequential(*shared_pair())
    image = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    expected = pair(image)
    copied = copy.deepcopy(pair)
    with torch.no_grad():
        pair[0].routing_fn.bias.add_(1)
    assert not torch.allclose(pair(image), expected)
    assert_close(copied(image), expected)


def test_a_layer_that_shares_needs_the_first_before_it() -> None:
    first, second = shared_pair()
    image = torch.randn(1, 8, 5, 6, dtype=torch.float64)
    second(first(image))
    with pytest.raises(RuntimeError, match="has to run before it"):
        second(image)


@pytest.mark.parametrize("first", [CondConv2d(8, 8, 1, num_experts=4), shared_pair()[1]])
def test_only_a_layer_that_routes_alike_is_shared(first: CondConv2d) -> None:
    with pytest.raises(ArgumentError, match="num_experts=3"):
        CondConv2d(8, 8, 1, num_experts=3).share_routing(first)
