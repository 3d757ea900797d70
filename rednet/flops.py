"""Parameters and FLOPs of a model, including the involution operator.

A ``TorchDispatchMode`` sees the operators that the model calls. One multiply-add is one FLOP. Two
totals are given:

- ``macs``: the multiply-adds of convolutions, involutions and matrix products.
- ``published``: what RedNet's published figures count: also one FLOP for each element that a bias
  is added to, two for each element of a batch norm and one for each element of a ReLU.

Neither counts pooling, sums of branches, resizing or RoIAlign. The published figures fit a stem
with a 7 x 7 involution, although the published classifiers have 3 x 3 there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rednet.layers.base import registered_layers
from rednet.ops.flop_formulas import involution_multiply_adds

MULTIPLY_ADDS = ("convolution", "involution", "matrix product")
ELEMENTWISE = ("bias", "batch norm", "ReLU")


@dataclass(frozen=True)
class Cost:
    """The cost of a module, including its children.

    Attributes:
        parameters: Elements of its parameters.
        trainable: Elements of those that require a gradient.
        flops: FLOPs of its part of a forward pass, by what computes them.
    """

    parameters: int
    trainable: int
    flops: Mapping[str, int]

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        return sum(self.flops.get(kind, 0) for kind in MULTIPLY_ADDS)

    @property
    def published(self) -> int:
        """FLOPs as the published figures count them."""
        return sum(self.flops.get(kind, 0) for kind in (*MULTIPLY_ADDS, *ELEMENTWISE))


def count_flops(model: nn.Module, inputs: Tensor) -> dict[str, Cost]:
    """Counts parameters and the FLOPs of ``model(inputs)`` in eval mode.

    Args:
        model: The model; it is left in eval mode.
        inputs: Its input, (N, C, H, W); the FLOPs are those of all N images.

    Returns:
        The cost of every module by its dotted name, in the model's order. The model itself has the
        name ``''``.
    """
    names: list[str] = []
    counter = _OperatorCounter(names)
    with torch.no_grad(), _naming_the_called_module(model.eval(), names), counter:
        model(inputs)
    flops = _with_children(counter.flops)
    return {
        name: Cost(
            parameters=sum(each.numel() for each in module.parameters()),
            trainable=sum(each.numel() for each in module.parameters() if each.requires_grad),
            flops=dict(flops[name]),
        )
        for name, module in model.named_modules()
    }


def thop_ops() -> dict[type[nn.Module], Callable[..., None]]:
    """How thop counts the layers, which compute more than their child modules do.

    Returns:
        The argument of ``thop.profile(model, (image,), custom_ops=thop_ops())``.
    """
    return dict.fromkeys(registered_layers().values(), _count_for_thop)


def _count_for_thop(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        type(layer).forward(layer, inputs[0])  # without the hooks, of which this is one
    for module in layer.modules():
        module.total_ops.zero_()  # what the child modules compute is part of the count
    layer.total_ops += counter.get_total_flops() // 2  # two operations make a multiply-add


# ---- which module calls which operators


class _OperatorCounter(TorchDispatchMode):
    """Counts the FLOPs of the operators for the module whose name is the last of ``names``."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.flops: dict[str, Counter[str]] = defaultdict(Counter)
        self._names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # In inference mode, operators made of others arrive as they are called.
            output = func.decompose(*args, **kwargs)
        if output is not NotImplemented:
            return output
        output = func(*args, **kwargs)
        count = _COUNTERS.get(func._schema.name)
        if count is not None:
            self.flops[self._names[-1]].update(count(args, output))
        return output


@contextmanager
def _naming_the_called_module(model: nn.Module, names: list[str]) -> Iterator[None]:
    """Keeps in ``names`` the dotted names of the modules that are being called, outermost first."""

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: names.append(name)

    def leave(*_: Any) -> None:
        names.pop()

    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _with_children(flops: Mapping[str, Counter[str]]) -> dict[str, Counter[str]]:
    """Adds what each module computes itself to the modules that hold it, by their names."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for name, counts in flops.items():
        parts = name.split(".") if name else []
        for depth in range(len(parts) + 1):
            total[".".join(parts[:depth])].update(counts)
    return total


# ---- what each operator costs, by its arguments and its output


def _convolution(args: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    image, weight, bias, transposed = args[0], args[1], args[2], args[6]
    positions = image if transposed else output
    return {
        "convolution": positions.numel() * prod(weight.shape[1:]),
        "bias": 0 if bias is None else output.numel(),
    }


def _involution(args: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    image, weight = args[:2]
    macs = involution_multiply_adds(image.shape, weight.shape[2:4], weight.shape[4:])
    return {"involution": macs}


def _matrix_product(args: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    return {"matrix product": output.numel() * args[0].shape[-1]}


def _biased_product(args: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    return {"bias": output.numel(), **_matrix_product(args[1:], output)}


def _batch_norm(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> dict[str, int]:
    return {"batch norm": 2 * args[0].numel()}


def _relu(args: tuple[Any, ...], output: Tensor) -> dict[str, int]:
    return {"ReLU": output.numel()}


_COUNTERS: dict[str, Callable[[tuple[Any, ...], Any], dict[str, int]]] = {
    "aten::convolution": _convolution,
    "rednet::involution2d": _involution,
    "aten::mm": _matrix_product,
    "aten::bmm": _matrix_product,
    "aten::mv": _matrix_product,
    "aten::addmm": _biased_product,
    "aten::addmv": _biased_product,
    "aten::baddbmm": _biased_product,
    "aten::native_batch_norm": _batch_norm,
    "aten::_native_batch_norm_legit_no_training": _batch_norm,
    "aten::cudnn_batch_norm": _batch_norm,
    "aten::relu": _relu,
    "aten::relu_": _relu,
}
