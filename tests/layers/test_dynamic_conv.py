from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from rednet.layers import DynamicConv2d
from tests.layers.cases import GEOMETRIES, convolution_like, randomized
from tests.tolerances import assert_close


def test_golden_vectors(golden: Callable) -> None:
    vectors = golden("dyconv_T34")
    layer = DynamicConv2d(16, 24, 3, stride=2, padding=1)
    # The published code keeps the temperature out of the state_dict.
    vectors.state["temperature"] = torch.tensor(float(vectors.meta["temperature"]))
    assert len(vectors.check(layer)) == 7


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("temperature", [1, 34])
def test_the_kernel_is_the_published_average(geometry: dict, temperature: float) -> None:
    layer = randomized(DynamicConv2d(8, 6, **geometry, num_kernels=3, ratio=0.5)).double().eval()
    layer.set_temperature(temperature)
    image = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    for index in range(2):
        pooled = image[index].mean((1, 2))
        hidden = F.relu(layer.attention.fc1.weight[:, :, 0, 0] @ pooled)
        logits = layer.attention.fc2.weight[:, :, 0, 0] @ hidden + layer.attention.fc2.bias
        shares = torch.softmax(logits / temperature, dim=0)
        kernel = torch.einsum("k,koihw->oihw", shares, layer.weight)
        bias = None if layer.bias is None else shares @ layer.bias
        expected = convolution_like(layer, image[index : index + 1], kernel, bias)
        assert_close(layer(image)[index : index + 1], expected)


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(64, 0.25, 17), (16, 0.25, 5)])
def test_the_attention_has_the_published_width(channels: int, ratio: float, hidden: int) -> None:
    layer = DynamicConv2d(channels, 4, 3, ratio=ratio)
    assert layer.attention.fc1.weight.shape == (hidden, channels, 1, 1)
    assert layer.attention.fc1.bias is None
    assert layer.attention.fc2.weight.shape == (4, hidden, 1, 1)


def test_a_bad_ratio_is_named() -> None:
    with pytest.raises(ValueError, match="ratio must be finite and above 0, got -1"):
        DynamicConv2d(4, 4, 3, ratio=-1)


def test_an_image_of_three_channels_has_as_many_hidden_values_as_kernels() -> None:
    """As published; a quarter of 3 channels would leave one."""
    attention = DynamicConv2d(3, 8, 3, num_kernels=5).attention
    assert attention.fc1.weight.shape == (5, 3, 1, 1) and attention.fc2.weight.shape == (5, 5, 1, 1)
