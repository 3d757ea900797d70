"""Parameters and FLOPs of a model, including the involution operator.

mmengine's ``FlopAnalyzer`` traces the model. One multiply-add is one FLOP. Two totals are given:

- ``macs``: the multiply-adds of convolutions, involutions and matrix products.
- ``published``: what RedNet's published figures count: also one FLOP for each element that a bias
  is added to, two for each element of a batch norm and one for each element of a ReLU.

Neither counts pooling, sums of branches, resizing or RoIAlign. The published figures fit a stem
with a 7 x 7 involution, although the published classifiers have 3 x 3 there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from mmengine.analysis import FlopAnalyzer
from torch import Tensor, nn
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
    analyzer = FlopAnalyzer(model.eval(), inputs).clear_op_handles().set_op_handle(**_COUNTERS)
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with torch.no_grad():
        flops = analyzer.by_module_and_operator()
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


# ---- what each operator costs, by its inputs and outputs in the traced graph


def _shape(value: Any) -> list[int]:
    return value.type().sizes()


def _bias(inputs: list[Any], outputs: list[Any]) -> int:
    return 0 if inputs[2].type().kind() == "NoneType" else prod(_shape(outputs[0]))


def _convolution(inputs: list[Any], outputs: list[Any]) -> Counter:
    weight, transposed = inputs[1], inputs[6].toIValue()
    positions = _shape(inputs[0]) if transposed else _shape(outputs[0])
    macs = prod(positions) * prod(_shape(weight)[1:])
    return Counter({"convolution": macs, "bias": _bias(inputs, outputs)})


def _involution(inputs: list[Any], outputs: list[Any]) -> Counter:
    weight = _shape(inputs[1])
    return Counter(
        {"involution": involution_multiply_adds(_shape(inputs[0]), weight[2:4], weight[4:])}
    )


def _linear(inputs: list[Any], outputs: list[Any]) -> Counter:
    macs = prod(_shape(outputs[0])) * _shape(inputs[0])[-1]
    return Counter({"matrix product": macs, "bias": _bias(inputs, outputs)})


def _addmm(inputs: list[Any], outputs: list[Any]) -> Counter:
    elements = prod(_shape(outputs[0]))
    return Counter({"matrix product": elements * _shape(inputs[1])[-1], "bias": elements})


def _matmul(inputs: list[Any], outputs: list[Any]) -> Counter:
    return Counter({"matrix product": prod(_shape(outputs[0])) * _shape(inputs[0])[-1]})


def _batch_norm(inputs: list[Any], outputs: list[Any]) -> Counter:
    return Counter({"batch norm": 2 * prod(_shape(outputs[0]))})


def _relu(inputs: list[Any], outputs: list[Any]) -> Counter:
    return Counter({"ReLU": prod(_shape(outputs[0]))})


_COUNTERS = {
    "aten::_convolution": _convolution,
    "rednet::involution2d": _involution,
    "aten::linear": _linear,
    "aten::addmm": _addmm,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::batch_norm": _batch_norm,
    "aten::relu": _relu,
    "aten::relu_": _relu,
}
