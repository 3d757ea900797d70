"""Asymmetric convolution block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rednet.errors import ArgumentError
from rednet.layers.base import ConvLayer, is_unmodified
from rednet.layers.folding import has_statistics, is_foldable, scale_and_shift, scale_filters
from rednet.layers.gradient_strides import keep_gradient_strides
from rednet.layers.plain_loading import NORM
from rednet.ops.geometry import IntOrPair, Pair
from rednet.ops.tracing import is_exporting
from rednet.registry import CONV_LAYERS

BRANCHES = ("square", "ver", "hor")
# The side along which a thin branch's kernel has one element.
THIN_SIDES = {"ver": 1, "hor": 0}
# On fewer output pixels of all images, adding up the kernels costs more than two convolutions.
FUSED_FROM_PIXELS = 75


@CONV_LAYERS.register_module()
class ACBlock(ConvLayer):
    """Asymmetric convolution block: the sum of a k x k, a k x 1 and a 1 x k convolution.

    Each branch has its own batch norm. In training, the thin kernels strengthen the middle row and
    column of the square one. With norms in eval mode the three branches equal one convolution: it
    computes all but the smallest outputs, and ``switch_to_deploy`` makes it permanent.

    From `ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
    Blocks <https://arxiv.org/abs/1908.03930>`_. The state_dict has the published keys.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Height and width of the square kernel.
        stride: Step between output pixels.
        padding: Pixels added on both ends of each side, or ``'same'`` or ``'valid'``. A thin
            kernel gets ``dilation * (kernel_size // 2)`` pixels less on its thin side, so that it
            is aligned with the middle of the square one; if that is negative, the input is
            cropped.
        dilation: Distance between kernel elements.
        groups: Blocks that the channels are split into.
        bias: No effect: the norms have a bias, and so does the deployed convolution.
        padding_mode: ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``.
        deploy: Whether to build the deployed form, which has only ``fused_conv``.
        gamma_init: Initial scale of the three norms; None for 1.
        use_affine: Whether the norms have a learned scale and shift.
        branches: The branches to build, at least one of ``'square'``, ``'ver'`` and ``'hor'``. For
            studies of what a branch contributes. Without ``'square'``, plain weights do not load.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, out_channels, Ho, Wo), as ``nn.Conv2d`` gives for the same arguments.

    Raises:
        TypeError: If an argument has the wrong type.
        ArgumentError: If an argument has an unsupported value.
    """

    square_bn: Any
    ver_bn: Any
    hor_bn: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: str | IntOrPair = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        deploy: bool = False,
        gamma_init: float | None = None,
        use_affine: bool = True,
        branches: Sequence[str] = BRANCHES,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode
        )
        if gamma_init is not None and not use_affine:
            raise ArgumentError(
                f"gamma_init must be None with use_affine=False, which leaves no scale to "
                f"initialize, got {gamma_init!r}"
            )
        if not branches or not set(branches) <= set(BRANCHES):
            raise ArgumentError(f"branches must be one or more of {BRANCHES}, got {branches}")
        self.register_parameter("bias", None)
        self.branches = tuple(name for name in BRANCHES if name in branches)
        self.deploy = deploy
        self.gamma_init = gamma_init
        self.use_affine = use_affine
        self.norm_eps = 1e-5
        if deploy:
            weight, shift = torch.empty(self.plain_weight_shape), torch.empty(out_channels)
            self.fused_conv = self.plain_convolution(weight, shift, is_padded=True)
        else:
            self._add_branches()
        self.init_weights()
        keep_gradient_strides(self)

    def _add_branches(self) -> None:
        # The norms come first, because tools that fold a norm into the convolution registered
        # before it must leave the branches together.
        for name in self.branches:
            norm = nn.BatchNorm2d(self.out_channels, affine=self.use_affine)
            self.add_module(f"{name}_bn", norm)
        for name in self.branches:
            kernel_size, padding = list(self.kernel_size), self.kernel_padding
            if name in THIN_SIDES:
                kernel_size[THIN_SIDES[name]] = 1
                padding = self._thin_padding(THIN_SIDES[name])[0]
            convolution = self._branch((kernel_size[0], kernel_size[1]), padding)
            self.add_module(f"{name}_conv", convolution)

    def _branch(self, kernel_size: Pair, padding: Pair) -> nn.Conv2d:
        return nn.Conv2d(
            self.in_channels,
            self.out_channels,
            kernel_size,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            bias=False,
        )

    def _thin_padding(self, side: int) -> tuple[Pair, tuple[int, ...]]:
        """Padding of a thin branch: its kernel lies on the element ``kernel_size // 2`` of a side.

        Args:
            side: The side along which its kernel has one element.

        Returns:
            What the branch's convolution adds, and what ``F.pad`` has to add before: a negative
            amount crops.
        """
        padding = self.kernel_padding
        before = self.dilation[side] * (self.kernel_size[side] // 2)
        after = self.dilation[side] * (self.kernel_size[side] - 1) - before
        first, last = padding[side] - before, padding[side] - after
        own = list(padding)
        own[side] = first if first == last >= 0 else 0
        explicit = () if first == last >= 0 else (first, last)
        return (own[0], own[1]), (0, 0, *explicit) if explicit and side == 0 else explicit

    def init_weights(self) -> None:
        """The initialization of ``nn.Conv2d`` and ``nn.BatchNorm2d``, and ``gamma_init``."""
        for module in self.children():
            if isinstance(module, (nn.Conv2d, _BatchNorm)):
                module.reset_parameters()
            if isinstance(module, _BatchNorm) and self.gamma_init is not None:
                nn.init.constant_(module.weight, self.gamma_init)

    def take_norm(self, norm: _BatchNorm) -> None:
        """Takes the place of the norm after the convolution too, as the paper's block does.

        The branches' norms get its type, ``eps`` and ``momentum``. A plain checkpoint's norm, which
        :meth:`adapt_plain_state` gets as well, becomes the square branch's.
        """
        self.norm_eps = norm.eps
        if self.deploy:
            return
        for name in self.branches:
            own = type(norm)(
                self.out_channels, eps=norm.eps, momentum=norm.momentum, affine=self.use_affine
            )
            own.requires_grad_(all(each.requires_grad for each in norm.parameters()))
            setattr(self, f"{name}_bn", own)
        self.init_weights()

    def convolve_checked(self, input: Tensor) -> Tensor:
        """Computes the output, (N, out_channels, Ho, Wo)."""
        if self.deploy:
            return self.fused_conv(input)
        if self._pays_to_fuse(input):
            return self.convolve(input, *self.fuse())
        padded, _ = self.pad(input)
        output, *others = [self._branch_output(name, padded) for name in self.branches]
        # A batch norm does not keep its output, and fresh memory costs more than the sum.
        in_place = is_unmodified(self._norms()[0], nn.BatchNorm2d)
        for each in others:
            output = output.add_(each) if in_place else output + each
        return output

    def _branch_output(self, name: str, padded: Tensor) -> Tensor:
        convolution, norm = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        return norm(convolution(self._cropped(padded, name)))

    def _cropped(self, padded: Tensor, name: str) -> Tensor:
        explicit = self._thin_padding(THIN_SIDES[name])[1] if name in THIN_SIDES else ()
        return F.pad(padded, explicit) if explicit else padded

    def _pays_to_fuse(self, input: Tensor) -> bool:
        """Whether one convolution gives the output, and takes less time with the fusing.

        An exported graph keeps the branches: it is for ``switch_to_deploy`` to fuse them for good.
        """
        if is_exporting() or not all(map(is_foldable, self._norms())):
            return False
        convolutions = [getattr(self, f"{name}_conv") for name in self.branches]
        if not all(is_unmodified(each, nn.Conv2d) for each in convolutions):
            return False
        # Tools give convolutions a bias, or trade their stride for dilation.
        if any(each.bias is not None or self._slides_otherwise(each) for each in convolutions):
            return False
        if not all(is_unmodified(each, type(each)) for each in self._norms()):
            return False
        height, width = self.output_size(input.shape[2], input.shape[3])
        return len(input) * height * width >= FUSED_FROM_PIXELS

    def _slides_otherwise(self, convolution: nn.Conv2d) -> bool:
        return (convolution.stride, convolution.dilation) != (self.stride, self.dilation)

    def _norms(self) -> list[Any]:
        return [getattr(self, f"{name}_bn") for name in self.branches]

    def fuse(self) -> tuple[Tensor, Tensor]:
        """The one convolution that the block is in eval mode.

        Returns:
            Its weight, (out_channels, in_channels / groups, Kh, Kw), and bias, (out_channels,).

        Raises:
            ArgumentError: If a branch has no batch norm with running statistics, or was given
                another stride or dilation than the block's.
        """
        # Without strict zips and sums of tensors, which torch 2.1 cannot compile.
        norms = {name: self._scale_and_shift(name) for name in self.branches}
        kernels = {name: getattr(self, f"{name}_conv").weight for name in self.branches}
        dtype = kernels[self.branches[0]].dtype
        bias = torch.stack([shift for _, shift in norms.values()]).sum(0)
        weight = bias.new_zeros(self.plain_weight_shape)
        if "square" in kernels:
            weight = scale_filters(kernels.pop("square"), norms["square"][0])
        for name, kernel in kernels.items():
            side, scale = THIN_SIDES[name], norms[name][0].view(-1, 1, 1, 1)
            middle = weight.narrow(side + 2, self.kernel_size[side] // 2, 1)
            middle.addcmul_(kernel.to(scale.dtype), scale)
        return weight.to(dtype), bias.to(dtype)

    def _scale_and_shift(self, name: str) -> tuple[Tensor, Tensor]:
        """What a branch multiplies its kernel by, and what it adds."""
        convolution, norm = getattr(self, f"{name}_conv"), getattr(self, f"{name}_bn")
        if not has_statistics(norm):
            raise ArgumentError(
                f"{name}_bn of type {type(norm).__name__} cannot be merged: it is no batch "
                "norm with running statistics"
            )
        if self._slides_otherwise(convolution):
            raise ArgumentError(
                f"{name}_conv cannot be merged: it must have the block's stride {self.stride} and "
                f"dilation {self.dilation}, got {convolution.stride} and {convolution.dilation}"
            )
        scale, shift = scale_and_shift(norm)
        if convolution.bias is not None:
            shift = torch.addcmul(shift, convolution.bias.to(scale.dtype), scale)
        return scale, shift

    def plain(self) -> nn.Conv2d:
        """The deployed block as an ``nn.Conv2d``, whose keys are those of any convolution."""
        return self.plain_convolution(self.fused_conv.weight, self.fused_conv.bias)

    @torch.no_grad()
    def switch_to_deploy(self) -> nn.Module:
        """The block itself, with ``fused_conv`` in place of its branches."""
        if not self.deploy:
            self.fused_conv = self.plain_convolution(*self.fuse(), is_padded=True)
            for name in self.branches:
                delattr(self, f"{name}_conv")
                delattr(self, f"{name}_bn")
            self.deploy = True
        return self

    def adapt_plain_state(self, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """In eval mode the block computes what the convolution, and its norm, computed.

        The square branch is the convolution, and the thin ones are switched off: by their norms'
        scales, so that their kernels keep their initialization and training wakes them, or, where
        the norms have none, by their kernels.
        """
        if not self.deploy and not all(isinstance(norm, _BatchNorm) for norm in self._norms()):
            return None  # other norms cannot be told to pass their input on
        if not self.deploy and "square" not in self.branches:
            return None  # thin kernels do not contain the convolution
        if self.deploy or not self.use_affine:
            return self._adapt_folded(*self._folded(state))
        weight = state["weight"]
        zeros = weight.new_zeros(self.out_channels)
        bias = state.get("bias", zeros)
        adapted = {"square_conv.weight": weight}
        for name, norm in zip(self.branches, self._norms(), strict=True):
            adapted[f"{name}_bn.weight"] = torch.full_like(zeros, float(name == "square"))
            adapted[f"{name}_bn.bias"] = bias if name == "square" else zeros.clone()
            adapted[f"{name}_bn.running_mean"] = zeros.clone()
            adapted[f"{name}_bn.running_var"] = torch.full_like(zeros, 1 - norm.eps)
        if f"{NORM}running_mean" in state:
            adapted["square_bn.bias"] = zeros.clone()
            for key, value in state.items():
                if key.startswith(NORM):
                    adapted[f"square_bn.{key[len(NORM) :]}"] = value
            # The square convolution has no bias, so the mean of its output is less by it.
            adapted["square_bn.running_mean"] = state[f"{NORM}running_mean"] - bias
        return adapted

    def _folded(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A plain convolution's weight and bias, with the norm that follows it folded in."""
        weight = state["weight"]
        zeros = weight.new_zeros(self.out_channels)
        bias = state.get("bias", zeros)
        if f"{NORM}running_mean" not in state:
            return weight, bias
        scale = state.get(f"{NORM}weight", zeros + 1) * torch.rsqrt(
            state[f"{NORM}running_var"] + self.norm_eps
        )
        shift = (bias - state[f"{NORM}running_mean"]) * scale + state.get(f"{NORM}bias", zeros)
        return scale_filters(weight, scale).to(weight.dtype), shift

    def _adapt_folded(self, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
        """The state of a block whose norms have no scale, or of a deployed one."""
        if self.deploy:
            return {"fused_conv.weight": weight, "fused_conv.bias": bias}
        adapted = {"square_conv.weight": weight}
        for name, norm in zip(self.branches, self._norms(), strict=True):
            adapted[f"{name}_bn.running_mean"] = torch.zeros_like(bias)
            adapted[f"{name}_bn.running_var"] = torch.full_like(bias, 1 - norm.eps)
        adapted["square_bn.running_mean"] = -bias
        for name in self.branches[1:]:
            thin = getattr(self, f"{name}_conv")
            adapted[f"{name}_conv.weight"] = torch.zeros_like(thin.weight)
        return adapted
