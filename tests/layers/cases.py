"""Layers and geometries for the tests that run over every registered convolution layer."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

import rednet  # noqa: F401  (registers the layers)
from rednet.layers.base import ConvLayer

IN_CHANNELS, OUT_CHANNELS = 16, 32
# For layers of 8 to 6 channels that take whatever nn.Conv2d takes.
GEOMETRIES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=(3, 1), stride=2),
    dict(kernel_size=3, stride=2, padding=2, dilation=2, groups=2),
    dict(kernel_size=1, bias=False),
    dict(kernel_size=(2, 5), stride=(1, 2), padding=(1, 3), bias=False),
]


def build(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """Builds a layer by its registered name; without arguments a 3 x 3 layer of stride 1."""
    arguments = args or (IN_CHANNELS, OUT_CHANNELS, 3)
    if not args:
        kwargs = {"padding": 1, **kwargs}
    return build_conv_layer(dict(type=name), *arguments, **kwargs)


def randomized(layer: nn.Module) -> nn.Module:
    """Gives every parameter and running statistic a random value: a zero could hide an error."""
    with torch.no_grad():
        for parameter in layer.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.normal_(std=max(fan_in, 1) ** -0.5)
        for name, buffer in layer.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return layer


def convolution_like(
    layer: ConvLayer, image: Tensor, kernel: Tensor, bias: Tensor | None
) -> Tensor:
    """The convolution of the layer's geometry, padded with zeros, with another kernel."""
    return F.conv2d(image, kernel, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def random_geometries(count: int) -> list[dict[str, Any]]:
    """Constructor arguments of ``nn.Conv2d``, mostly usual, some odd."""
    generator = random.Random(0)

    def pair(choices: list[int]) -> Any:
        first, second = generator.choice(choices), generator.choice(choices)
        return generator.choice([first, (first, second)])

    return [
        dict(
            kernel_size=pair([1, 2, 3, 3, 3, 5]),
            stride=pair([1, 1, 2, 3]),
            padding=pair([0, 1, 1, 2, 3]),
            dilation=pair([1, 1, 2]),
            groups=generator.choice([1, 1, 2]),
            bias=generator.choice([True, False]),
        )
        for _ in range(count)
    ]
