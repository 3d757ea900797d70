"""Batch norm and ReLU in training, whose output the backward pass computes again.

Norm, ReLU and the convolution that follows would keep two maps: the norm's input and the ReLU's
output. The second is one pass over the first, which costs less than keeping it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rednet.layers.base import is_unmodified
from rednet.layers.finishing import is_plain_module
from rednet.ops.cpu import finishing, norm_gradient
from rednet.ops.tracing import hooks_of_saved_tensors, is_recorded, may_hook_saved_tensors


def consume(
    norm: nn.Module, activation: nn.Module, input: Tensor, consumer: Callable[[Tensor], Tensor]
) -> Tensor:
    """``consumer(activation(norm(input)))``, which keeps ``input`` only for the backward pass.

    Where a graph is traced, under torch.func, with hooks on norm or activation, on a GPU, and with
    anything but a batch norm in training and a ReLU, the modules are called, and keep what they do.

    Args:
        norm: The norm.
        activation: The activation.
        input: What the norm is called with.
        consumer: What is made of the activation's output. What it saves of it is computed again;
            it may save other tensors too.
    """
    if not _may_recompute(norm, activation, input):
        return consumer(activation(norm(input)))
    output, *statistics = _NormReLU.apply(input, norm.weight, norm.bias, norm)
    sources = (input, norm.weight, norm.bias, *statistics)
    with recomputed(output, _normalized, sources):
        return consumer(output)


def consume_module(module: Any, input: Tensor, consumer: Callable[[Tensor], Tensor]) -> Tensor:
    """``consumer(module(input))``; of a ``ConvModule``, norm and activation by :func:`consume`."""
    if not (is_plain_module(module) and module.with_norm and module.with_activation):
        return consumer(module(input))
    return consume(module.norm, module.activate, module.conv(input), consumer)


def _may_recompute(norm: Any, activation: nn.Module, input: Tensor) -> bool:
    return (
        not is_recorded()  # first: the compiler must not look into the others
        and torch.is_grad_enabled()
        and may_hook_saved_tensors()
        and type(input) is Tensor
        and input.device.type == "cpu"
        and input.dim() == 4
        and input.requires_grad
        and is_unmodified(norm, nn.BatchNorm2d)
        and is_unmodified(activation, nn.ReLU)
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and input.shape[1] == norm.num_features
        and input.numel() > input.shape[1]  # the norm refuses a single number
    )


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert norm.num_batches_tracked is not None and norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        running = norm.running_mean, norm.running_var
        output, mean, deviation = torch.native_batch_norm(
            input, weight, bias, *running, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(input, weight, bias, mean, deviation)
        ctx.mark_non_differentiable(mean, deviation)
        ctx.eps = norm.eps
        return output.relu_(), mean, deviation

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, deviation = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated in its turn
            operands = input, weight, bias
            output = F.relu(F.batch_norm(input, None, None, weight, bias, True, eps=ctx.eps))
            needed = [each for each in operands if each.requires_grad]
            found = iter(torch.autograd.grad(output, needed, grad, create_graph=True))
            return *(next(found) if each.requires_grad else None for each in operands), None
        if norm_gradient.unsupported_reason(grad, input, weight) is None:
            return *norm_gradient.norm_relu_gradients(
                grad, input, weight, bias, mean, deviation
            ), None
        rectified = torch.ops.aten.threshold_backward(
            grad, _normalized(input, weight, bias, mean, deviation), 0
        )
        gradients = torch.ops.aten.native_batch_norm_backward(
            rectified,
            input,
            weight,
            None,
            None,
            mean,
            deviation,
            True,
            ctx.eps,
            list(ctx.needs_input_grad[:3]),
        )
        return *gradients, None


def _normalized(
    input: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, deviation: Tensor
) -> Tensor:
    """ReLU of the batch norm with these statistics; ``deviation`` is inverse."""
    variance = deviation.pow(-2)
    if finishing.unsupported_reason(input) is None and weight.dtype == input.dtype:
        output = torch.empty_like(input)
        finishing.finish(input, output, (mean, variance, weight, bias), 0.0, None, True)
        return output
    return F.batch_norm(input, mean, variance, weight, bias, eps=0.0).relu_()


# ---- tensors that are computed again where the graph has saved them


class _Use(NamedTuple):
    """Takes the place of a tensor that the graph has saved: a view of the recomputed one."""

    owner: _Recomputed
    size: Sequence[int]
    stride: Sequence[int]
    offset: int | torch.SymInt


class _Recomputed:
    """Hooks for saved tensors that keep the sources of a tensor in its place.

    Other tensors are left to the hooks that were there before, as are the sources.
    """

    def __init__(
        self, output: Tensor, compute: Callable[..., Tensor], sources: Sequence[Tensor]
    ) -> None:
        self._address = output.untyped_storage().data_ptr()
        self._version, self._dtype = output._version, output.dtype
        self._compute = compute
        self._given = [each.detach() for each in sources]
        self._sources: list[Any] = []
        self._uses = self._left = 0
        self._value: Tensor | None = None
        self._outer = hooks_of_saved_tensors()

    def pack(self, tensor: Tensor) -> Any:
        if (
            tensor.layout is not torch.strided
            or tensor.untyped_storage().data_ptr() != self._address
            or (tensor._version, tensor.dtype) != (self._version, self._dtype)
        ):
            return tensor if self._outer is None else self._outer[0](tensor)
        if self._given:
            given, self._given = self._given, []
            self._sources = given if self._outer is None else [*map(self._outer[0], given)]
        self._uses += 1
        return _Use(self, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Use) or packed.owner is not self:
            return packed if self._outer is None else self._outer[1](packed)
        if self._value is None:
            self._value, self._left = self._recompute(), self._uses
        value, self._left = self._value, self._left - 1
        if self._left == 0:
            self._value = None
        return value.as_strided(packed.size, packed.stride, packed.offset)

    def _recompute(self) -> Tensor:
        packed = self._sources
        sources = packed if self._outer is None else [self._outer[1](each) for each in packed]
        with torch.no_grad():
            return self._compute(*sources)


@contextmanager
def recomputed(
    output: Tensor, compute: Callable[..., Tensor], sources: Sequence[Tensor]
) -> Iterator[None]:
    """Inside, graphs that save ``output`` or views of it compute it again when they need it.

    Args:
        output: A dense tensor.
        compute: Makes it, with the same strides, of the sources, without gradients.
        sources: Tensors that are kept instead.
    """
    hooks = _Recomputed(output, compute, sources)
    with torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack):
        yield
