from __future__ import annotations

import pytest
import torch
from torch import nn

from rednet.layers.base import ConvLayer, positive_int


@pytest.mark.parametrize("kernel_size", [3, 4, (5, 2)])
@pytest.mark.parametrize("padding", ["same", "valid", 2, (0, 1)])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_pad_and_output_size_agree_with_conv2d(
    kernel_size: object, padding: object, padding_mode: str
) -> None:
    arguments = dict(
        kernel_size=kernel_size, padding=padding, padding_mode=padding_mode, dilation=2
    )
    layer = ConvLayer(1, 1, **arguments)
    convolution = nn.Conv2d(1, 1, bias=False, **arguments)
    image = torch.randn(1, 1, 11, 12)
    padded, rest = layer.pad(image)
    output = nn.functional.conv2d(padded, convolution.weight, None, 1, rest, 2)
    expected = convolution(image)
    torch.testing.assert_close(output, expected)
    assert layer.output_size(11, 12) == tuple(expected.shape[2:])


def test_same_padding_refuses_a_stride() -> None:
    with pytest.raises(ValueError, match=r"padding='same' needs stride 1, got stride=\(2, 2\)"):
        ConvLayer(1, 1, 3, stride=2, padding="same")


@pytest.mark.parametrize("value", [True, 1.0, "1", None])
def test_positive_int_refuses_what_is_no_int(value: object) -> None:
    with pytest.raises(TypeError, match="groups must be an int, got"):
        positive_int("groups", value)


def test_channels_are_multiples_of_groups() -> None:
    with pytest.raises(ValueError, match="out_channels must be a multiple of groups=2, got 3"):
        ConvLayer(2, 3, 1, groups=2)


def test_repr_shows_what_is_not_default() -> None:
    text = repr(ConvLayer(2, 4, 3, padding=1, groups=2))
    assert text == "ConvLayer(2, 4, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2)"
