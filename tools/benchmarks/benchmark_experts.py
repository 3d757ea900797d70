r"""Time the forms of the convolution with a mixed kernel for each sample.

What CondConv2d, DynamicConv2d and ODConv2d compute (``rednet/ops/expert_conv``), in every form that
there is, and ``all experts``: a convolution with each expert, whose outputs are mixed. The ratio is
to one plain convolution with the same kernel for all samples.

    python tools/benchmarks/benchmark_experts.py --device cuda --batch-size 64 --dtype float16
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from itertools import product

import torch
import torch.nn.functional as F
from involution_cases import DTYPES, Shape, add_shapes
from timing import (
    Action,
    Clock,
    add_arguments,
    describe_machine,
    in_words,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.ops.expert_conv.forms import (
    convolve,
    convolve_grouped,
    convolve_one_by_one,
    convolve_patches,
)
from rednet.ops.expert_conv.kernels import mix_kernels
from rednet.ops.expert_conv.problem import Window
from rednet.ops.expert_conv.tiled import convolve_in_tiles
from rednet.ops.expert_conv.tiles import Tile

Form = Callable[[Tensor, Tensor, Tensor], Tensor]

PLAIN = "plain convolution"
MODES = ("forward", "train")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shapes(parser, 8, (1, 3), "1 x 1 and 3 x 3 in the four stages of a ResNet")
    parser.add_argument("--experts", type=positive, default=4, help="(%(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="default: both")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    add_arguments(parser, turns=9)
    return parser.parse_args(arguments)


def forms_of(shape: Shape, batch: int) -> dict[str, Form]:
    """Every form as a function of (N, C, H, W), (K, O, C, Kh, Kw) and (N, K)."""
    window = Window(*shape.geometry()[1:])

    def mixed(form: Callable[..., Tensor]) -> Form:
        return lambda input, experts, routing: form(
            input, mix_kernels(experts, routing, None), None, window
        )

    def in_tiles(samples: int) -> Form:
        tile = Tile(samples, shape.channels)
        return lambda input, experts, routing: convolve_in_tiles(
            input, experts, routing, None, None, window, tile, tile
        )

    def patches(input: Tensor, experts: Tensor, routing: Tensor) -> Tensor:
        return convolve_patches(input, experts, mix_kernels(experts, routing, None), None, window)

    def all_experts(input: Tensor, experts: Tensor, routing: Tensor) -> Tensor:
        outputs = F.conv2d(input, experts.flatten(0, 1), None, *window)
        outputs = outputs.unflatten(1, experts.shape[:2])
        return torch.einsum("nkohw,nk->nohw", outputs, routing)

    def plain(input: Tensor, experts: Tensor, routing: Tensor) -> Tensor:
        return F.conv2d(input, experts[0], None, *window)

    return {
        PLAIN: plain,
        "what the operator chooses": mixed(convolve),
        "grouped": mixed(convolve_grouped),
        "one by one": mixed(convolve_one_by_one),
        "patches": patches,
        "all experts": all_experts,
        "in tiles of a quarter": in_tiles(max(1, batch // 4)),
    }


def actions_of(shape: Shape, mode: str, args: argparse.Namespace) -> dict[str, Action]:
    """One call of each form, on the same random numbers."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def draw(*size: int) -> Tensor:
        numbers = torch.randn(size, device=args.device, dtype=DTYPES[args.dtype])
        return numbers.requires_grad_(mode == "train")

    channels, kernel = shape.channels, shape.kernel_size
    image = torch.randn(args.batch_size, channels, shape.side, shape.side, device=args.device)
    image = image.to(DTYPES[args.dtype]).contiguous(memory_format=layout)
    operands = (
        image.requires_grad_(mode == "train"),
        draw(args.experts, channels, channels, kernel, kernel),
        draw(args.batch_size, args.experts),
    )

    def action(name: str, form: Form) -> Action:
        # The plain convolution has no routing to differentiate.
        leaves = operands[:2] if name == PLAIN else operands

        def call() -> object:
            output = form(*operands)
            return output if mode == "forward" else torch.autograd.grad(output.sum(), leaves)

        return call

    return {name: action(name, form) for name, form in forms_of(shape, args.batch_size).items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Times all that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    machine, clock = describe_machine(args.device), Clock(args.device)
    print(f"{in_words(machine)}\n{args.dtype}, batch {args.batch_size}, {args.experts} experts\n")
    print(table_head("case", "form", "ms", f"/ {PLAIN}"))
    records = []
    for shape, mode in product(args.shapes, args.modes):
        times = clock.interleaved(actions_of(shape, mode, args), args.turns)
        case = f"{shape.channels}x{shape.side} K={shape.kernel_size} s={shape.stride} {mode}"
        for form, time in times.items():
            ratio = f"{time.median / times[PLAIN].median:.2f}"
            print(table_row(case, form, f"{time.median:.3f}", ratio), flush=True)
        results = {form: {"milliseconds": time.median} for form, time in times.items()}
        records.append({"case": {**shape._asdict(), "mode": mode}, "results": results})
    if args.out:
        write_results(args.out, machine, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
