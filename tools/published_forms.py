"""The dynamic layers as they are published: one grouped convolution over the whole batch.

Peers for tools/benchmark_layers.py, with the layers' own attention, so that the convolution alone
differs:

    python tools/benchmark_layers.py --layers ODConv2d \
        --peer ODConv2d=tools/published_forms.py:PublishedODConv2d
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rednet.layers import CondConv2d, DynamicConv2d, ODConv2d
from rednet.layers.mixture import MixtureConvLayer
from rednet.ops.mixed_conv import Factors


class _Published(MixtureConvLayer):
    def convolve_mixed(
        self,
        input: Tensor,
        mixture: Tensor,
        bias: Tensor | None = None,
        factors: Factors = Factors(),  # noqa: B008  (immutable)
    ) -> Tensor:
        """The samples as the groups of one convolution, and factors on the images."""
        batch, channels, height, width = input.shape
        kernels = (mixture @ self.weight.flatten(1)).view(batch, *self.weight.shape[1:])
        if factors.taps is not None:
            kernels = kernels * factors.taps.view(batch, 1, 1, *self.kernel_size)
        if factors.channels is not None:
            input = input * factors.channels[:, :, None, None]
        output = F.conv2d(
            input.reshape(1, batch * channels, height, width),
            kernels.flatten(0, 1),
            None if bias is None else bias.flatten(),
            self.stride,
            self.padding,
            self.dilation,
            self.groups * batch,
        )
        output = output.view(batch, self.out_channels, *output.shape[2:])
        return output if factors.filters is None else output * factors.filters[:, :, None, None]


class PublishedODConv2d(_Published, ODConv2d):
    """ODConv2d in its published form."""


class PublishedCondConv2d(_Published, CondConv2d):
    """CondConv2d in its published form."""


class PublishedDynamicConv2d(_Published, DynamicConv2d):
    """DynamicConv2d in its published form."""
