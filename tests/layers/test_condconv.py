from __future__ import annotations

import pytest
import torch
from torch import nn

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
