r"""Show how the involution operator's time and memory grow with each of its sizes.

    python tools/benchmarks/benchmark_growth.py --picture growth.png --out growth.json

One size varies while the others stay: batch, side of the image, channels, kernel size and, on a
CPU, threads. For each, the table has the slopes of the logarithms over the larger half of the
values, where the fixed cost of a call matters least, beside those of the work: of the floor that
benchmark_involution.py explains and of the tensors' bytes. A slope of 2 means that twice the size
takes four times as long. The picture shows every point, and the work as lines through the last one.
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from involution_cases import DTYPES, Contender, Shape, operands, work_of
from timing import (
    Clock,
    Rates,
    add_arguments,
    describe_machine,
    in_words,
    measure_rates,
    peak_memory,
    set_up,
    table_head,
    table_row,
    write_results,
)

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.cli.paths import check_output
from rednet.errors import UserError
from rednet.files import write_file
from rednet.ops import involution2d
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.flop_formulas import involution_multiply_adds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PASSES = ("forward", "train")
SIZES = {
    "batch_size": (1, 2, 4, 8, 16, 32, 64),
    "side": (32, 64, 128, 256, 512, 1024, 2048),
    "channels": (16, 32, 64, 128, 256, 512, 1024),
    "kernel_size": (3, 5, 7, 9, 11),
    "threads": (1, 2, 4, 8, 16, 32, 64),
}


class Point(NamedTuple):
    """One measurement.

    Attributes:
        value: The size that varies.
        milliseconds: Median time of a call.
        floor_milliseconds: The least time for its work.
        peak_bytes: Memory of a call at its peak, operands included; None where it is unknown.
        tensor_bytes: Operands and results.
    """

    value: int
    milliseconds: float
    floor_milliseconds: float
    peak_bytes: float | None
    tensor_bytes: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every size that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    if args.picture:
        _check_picture(args.picture)
    machine, clock = describe_machine(args.device), Clock(args.device)
    rates = measure_rates(clock, args.device, accumulation_dtype(DTYPES[args.dtype]))
    print(f"{in_words(machine)}, {args.dtype}\n")
    print(table_head("size", "values", "pass", "time", "floor", "memory", "tensors"))
    curves: dict[tuple[str, str], list[Point]] = {}
    for size, what in itertools.product(args.sizes, args.passes):
        points = [measure(size, value, what, args, clock, rates) for value in values(size, args)]
        if points:  # a GPU has no threads to vary
            curves[size, what] = points
            print(_row(size, what, points), flush=True)
    if not curves:
        raise UserError(
            f"no value of {', '.join(args.sizes)} is left: raise --largest or change --sizes"
        )
    if args.picture:
        draw(curves, args.picture)
    if args.out:
        records = [
            {"case": {"size": size, "pass": what}, "points": [point._asdict() for point in points]}
            for (size, what), points in curves.items()
        ]
        write_results(args.out, {**machine, **rates._asdict()}, args, records)


def _check_picture(path: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    check_output(path, "--picture")
    formats = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise UserError(f"--picture {path} must end in one of {', '.join(sorted(formats))}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=SIZES,
        default=list(SIZES),
        help="which sizes vary (all)",
    )
    for name, value in (("batch-size", 1), ("channels", 64), ("side", 128), ("kernel-size", 7)):
        parser.add_argument(
            f"--{name}", type=positive, default=value, help="where it does not vary (%(default)s)"
        )
    parser.add_argument(
        "--largest", type=positive, help="leave out values of the varying size above this"
    )
    parser.add_argument(
        "--group-channels", type=positive, default=16, help="channels of a group (%(default)s)"
    )
    parser.add_argument(
        "--passes", nargs="+", choices=PASSES, default=PASSES, help="what is timed (both)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file too")
    add_arguments(parser, turns=5)
    return parser.parse_args(arguments)


def values(size: str, args: argparse.Namespace) -> Iterator[int]:
    """The values of a size that are asked for and that this machine has."""
    largest = args.largest or math.inf
    if size == "threads":
        largest = min(largest, torch.get_num_threads() if args.device.type == "cpu" else 0)
    return (value for value in SIZES[size] if value <= largest)


def measure(
    size: str, value: int, what: str, args: argparse.Namespace, clock: Clock, rates: Rates
) -> Point:
    """Times a pass with one size changed."""
    changed = argparse.Namespace(**{**vars(args), size: value})
    contender = _operator(changed)
    with torch.no_grad():
        output = contender.operator(contender.input, contender.weight)
    action = contender.action(what, torch.randn_like(output))
    work = work_of(what, contender, output)
    threads = torch.get_num_threads()
    torch.set_num_threads(value if size == "threads" else threads)
    times = clock.interleaved({what: action}, args.turns)[what]
    peak = peak_memory(action, args.device)
    torch.set_num_threads(threads)
    return Point(
        value,
        times.median,
        rates.least_milliseconds(work.moved_bytes, work.multiply_adds),
        None if peak is None else peak + work.operand_bytes,
        work.operand_bytes + work.result_bytes,
    )


def _operator(args: argparse.Namespace) -> Contender:
    shape = Shape(args.channels, args.side, args.kernel_size, 1)
    input, weight, _ = operands(shape, args)
    multiply_adds = involution_multiply_adds(input.shape, weight.shape[2:4], weight.shape[4:])
    involve = partial(involution2d, padding=shape.kernel_size // 2)
    return Contender(involve, input, weight, multiply_adds)


# ---- results


def slope(sizes: Sequence[float], results: Sequence[float]) -> float | None:
    """The slope of the line that fits the logarithms best, over the larger half of the sizes.

    None with a single size, or where a result is zero.
    """
    kept = len(sizes) // 2 + 1
    if len(sizes) < 2 or min(results[-kept:]) <= 0:
        return None
    x, y = ([math.log(number) for number in each[-kept:]] for each in (sizes, results))
    middle_x, middle_y = sum(x) / kept, sum(y) / kept
    covariance = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - middle_x) ** 2 for a in x)


def _row(size: str, what: str, points: Sequence[Point]) -> str:
    sizes = [point.value for point in points]
    columns = (
        [point.milliseconds for point in points],
        [point.floor_milliseconds for point in points],
        [point.peak_bytes or 0 for point in points],
        [point.tensor_bytes for point in points],
    )
    slopes = (slope(sizes, column) for column in columns)
    cells = ("-" if each is None else f"{each:.2f}" for each in slopes)
    return table_row(size, f"{sizes[0]} to {sizes[-1]}", what, *cells)


def draw(curves: dict[tuple[str, str], list[Point]], path: Path) -> None:
    """Draws time and memory over each size, on logarithmic axes."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(size for size, _ in curves))
    figure = Figure(figsize=(3.2 * len(sizes), 5.6), layout="constrained")
    axes: Any = figure.subplots(2, len(sizes), squeeze=False)
    for (size, what), points in curves.items():
        time, memory = axes[:, sizes.index(size)]
        color = f"C{PASSES.index(what)}"
        _draw_curve(time, points, "milliseconds", "floor_milliseconds", what, color)
        _draw_curve(memory, points, "peak_bytes", "tensor_bytes", what, color)
        memory.set_xlabel(size.replace("_", " "))
    axes[0, 0].set_ylabel("time of a call, ms")
    axes[1, 0].set_ylabel("peak memory, bytes")
    axes[0, 0].legend(fontsize="small")
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:].lower(), dpi=110)
    write_file(path, content.getvalue())


def _draw_curve(
    axes: Axes, points: Sequence[Point], result: str, work: str, what: str, color: str
) -> None:
    sizes = [point.value for point in points]
    measured = [getattr(point, result) or math.nan for point in points]
    least = [getattr(point, work) for point in points]
    scale = measured[-1] / least[-1]
    axes.plot(sizes, measured, "o-", color=color, label=what, markersize=4)
    axes.plot(sizes, [scale * each for each in least], ":", color=color, label=f"{what}: the work")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    sys.exit(run(main))
