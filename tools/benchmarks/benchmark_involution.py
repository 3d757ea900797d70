r"""Time the involution operator against its peers, and measure the memory that it takes.

All contenders of a case take turns in one process; medians are reported. A case is a shape and a
pass: forward, either gradient alone, or forward and backward together. The floor is the least time
for it: each tensor read or written once at the rate of a copy, or the multiply-adds at the rate of
a matrix product, whichever takes longer; both rates are measured in the same run. "Of copy" is the
share of the copy's rate at which those bytes move. Memory is the peak of a call, its operands
included, over the size of operands and results.

    python tools/benchmarks/benchmark_involution.py --threads 2
    python tools/benchmarks/benchmark_involution.py --device cuda --batch-size 64 --dtype float16 \
        --channels-last --peer path/to/involution_cuda.py:NAME

A peer is called as ``NAME(input, weight, stride=1, padding=3, dilation=1)``, with tensors of shape
(N, C, H, W) and (N, G, K, K, Ho, Wo); NAME is ``involution`` where it is left out. A peer that
cannot compute a case is reported and left out of it.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timing import (
    Action,
    Clock,
    Rates,
    Times,
    add_arguments,
    describe_machine,
    in_mib,
    in_words,
    load_peer,
    measure_rates,
    peak_memory,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.errors import UserError
from rednet.ops import backend, explain_backends, involution2d
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.geometry import Geometry
from rednet.ops.tracing import allow_repeated_backward

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


@dataclass(frozen=True)
class Contender:
    """An operator with its operands.

    Attributes:
        operator: ``operator(input, weight)``.
        input: (N, C, H, W).
        weight: The kernels of all output pixels, or the convolution's kernel.
        taps: Multiply-adds for each element of the output.
        backend: Which backend of the operator is forced, if any.
    """

    operator: Operator
    input: Tensor
    weight: Tensor
    taps: int
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
    result, products = _bytes(output), output.numel() * contender.taps
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
    return Work(operands, results, moved, operators * products)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[Shape(64 * 2**i, 56 // 2**i, 7, 1) for i in range(4)],
        metavar="CHANNELS,SIDE,K,STRIDE",
        help="default: the four of RedNet-50",
    )
    parser.add_argument("--batch-size", type=positive, default=8, help="images (%(default)s)")
    parser.add_argument(
        "--group-channels",
        type=positive,
        default=16,
        help="channels that share a kernel (%(default)s)",
    )
    parser.add_argument(
        "--passes",
        nargs="+",
        choices=PASSES,
        default=PASSES,
        help="what is timed: forward, either gradient alone, forward and backward (all four)",
    )
    parser.add_argument("--backends", nargs="+", help="of the operator; default: all that serve")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="FILE.py[:NAME]",
        help="another implementation to time, called as said above; may be repeated",
    )
    parser.add_argument("--compile", action="store_true", help=f"also time {COMPILED}")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of all tensors (%(default)s)"
    )
    add_arguments(parser, turns=25)
    return parser.parse_args(arguments)


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


# ---- the contenders


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
    """What is timed on a shape; the convolution comes first."""
    geometry = shape.geometry()
    if shape.channels % args.group_channels:
        raise UserError(
            f"--group-channels {args.group_channels} does not divide the channels of {shape}"
        )
    stride, padding, dilation = (pair[0] for pair in geometry[1:])
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    groups, taps = shape.channels // args.group_channels, shape.kernel_size**2

    def draw(*size: int) -> Tensor:
        numbers = torch.randn(size, device=args.device, dtype=DTYPES[args.dtype])
        return numbers.contiguous(memory_format=layout)

    input = draw(args.batch_size, shape.channels, shape.side, shape.side)
    size = geometry.output_size(shape.side, shape.side)
    weight = draw(args.batch_size, groups * taps, *size).unflatten(
        1, (groups, *geometry.kernel_size)
    )

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(input, weight, padding=1, stride=stride)

    def involve(input: Tensor, weight: Tensor) -> Tensor:
        return involution2d(input, weight, stride, padding, dilation)

    contenders = {
        CONVOLUTION: Contender(
            convolve, input, draw(shape.channels, shape.channels, 3, 3), 9 * shape.channels
        )
    }
    for name in args.backends:
        contenders[name] = Contender(involve, input, weight, taps, backend=name)
    if args.compile:
        compiled = torch.compile(unfold_form(geometry))
        contenders[COMPILED] = Contender(compiled, input, weight, taps)
    for label, function in peers.items():
        contenders[label] = Contender(
            lambda input, weight, call=function: call(  # type: ignore[misc]
                input, weight, stride=stride, padding=padding, dilation=dilation
            ),
            input,
            weight,
            taps,
        )
    return contenders


def backends_of(args: argparse.Namespace) -> list[str]:
    """The backends to time: those asked for, or all that serve the device and the dtype.

    Raises:
        UserError: If one that is asked for does not serve them, or is none.
    """
    reasons = explain_backends(args.device, DTYPES[args.dtype])
    serving = [name for name, reason in reasons.items() if reason is None]
    for name in args.backends or ():
        if name not in serving:
            reason = reasons.get(name, "there is no such backend")
            raise UserError(f"--backends {name}: {reason}; there are {', '.join(serving)}")
    return args.backends or serving


# ---- the table


def actions_of(
    contenders: dict[str, Contender], what: str, peers: Sequence[str]
) -> tuple[dict[str, Action], Tensor]:
    """What is timed in a pass, and the output. A peer that fails says why and is left out."""
    convolution = contenders[CONVOLUTION]
    with torch.no_grad():
        output = convolution.operator(convolution.input, convolution.weight)
    cotangent = torch.randn_like(output)
    actions = {}
    for name, contender in contenders.items():
        try:
            actions[name] = contender.action(what, cotangent)
            actions[name]()
        except Exception as error:  # a peer is code of the user's
            if name not in peers:
                raise
            actions.pop(name, None)
            print(f"{name} cannot compute {what}: {error}", file=sys.stderr)
    return actions, output


def result_of(
    times: Times, peak: int | None, work: Work, convolution: Times, rates: Rates
) -> dict[str, float | None]:
    """What is reported of a contender in a pass."""
    needed = work.operand_bytes + work.result_bytes
    least = rates.least_milliseconds(work.moved_bytes, work.multiply_adds)
    return {
        "milliseconds": times.median,
        "best_milliseconds": times.best,
        "over_convolution": times.median / convolution.median,
        "floor_milliseconds": least,
        "share_of_floor": least / times.median,
        "share_of_copy": work.moved_bytes / rates.bytes / times.median * 1e3,
        "peak_bytes": None if peak is None else peak + work.operand_bytes,
        "peak_over_tensors": None if peak is None else (peak + work.operand_bytes) / needed,
    }


def show(case: str, results: dict[str, dict[str, float | None]]) -> None:
    """Print a case as rows of a table."""
    for name, result in results.items():
        relative = result["peak_over_tensors"]
        print(
            table_row(
                case,
                name,
                f"{result['milliseconds']:.3f}",
                f"{result['over_convolution']:.2f}",
                f"{result['share_of_floor']:.0%}",
                f"{result['share_of_copy']:.0%}",
                in_mib(result["peak_bytes"]),
                "-" if relative is None else f"{relative:.2f}",
            ),
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all the cases that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    args.backends = backends_of(args)
    allow_repeated_backward()
    peers = dict(load_peer(address, "involution") for address in args.peer)
    machine, clock = describe_machine(args.device), Clock(args.device)
    rates = measure_rates(clock, args.device, accumulation_dtype(DTYPES[args.dtype]))
    print(
        f"{in_words(machine)}\n"
        f"{args.dtype}, {'channels_last' if args.channels_last else 'contiguous'}, "
        f"copy {rates.bytes / 1e9:.1f} GB/s, "
        f"matrix product {rates.multiply_adds / 1e9:.0f} G multiply-adds/s\n"
    )
    columns = ("case", "contender", "ms", "/ convolution", "of floor", "of copy", "peak MiB")
    print(table_head(*columns, "/ tensors"))
    records = []
    for shape in args.shapes:
        contenders = contenders_of(shape, args, peers)
        for what in args.passes:
            actions, output = actions_of(contenders, what, list(peers))
            times = clock.interleaved(actions, args.turns)
            results = {
                name: result_of(
                    times[name],
                    peak_memory(action, args.device),
                    work_of(what, contenders[name], output),
                    times[CONVOLUTION],
                    rates,
                )
                for name, action in actions.items()
            }
            size = "x".join(map(str, contenders[CONVOLUTION].input.shape))
            show(f"{size} K={shape.kernel_size} s={shape.stride} {what}", results)
            records.append({"case": {**shape._asdict(), "pass": what}, "results": results})
    if args.out:
        write_results(args.out, {**machine, **rates._asdict()}, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
