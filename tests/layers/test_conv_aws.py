from __future__ import annotations

import pytest
import torch
from mmcv.cnn import ConvAWS2d as PublishedConvAWS2d
from torch import Tensor, nn

from rednet.layers import ConvAWS2d, SAConv2d
from rednet.layers.conv_aws import standardize
from tests.layers.cases import randomized
from tests.tolerances import assert_close

GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(3, 1), stride=2, groups=2),
    dict(kernel_size=1, bias=False),
    dict(kernel_size=2, dilation=2, groups=4),
]


def _random(geometry: dict) -> ConvAWS2d:
    layer = randomized(ConvAWS2d(8, 12, **geometry))
    nn.init.uniform_(layer.weight_gamma, 0.5, 1.5)
    nn.init.normal_(layer.weight_beta)
    return layer


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_mmcv(geometry: dict) -> None:
    ours = _random(geometry).double()
    theirs = PublishedConvAWS2d(8, 12, **geometry).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    output, expected = ours(image), theirs(image)
    cotangent = torch.randn_like(expected)
    torch.autograd.backward([output, expected], [cotangent, cotangent])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_statistics_of_16_bit_weights_are_exact(dtype: torch.dtype) -> None:
    layer = _random(dict(kernel_size=3)).to(dtype)
    tensors: list[Tensor] = [layer.weight, layer.weight_gamma, layer.weight_beta]
    kernel = layer.kernel()
    assert kernel.dtype == dtype
    assert_close(kernel, standardize(*(tensor.double() for tensor in tensors)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("plain_bias", [True, False])
def test_with_a_plain_convolutions_weights_it_is_the_convolution(
    bias: bool, plain_bias: bool
) -> None:
    convolution = nn.Conv2d(8, 12, 3, padding=1, bias=plain_bias)
    layer = ConvAWS2d(8, 12, 3, padding=1, bias=bias)
    if plain_bias and not bias:
        with pytest.raises(RuntimeError, match='Unexpected key.*"bias"'):
            layer.load_state_dict(convolution.state_dict())
        return
    layer.load_state_dict(convolution.state_dict(), strict=True)
    image = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(layer(image), convolution(image))


@pytest.mark.parametrize("layer_type", [ConvAWS2d, SAConv2d])
def test_a_plain_checkpoint_of_16_bits_is_standardized_in_32(layer_type: type) -> None:
    convolution = nn.Conv2d(8, 12, 3).half()
    layer = layer_type(8, 12, 3)
    layer.load_state_dict(convolution.state_dict())
    assert_close(layer.kernel(), convolution.weight.double())


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_deployed_it_is_a_plain_convolution(geometry: dict) -> None:
    layer = _random(geometry).eval()
    deployed = layer.switch_to_deploy()
    assert type(deployed) is nn.Conv2d and not deployed.training
    image = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(deployed(image), layer(image))


def test_a_kernel_of_one_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_size=\(1, 1\), groups=8 cannot be served"):
        ConvAWS2d(8, 8, 1, groups=8)
