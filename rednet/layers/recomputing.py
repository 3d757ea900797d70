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

from rednet.layers.base import ConvLayer, is_unmodified
from rednet.layers.finishing import is_plain_module
from rednet.ops.cpu import finishing, norm_gradient
from rednet.ops.tracing import (
    hooks_of_saved_tensors,
    is_checkpointed,
    is_recorded,
    may_hook_saved_tensors,
)


def consume(
    norm: Any, activation: nn.Module, input: Tensor, consumer: Callable[[Tensor], Tensor]
) -> Tensor:
    """``consumer(activation(norm(input)))``, which keeps ``input`` only for the backward pass.

    Where a graph is traced, under torch.func, inside a checkpoint, with hooks on norm or
    activation, on a GPU, and with anything but a batch norm in training and a ReLU, the modules are
    called, and keep what they do. Likewise if the consumer is a module of neither PyTorch nor this
    package: it may do what hooks for saved tensors forbid, such as torch.func.grad.

    Args:
        norm: The norm.
        activation: The activation.
        input: What the norm is called with. If it is changed in place before the backward pass,
            that raises a RuntimeError, even if only gradients of the consumer's are asked for.
        consumer: What is made of the activation's output. What it saves of it is computed again;
            it may save other tensors too.
    """
    if not (_may_recompute(norm, activation, input) and _is_known(consumer)):
        return consumer(activation(norm(input)))
    # A clone, as a norm's bias may change before the backward pass: no gradient depends on it.
    bias = norm.bias.clone()
    output, *statistics = _NormReLU.apply(input, norm.weight, bias, norm)
    sources = (input, norm.weight.detach().clone(), bias, *statistics)
    with recomputed(output, _normalized, sources):
        return consumer(output)


def consume_module(module: Any, input: Tensor, consumer: Callable[[Tensor], Tensor]) -> Tensor:
    """``consumer(module(input))``; of a ``ConvModule``, norm and activation by :func:`consume`."""
    if not (is_plain_module(module) and module.with_norm and module.with_activation):
        return consumer(module(input))
    return consume(module.norm, module.activate, module.conv(input), consumer)


def _is_known(consumer: object) -> bool:
    """Whether it is not a module, or one of PyTorch or this package that allows hooks."""
    if not isinstance(consumer, nn.Module):
        return True
    return type(consumer) in (nn.Conv2d, nn.MaxPool2d) or isinstance(consumer, ConvLayer)


def _may_recompute(norm: Any, activation: nn.Module, input: Tensor) -> bool:
    return (
        not is_recorded()  # first: the compiler must not look into the others
        and torch.is_grad_enabled()
        and may_hook_saved_tensors()
        and not is_checkpointed()
        and type(input) is Tensor
        and input.device.type == "cpu"
        and input.dim() == 4
        and input.requires_grad
        and is_unmodified(norm, nn.BatchNorm2d)
        and is_unmodified(activation, nn.ReLU)
        and norm.training
        and norm.track_running_stats
        and norm.momentum is not None
        and _has_channels(norm, input.shape[1:2])
        and input.numel() > input.shape[1]  # the norm refuses a single number
    )


def _has_channels(norm: nn.BatchNorm2d, shape: torch.Size) -> bool:
    """Whether its tensors have this shape, which PyTorch's inner operator does not check."""
    has_parameters = norm.weight is not None and norm.bias is not None
    tensors = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return has_parameters and all(each is None or each.shape == shape for each in tensors)


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert norm.momentum is not None
        if norm.num_batches_tracked is not None:
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
            # Views, since one may be made of another: its gradient would count twice.
            operands = input, weight, bias = [each.view_as(each) for each in (input, weight, bias)]
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
        following = finishing.Following((mean, variance, weight, bias), 0.0, None, True)
        finishing.finish(input, output, following)
        return output
    # F.batch_norm refuses an ``eps`` of 0 in some releases of PyTorch.
    return torch.native_batch_norm(input, weight, bias, mean, variance, False, 0.0, 0.0)[0].relu_()


# ---- tensors that are computed again where the graph has saved them


class _Kept(NamedTuple):
    """A tensor as it was: where hooks are in use, PyTorch does not check that it still is."""

    tensor: Tensor
    version: int

    @classmethod
    def now(cls, tensor: Tensor) -> _Kept:
        return cls(tensor, tensor._version)

    def unchanged(self) -> Tensor:
        if self.tensor._version == self.version:
            return self.tensor
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace "
            f"operation: [{self.tensor.type()} {list(self.tensor.shape)}] is at version "
            f"{self.tensor._version}; expected version {self.version} instead"
        )


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
        hooks = hooks_of_saved_tensors() or (_Kept.now, _Kept.unchanged)
        self._outer_pack: Callable[[Tensor], Any] = hooks[0]
        self._outer_unpack: Callable[[Any], Tensor] = hooks[1]
        self._given = [each.detach() for each in sources]
        self._sources: list[Any] = []
        self._uses = self._left = 0
        self._value: Tensor | None = None

    def pack(self, tensor: Tensor) -> Any:
        if (
            tensor.layout is not torch.strided
            or tensor.untyped_storage().data_ptr() != self._address
            or (tensor._version, tensor.dtype) != (self._version, self._dtype)
        ):
            return self._outer_pack(tensor)
        if self._given:
            given, self._given = self._given, []
            self._sources = [*map(self._outer_pack, given)]
        self._uses += 1
        return _Use(self, tensor.shape, tensor.stride(), tensor.storage_offset())

    def unpack(self, packed: Any) -> Tensor:
        if not isinstance(packed, _Use) or packed.owner is not self:
            return self._outer_unpack(packed)
        value = self._value  # another thread may remove it
        if value is None:
            value, self._left = self._recompute(), self._uses
        self._left -= 1
        self._value = value if self._left > 0 else None
        return value.as_strided(packed.size, packed.stride, packed.offset)

    def _recompute(self) -> Tensor:
        with torch.no_grad():
            return self._compute(*map(self._outer_unpack, self._sources))


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
