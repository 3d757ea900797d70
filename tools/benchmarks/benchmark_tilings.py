r"""Time every tiling that the CUDA backend may choose, to see what its choice costs.

``rednet/ops/cuda/plan.py`` cuts a call into tiles by an estimate. Here all candidates of a call
take turns on the GPU. Printed are the chosen one, the fastest one, and how well the estimate ranks
them all: 1 where it orders them as the clock does, 0 where it tells nothing. ``--out`` keeps every
candidate with its estimate and its time, to fit the estimate to.

    python tools/benchmarks/benchmark_tilings.py --device cuda --batch-size 64 --out tilings.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from involution_cases import DTYPES, PASSES, Shape, add_shapes
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

from rednet.cli.command import run
from rednet.errors import UserError
from rednet.ops.cuda import compiler
from rednet.ops.cuda.plan import WIDEST_ACCESS, Tiling, candidates
from rednet.ops.cuda.problem import OPERATIONS, Call

GROUP_CHANNELS = 16


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_shapes(parser, batch_size=64)
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES[:3], default=OPERATIONS, help="default: all"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    add_arguments(parser, turns=9)
    return parser.parse_args(arguments)


def call_of(shape: Shape, operation: str, args: argparse.Namespace) -> Call:
    """A call of the operator, as its tensors would make it.

    Raises:
        UserError: If the channels are not a multiple of those of a group.
    """
    if shape.channels % GROUP_CHANNELS:
        raise UserError(f"the channels of {shape} are not a multiple of {GROUP_CHANNELS}")
    geometry = shape.geometry()
    return Call(
        operation=operation,
        dtype=DTYPES[args.dtype],
        channels_last=args.channels_last,
        batch=args.batch_size,
        channels=shape.channels,
        groups=shape.channels // GROUP_CHANNELS,
        image=(shape.side, shape.side),
        output=geometry.output_size(shape.side, shape.side),
        geometry=geometry,
        alignment=WIDEST_ACCESS,
    )


def tensors_of(call: Call, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel reads and fills, in the order of its arguments.

    The kernels see nothing but addresses, so the memory format is none of the tensors' concern.
    """

    def draw(channels: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(call.batch, channels, *size, device=device).to(call.dtype)

    image, output = draw(call.channels, call.image), draw(call.channels, call.output)
    weight = draw(call.groups * call.taps, call.output)
    return {
        "forward": (image, weight, output),
        "grad_input": (output, weight, image),
        "grad_weight": (output, image, weight),
    }[call.operation]


def actions_of(call: Call, tilings: Sequence[Tiling], device: torch.device) -> dict[str, Action]:
    """A launch of each tiling."""
    kernel = compiler.compile_with_cupy(call.specialization(), device)
    tensors = tensors_of(call, device)
    first, second, result = (np.uint64(tensor.data_ptr()) for tensor in tensors)

    def action(tiling: Tiling) -> Action:
        launch = tiling.launch()

        def launch_kernel() -> tuple[Tensor, ...]:
            kernel(launch, (first, second, result, launch.problem), device)
            return tensors  # which the addresses need alive

        return launch_kernel

    return {name_of(tiling): action(tiling) for tiling in tilings}


def name_of(tiling: Tiling) -> str:
    """The tiling in short."""
    return f"{tiling.height} x {tiling.width} x {tiling.slices}"


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, of two lists without many equal numbers; 1 for a single pair."""
    left, right = (np.argsort(np.argsort(numbers)) for numbers in (one, other))
    return float(np.corrcoef(left, right)[0, 1]) if len(one) > 1 else 1.0


def record_of(call: Call, shape: Shape, clock: Clock, args: argparse.Namespace) -> dict[str, Any]:
    """All tilings of a call with their estimates and times, the chosen one first."""
    tilings = sorted(candidates(call), key=Tiling.cost)
    times = clock.interleaved(actions_of(call, tilings, args.device), args.turns)
    rows = [
        dict(tiling=name_of(each), cost=each.cost(), milliseconds=times[name_of(each)].median)
        for each in tilings
    ]
    return dict(case=dict(shape._asdict(), operation=call.operation), tilings=rows)


def _show(record: dict[str, Any]) -> None:
    case, rows = record["case"], record["tilings"]
    chosen, best = rows[0], min(rows, key=lambda row: row["milliseconds"])
    order = rank_correlation([row["cost"] for row in rows], [row["milliseconds"] for row in rows])
    print(
        table_row(
            f"{case['channels']}x{case['side']} K={case['kernel_size']} {case['operation']}",
            *(f"{each['tiling']}: {each['milliseconds']:.3f}" for each in (chosen, best)),
            f"{chosen['milliseconds'] / best['milliseconds']:.2f}",
            f"{order:.2f}",
            len(rows),
        ),
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Times the tilings of all calls that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    machine, clock = describe_machine(args.device), Clock(args.device)
    print(f"{in_words(machine)}\n{args.dtype}, batch {args.batch_size}; ms by tiling\n")
    print(table_head("case", "chosen", "fastest", "ratio", "ranking", "tilings"))
    records = []
    for shape, operation in product(args.shapes, args.passes):
        call = call_of(shape, operation, args)
        records.append(record_of(call, shape, clock, args))
        _show(records[-1])
    if args.out:
        write_results(args.out, machine, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
