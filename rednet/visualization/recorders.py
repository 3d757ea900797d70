"""Recorders: what to read off each type of layer, by forward hooks.

A further type of layer needs a recorder of its own in ``RECORDERS``, and nothing else: searching,
drawing and the page handle every recording of the kinds in :mod:`rednet.visualization.recordings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rednet.layers import (
    ACBlock,
    CondConv2d,
    ConvAWS2d,
    DynamicConv2d,
    Involution2d,
    ODConv2d,
    SAConv2d,
    SPConv2d,
)
from rednet.layers.base import ConvLayer
from rednet.layers.folding import has_statistics, scale_and_shift, scale_filters
from rednet.visualization.recordings import Attention, Maps, Recording, Sampling, to_numpy


class Recorder:
    """Reads what one layer computes, from the moment it listens.

    Subclasses override :meth:`listen`, :meth:`weights` or both.

    Args:
        layer: The layer; it is not changed.
        sampling: Where to keep generated kernels.
    """

    def __init__(self, layer: Any, sampling: Sampling) -> None:
        self.layer = layer
        self.sampling = sampling
        self.recordings: list[Recording] = []

    def listen(self) -> list[RemovableHandle]:
        """Registers hooks that append to ``recordings``, one for each call of the layer."""
        return []

    def weights(self) -> Mapping[str, np.ndarray]:
        """Matrices that the trained weights amount to whatever the image, by their titles."""
        return {}

    def add_attention(self, heads: Mapping[str, Tensor | None]) -> None:
        """Keeps the first image's part of vectors (N, M); heads that are None are left out."""
        present = {name: to_numpy(each[0]) for name, each in heads.items() if each is not None}
        self.recordings.append(Attention(present))


class InvolutionRecorder(Recorder):
    """The generated kernels, summed over their elements: one map for each group."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the convolution that generates the kernels."""
        return [self.layer.conv2.register_forward_hook(self._record)]

    def _record(self, module: nn.Module, inputs: Any, generated: Tensor) -> None:
        groups = self.layer.out_channels // self.layer.group_channels
        size = generated.shape[-2:]
        kernels = generated[0].reshape(groups, *self.layer.kernel_size, *size)
        self.recordings.append(
            Maps(
                quantity="sum of each pixel's kernel",
                unit="group",
                values=to_numpy(kernels.sum((1, 2), dtype=torch.float32)),
                batch=len(generated),
                kernels_at_points=self.sampling.at_points(kernels),
                lattice=self.sampling.on_lattice(kernels),
            )
        )


class SwitchRecorder(Recorder):
    """SAConv's switch: the share of the convolution at the smaller dilation."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the layer, and computes the switch of its input."""
        return [self.layer.register_forward_hook(self._record)]

    def _record(self, layer: SAConv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        switch = layer.switch_map(inputs[0])
        maps = Maps("share of the smaller dilation", "switch", to_numpy(switch[0]), len(switch))
        self.recordings.append(maps)

    def weights(self) -> Mapping[str, np.ndarray]:
        """The kernels at both dilations."""
        small = self.layer.kernel()
        return {
            "smaller dilation": magnitude(small),
            "larger dilation": magnitude(small + self.layer.weight_diff),
        }


class ODConvRecorder(Recorder):
    """ODConv's four attentions."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the attention network."""
        return [self.layer.attention.register_forward_hook(self._record)]

    def _record(self, module: nn.Module, inputs: Any, output: tuple) -> None:
        factors, mixture = output
        self.add_attention(
            {
                "kernels": mixture,
                "kernel positions": factors.taps,
                "input channels": factors.channels,
                "output channels": factors.filters,
            }
        )


class CondConvRecorder(Recorder):
    """The routing of CondConv: a sigmoid for each expert."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the routing function."""
        return [self.layer.routing_fn.register_forward_hook(self._record)]

    def _record(self, module: nn.Module, inputs: Any, logits: Tensor) -> None:
        self.add_attention({"experts": torch.sigmoid(logits / self.layer.temperature)})


class DynamicConvRecorder(Recorder):
    """The attention of DynamicConv: a softmax over the kernels."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the attention network."""
        return [self.layer.attention.register_forward_hook(self._record)]

    def _record(self, module: nn.Module, inputs: Any, logits: Tensor) -> None:
        self.add_attention({"kernels": torch.softmax(logits / self.layer.temperature, dim=1)})


class SPConvRecorder(Recorder):
    """The softmax that fuses SPConv's two parts, and the weights of the parts."""

    def listen(self) -> list[RemovableHandle]:
        """Listens to the norms that end both parts."""
        self._average: Tensor | None = None
        return [
            self.layer.bn1.register_forward_hook(self._keep),
            self.layer.bn2.register_forward_hook(self._record),
        ]

    def _keep(self, module: nn.Module, inputs: Any, full: Tensor) -> None:
        # Averaged at once, because the layer may go on to change the tensor in place.
        self._average = full.mean((2, 3))

    def _record(self, module: nn.Module, inputs: Any, slim: Tensor) -> None:
        assert self._average is not None
        share = torch.sigmoid(self._average - slim.mean((2, 3)))
        self.add_attention({"share of the part with the full kernel, by output channel": share})

    def weights(self) -> Mapping[str, np.ndarray]:
        """The kernels of both parts."""
        layer = self.layer
        return {
            "full kernel of the first part": magnitude(layer.gwc.weight),
            "1 x 1 kernel of the first part": magnitude(layer.pwc.weight),
            "1 x 1 kernel of the rest": magnitude(layer.conv1x1.weight),
        }


class ACBlockRecorder(Recorder):
    """The kernels of ACBlock's branches, their norms folded in, and of their fusion."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """The three branches and the fused kernel; the last only where that is all there is."""
        layer = self.layer
        if layer.deploy:
            return {"fused": magnitude(layer.fused_conv.weight)}
        branches = {"square": "square", "vertical": "ver", "horizontal": "hor"}
        norms = {title: getattr(layer, f"{name}_bn") for title, name in branches.items()}
        kernels = {title: getattr(layer, f"{name}_conv").weight for title, name in branches.items()}
        if not all(map(has_statistics, norms.values())):
            return {f"{title}, without its norm": magnitude(kernels[title]) for title in branches}
        panels = {
            title: magnitude(scale_filters(kernel, scale_and_shift(norms[title])[0]))
            for title, kernel in kernels.items()
        }
        return {**panels, "fused": magnitude(layer.fuse()[0])}


class ConvAWSRecorder(Recorder):
    """ConvAWS's kernel before and after it is standardized."""

    def weights(self) -> Mapping[str, np.ndarray]:
        """Both kernels."""
        return {
            "as it is learned": magnitude(self.layer.weight),
            "standardized": magnitude(self.layer.kernel()),
        }


RECORDERS: dict[type[ConvLayer], type[Recorder]] = {
    ACBlock: ACBlockRecorder,
    CondConv2d: CondConvRecorder,
    ConvAWS2d: ConvAWSRecorder,
    DynamicConv2d: DynamicConvRecorder,
    Involution2d: InvolutionRecorder,
    ODConv2d: ODConvRecorder,
    SAConv2d: SwitchRecorder,
    SPConv2d: SPConvRecorder,
}


def recorder_of(layer: nn.Module, sampling: Sampling | None = None) -> Recorder | None:
    """The recorder for a layer, by its nearest class in ``RECORDERS``; None for another module."""
    kind = next((RECORDERS[each] for each in type(layer).__mro__ if each in RECORDERS), None)
    return None if kind is None else kind(layer, sampling or Sampling())


def magnitude(weight: Tensor) -> np.ndarray:
    """The mean magnitude at each kernel position, (Kh, Kw), of a weight (O, I, Kh, Kw)."""
    return to_numpy(weight.detach().abs().mean((0, 1), dtype=torch.float32))
