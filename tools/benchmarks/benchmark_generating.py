r"""Time a RedNet's involutions in inference, which generate their weight and apply it.

In two steps a 1 x 1 convolution writes the weight and the operator reads it; a backend that can
(docs/backends.md) does both at once. Each involution of the network that differs in shape is timed
once, on random numbers; the totals count it as often as the network has it. The floors are the
bytes that each way reads and writes at least, at the rate of a copy measured in the same run.

    python tools/benchmarks/benchmark_generating.py --device cuda --batch-size 64 --dtype float16
    python tools/benchmarks/benchmark_generating.py --batch-size 64 --bandwidth 4300

With ``--bandwidth``, in GB/s, nothing is timed: the bytes and the floors are printed. ``--tiles``
times the Triton kernel with other tiles than its own, to choose those: 64x32 is 64 pixels by 32
channels of the reduced map at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from involution_cases import DTYPES
from timing import (
    Action,
    Clock,
    add_arguments,
    describe_machine,
    in_words,
    measure_rates,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor, nn

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.errors import UserError
from rednet.layers import Involution2d
from rednet.models import RedNet
from rednet.ops import backend, explain_backends
from rednet.ops.backends import is_generating
from rednet.ops.dtypes import accumulation_dtype
from rednet.ops.generating import generating_involution2d
from rednet.ops.geometry import Geometry, Pair
from rednet.ops.triton import backend as triton_backend

FUSED = triton_backend.FUSED.name


class Case(NamedTuple):
    """An involution of the network, for one image."""

    channels: int
    image: Pair
    output: Pair
    groups: int
    reduced_channels: int
    geometry: Geometry

    def numbers(self) -> dict[str, int]:
        """How many numbers each tensor of an image has, and the convolution's weight."""
        rows = self.groups * self.geometry.kernel_size[0] * self.geometry.kernel_size[1]
        pixels = self.output[0] * self.output[1]
        return dict(
            input=self.channels * self.image[0] * self.image[1],
            output=self.channels * pixels,
            reduced=self.reduced_channels * pixels,
            weight=rows * pixels,
            matrix=rows * self.reduced_channels,
        )

    def bytes(self, batch: int, itemsize: int, *, steps: int) -> int:
        """What is read and written at least; in two steps the weight is written and read."""
        numbers = self.numbers()
        moved = batch * (numbers["input"] + numbers["output"] + numbers["reduced"])
        moved += numbers["matrix"] + (2 * batch * numbers["weight"] if steps == 2 else 0)
        return itemsize * moved

    def __str__(self) -> str:
        (height, width), (side, _), (stride, _) = self.image, *self.geometry[:2]
        return f"{self.channels}x{height}x{width} K={side} s={stride}"


def cases_of(depth: int, side: int) -> Counter[Case]:
    """The involutions of a RedNet for square images of this side, with how often it has each."""
    cases: Counter[Case] = Counter()

    def count(layer: Any, images: tuple[Tensor], output: Tensor) -> None:
        padding = layer.kernel_padding
        cases[
            Case(
                layer.out_channels,
                (images[0].shape[2], images[0].shape[3]),
                (output.shape[2], output.shape[3]),
                layer.out_channels // layer.group_channels,
                layer.conv1.out_channels,
                Geometry(layer.kernel_size, layer.stride, padding, layer.dilation),
            )
        ] += 1

    with torch.device("meta"), torch.no_grad():
        network: nn.Module = RedNet(depth).eval()
        for module in network.modules():
            if isinstance(module, Involution2d):
                module.register_forward_hook(count)
        network(torch.empty(1, 3, side, side))
    return cases


def actions_of(case: Case, args: argparse.Namespace) -> dict[str, Action]:
    """One call with each backend, on the same random numbers."""
    layout = torch.channels_last if args.channels_last else torch.contiguous_format

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=args.device, dtype=DTYPES[args.dtype])

    def image(channels: int, size: Pair) -> Tensor:
        return draw(args.batch_size, channels, *size).contiguous(memory_format=layout)

    rows = case.numbers()["matrix"] // case.reduced_channels
    operands = (
        image(case.channels, case.image),
        image(case.reduced_channels, case.output),
        draw(rows, case.reduced_channels),
        draw(rows),
    )

    def action(name: str, tile: Pair | None = None) -> Action:
        def call() -> Tensor:
            with backend(name), torch.no_grad(), tiled(tile):
                return generating_involution2d(*operands, *case.geometry)

        return call

    actions = {name: action(name) for name in args.backends}
    for tile in args.tiles:
        actions[f"{FUSED} {tile[0]}x{tile[1]}"] = action(FUSED, tile)
    return actions


@contextmanager
def tiled(tile: Pair | None) -> Iterator[None]:
    """Gives the Triton kernel a tile of so many pixels and reduced channels, while it is open."""
    before = triton_backend.TILE_PIXELS, triton_backend.TILE_REDUCED
    triton_backend.TILE_PIXELS, triton_backend.TILE_REDUCED = tile or before
    try:
        yield
    finally:
        triton_backend.TILE_PIXELS, triton_backend.TILE_REDUCED = before


def parse_tile(text: str) -> Pair:
    """Read ``PIXELSxREDUCED``, powers of two that tensor cores take."""
    try:
        pixels, reduced = map(int, text.split("x"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected PIXELSxREDUCED, got {text!r}") from error
    if min(pixels, reduced) < 16 or pixels & (pixels - 1) or reduced & (reduced - 1):
        raise argparse.ArgumentTypeError(f"expected powers of two from 16 on, got {text!r}")
    return pixels, reduced


def steps_of(contender: str) -> int:
    """In how many steps a backend, whose name comes first, generates and applies."""
    with backend(contender.split()[0]):
        return 1 if is_generating() else 2


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depth", type=int, default=50, help="of the RedNet (%(default)s)")
    parser.add_argument("--side", type=positive, default=224, help="of the images (%(default)s)")
    parser.add_argument("--batch-size", type=positive, default=8, help="images (%(default)s)")
    parser.add_argument("--backends", nargs="+", help="default: all that serve but the reference")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    parser.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="print floors, time nothing"
    )
    parser.add_argument(
        "--tiles",
        nargs="+",
        type=parse_tile,
        default=[],
        metavar="PIXELSxREDUCED",
        help=f"of {FUSED}, besides its own",
    )
    add_arguments(parser, turns=15)
    return parser.parse_args(arguments)


def _backends(args: argparse.Namespace) -> list[str]:
    reasons = explain_backends(args.device, DTYPES[args.dtype])
    for name in (*(args.backends or ()), *((FUSED,) if args.tiles else ())):
        if reasons.get(name, "there is no such backend") is not None:
            raise UserError(f"--backends {name}: {reasons.get(name, 'there is no such backend')}")
    serving = [name for name, reason in reasons.items() if reason is None and name != "reference"]
    return args.backends or serving


def floors_of(cases: Counter[Case], args: argparse.Namespace, rate: float) -> dict[str, Any]:
    """Bytes of the whole network and the least milliseconds for them, by the number of steps."""
    itemsize = DTYPES[args.dtype].itemsize
    floors = {}
    for name, steps in (("2 steps", 2), ("1 step", 1)):
        each = (
            count * case.bytes(args.batch_size, itemsize, steps=steps)
            for case, count in cases.items()
        )
        moved = sum(each)
        floors[name] = dict(bytes=moved, floor_milliseconds=moved / rate * 1e3)
    return floors


def _time(cases: Counter[Case], clock: Clock, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Prints a row for each case and backend, and returns them."""
    print(table_head("involution", "of them", "backend", "steps", "ms", "/ first"))
    records = []
    for case, count in cases.items():
        times = clock.interleaved(actions_of(case, args), args.turns)
        first = times[args.backends[0]].median
        for name, time in times.items():
            ratio = f"{time.median / first:.2f}"
            print(table_row(case, count, name, steps_of(name), f"{time.median:.3f}", ratio))
            records.append(
                dict(case=str(case), count=count, backend=name, milliseconds=time.median)
            )
    return records


def _show_totals(records: Sequence[dict[str, Any]], floors: dict[str, Any]) -> None:
    print(f"\n{table_head('the whole network', 'ms', 'MB')}")
    for way, floor in floors.items():
        milliseconds, moved = floor["floor_milliseconds"], floor["bytes"] / 1e6
        print(table_row(f"floor, {way}", f"{milliseconds:.3f}", f"{moved:,.0f}"))
    for name in dict.fromkeys(each["backend"] for each in records):
        own = (each for each in records if each["backend"] == name)
        total = sum(each["count"] * each["milliseconds"] for each in own)
        print(table_row(name, f"{total:.3f}", ""))


def main(arguments: Sequence[str] | None = None) -> None:
    """Times or counts what the command line asks for."""
    args = _parse(arguments)
    if args.bandwidth:
        cases = cases_of(args.depth, args.side)
        _show_totals([], floors_of(cases, args, args.bandwidth * 1e9))
        return
    set_up(args)
    args.backends = _backends(args)
    cases = cases_of(args.depth, args.side)
    machine, clock = describe_machine(args.device), Clock(args.device)
    rates = measure_rates(clock, args.device, accumulation_dtype(DTYPES[args.dtype]))
    layout = "channels_last" if args.channels_last else "contiguous"
    print(
        f"{in_words(machine)}\nbatch {args.batch_size}, {args.dtype}, {layout}, "
        f"copy {rates.bytes / 1e9:.1f} GB/s\n"
    )
    records, floors = _time(cases, clock, args), floors_of(cases, args, rates.bytes)
    _show_totals(records, floors)
    if args.out:
        write_results(args.out, {**machine, **rates._asdict(), **floors}, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
