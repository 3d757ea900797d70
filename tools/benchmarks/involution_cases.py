"""What the involution benchmark times: shapes, contenders with their operands, and their work."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import Action
from torch import Tensor

from rednet.cli.arguments import positive
from rednet.errors import UserError
from rednet.ops import backend, involution2d
from rednet.ops.flop_formulas import involution_multiply_adds
from rednet.ops.geometry import Geometry

Operator = Callable[[Tensor, Tensor], Tensor]

CONVOLUTION = "3x3 convolution"
COMPILED = "torch.compile of unfold"
PASSES = ("forward", "grad_input", "grad_weight", "train")
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


class Shape(NamedTuple):
    """The involution to time: its channels, the side of its input, its kernel and stride."""

    channels: int
    side: int
    kernel_size: int
    stride: int

    def geometry(self) -> Geometry:
        """The window, padded as RedNet pads."""
        padding = self.kernel_size // 2
        return Geometry(
            *((number, number) for number in (self.kernel_size, self.stride, padding, 1))
        )


def add_shapes(
    parser: argparse.ArgumentParser,
    batch_size: int,
    kernel_sizes: Sequence[int] = (7,),
    name: str = "the four of RedNet-50",
) -> None:
    """Adds ``--shapes``, by default the four stages of a ResNet, and ``--batch-size``."""
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[Shape(64 * 2**i, 56 // 2**i, each, 1) for i in range(4) for each in kernel_sizes],
        metavar="CHANNELS,SIDE,K,STRIDE",
        help=f"default: {name}",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=batch_size, help="images (%(default)s)"
    )


def parse_shape(text: str) -> Shape:
    """Read ``CHANNELS,SIDE,K,STRIDE``."""
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"expected CHANNELS,SIDE,K,STRIDE, got {text!r}"
        ) from error
    if min(shape) < 1 or shape.kernel_size % 2 == 0:
        raise argparse.ArgumentTypeError(f"expected positive numbers and an odd K, got {text!r}")
    return shape


@dataclass(frozen=True)
class Contender:
    """An operator with its operands.

    Attributes:
        operator: ``operator(input, weight)``.
        input: (N, C, H, W).
        weight: The kernels of all output pixels, or the convolution's kernel.
        multiply_adds: Those of the operator; each gradient takes as many.
        backend: Which backend of the operator is forced, if any.
    """

    operator: Operator
    input: Tensor
    weight: Tensor
    multiply_adds: int
    backend: str | None = None

    def forced(self) -> contextlib.AbstractContextManager:
        """The context to run in. Gradients look for their backend too, when they are computed."""
        return backend(self.backend) if self.backend else contextlib.nullcontext()

    def action(self, what: str, cotangent: Tensor) -> Action:
        """One call of a pass. The gradients alone keep the graph of one forward pass."""
        leaves = [
            tensor.detach().requires_grad_(what in ("train", gradient))
            for tensor, gradient in ((self.input, "grad_input"), (self.weight, "grad_weight"))
        ]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]

        def forward() -> Tensor:
            with self.forced():
                return self.operator(*leaves)

        def train() -> Sequence[Tensor]:
            with self.forced():
                return torch.autograd.grad(self.operator(*leaves), wanted, cotangent)

        if what in ("forward", "train"):
            return forward if what == "forward" else train
        output = forward()

        def gradient() -> Sequence[Tensor]:
            with self.forced():
                return torch.autograd.grad(output, wanted, cotangent, retain_graph=True)

        return gradient


class Work(NamedTuple):
    """What a pass has to do at least.

    Attributes:
        operand_bytes: Tensors that it is given.
        result_bytes: Tensors that it makes.
        moved_bytes: Bytes that it reads and writes.
        multiply_adds: Multiply-adds.
    """

    operand_bytes: int
    result_bytes: int
    moved_bytes: int
    multiply_adds: int


def work_of(what: str, contender: Contender, output: Tensor) -> Work:
    """Counts every tensor once in the forward and once in the backward pass."""
    input, weight = _bytes(contender.input), _bytes(contender.weight)
    result = _bytes(output)
    backward = result + 2 * (input + weight)  # both are read, both have a gradient that is written
    operands, results, moved, operators = {
        "forward": (input + weight, result, input + weight + result, 1),
        "grad_input": (result + weight, input, input + weight + result, 1),
        "grad_weight": (result + input, weight, input + weight + result, 1),
        "train": (
            input + weight + result,
            input + weight + result,
            input + weight + result + backward,
            3,
        ),
    }[what]
    return Work(operands, results, moved, operators * contender.multiply_adds)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def unfold_form(geometry: Geometry) -> Operator:
    """Involution as it is often written, in operations that torch.compile can fuse."""

    def operator(input: Tensor, weight: Tensor) -> Tensor:
        batch, channels = input.shape[:2]
        groups, taps = weight.shape[1], weight.shape[2] * weight.shape[3]
        patches = F.unfold(
            input, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride
        )
        patches = patches.reshape(batch, groups, channels // groups, taps, *weight.shape[4:])
        kernels = weight.reshape(batch, groups, 1, taps, *weight.shape[4:])
        return (patches * kernels).sum(3).reshape(batch, channels, *weight.shape[4:])

    return operator


def contenders_of(
    shape: Shape, args: argparse.Namespace, peers: dict[str, Callable[..., Any]]
) -> dict[str, Contender]:
    """What is timed on a shape; the convolution comes first.

    Raises:
        UserError: If the channels are not a multiple of ``args.group_channels``.
    """
    if shape.channels % args.group_channels:
        raise UserError(
            f"--group-channels {args.group_channels} does not divide the channels of {shape}"
        )
    geometry = shape.geometry()
    input, weight, kernel = operands(shape, args)
    contenders = {CONVOLUTION: _convolution(input, kernel, shape.stride)}

    def add(name: str, operator: Operator, forced: str | None = None) -> None:
        work = involution_multiply_adds(input.shape, weight.shape[2:4], weight.shape[4:])
        contenders[name] = Contender(operator, input, weight, work, forced)

    stride, padding, dilation = (pair[0] for pair in geometry[1:])
    for name in args.backends:
        involve = partial(involution2d, stride=stride, padding=padding, dilation=dilation)
        add(name, involve, name)
    if args.compile:
        add(COMPILED, torch.compile(unfold_form(geometry)))
    for label, function in peers.items():
        add(label, partial(function, stride=stride, padding=padding, dilation=dilation))
    return contenders


def operands(shape: Shape, args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """An input, the kernels of all its output pixels, and a convolution's kernel."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def draw(*size: int) -> Tensor:
        numbers = torch.randn(size, device=args.device, dtype=DTYPES[args.dtype])
        return numbers.contiguous(memory_format=layout)

    groups, geometry = shape.channels // args.group_channels, shape.geometry()
    size = geometry.output_size(shape.side, shape.side)
    weight = draw(args.batch_size, groups * shape.kernel_size**2, *size)
    return (
        draw(args.batch_size, shape.channels, shape.side, shape.side),
        weight.unflatten(1, (groups, *geometry.kernel_size)),
        draw(shape.channels, shape.channels, 3, 3),
    )


def _convolution(input: Tensor, kernel: Tensor, stride: int) -> Contender:
    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(input, weight, padding=1, stride=stride)

    size = Geometry((3, 3), (stride, stride), (1, 1), (1, 1)).output_size(*input.shape[2:])
    return Contender(convolve, input, kernel, len(input) * kernel.numel() * math.prod(size))
