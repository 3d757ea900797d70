"""Time every registered convolution layer against the ``nn.Conv2d`` that it replaces.

The contenders of a case take turns, so that a machine that slows down slows all of them, and the
median of the turns is reported. nn.Conv2d runs in both layouts, and the faster one counts, whatever
--channels-last asks of the layers. The floor is what the layer would take if its multiply-adds ran
at the rate of nn.Conv2d's. A last table holds the ratios to nn.Conv2d alone.

    python tools/benchmarks/benchmark_layers.py
    python tools/benchmarks/benchmark_layers.py --layers SAConv2d --peer SAConv2d=mmcv.ops:SAConv2d
    python tools/benchmarks/benchmark_layers.py --layers SPConv2d --peer SPConv2d=published.py:build
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any, NamedTuple

import torch
from timing import (
    Clock,
    add_arguments,
    describe_machine,
    in_words,
    load_peer,
    set_up,
    table_head,
    table_row,
    write_results,
)
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rednet.cli.arguments import positive
from rednet.cli.command import run
from rednet.errors import UserError
from rednet.layers.base import registered_layers
from rednet.ops import flop_formulas  # noqa: F401  (registers them with FlopCounterMode)

CONVOLUTION = "nn.Conv2d"
_OTHER_LAYOUT = "nn.Conv2d in the other layout"
MODES = ["forward", "train", "frozen"]


class Shape(NamedTuple):
    """The convolution to stand in for and the side of its input."""

    in_channels: int
    out_channels: int
    side: int
    kernel_size: int
    stride: int


class Contender(NamedTuple):
    """Something to time: what builds it, and its own keywords."""

    factory: Callable[..., nn.Module]
    keywords: dict[str, Any]


class Case(NamedTuple):
    """What is timed: ``forward``, or ``train`` for forward and backward.

    ``frozen`` is ``train`` with batch norms in eval mode, as detectors train.
    """

    shape: Shape
    batch: int
    mode: str

    def build(self, contender: Contender) -> nn.Module:
        """The contender of this geometry."""
        module = contender.factory(
            self.shape.in_channels,
            self.shape.out_channels,
            self.shape.kernel_size,
            stride=self.shape.stride,
            padding=self.shape.kernel_size // 2,
            **contender.keywords,
        )
        module.train(self.mode != "forward")
        if self.mode == "frozen":
            for norm in filter(lambda each: isinstance(each, nn.BatchNorm2d), module.modules()):
                norm.eval()
        return module

    def __str__(self) -> str:
        channels, out, side, kernel_size, stride = self.shape
        return f"{channels}-{out} @{side} k{kernel_size} s{stride} b{self.batch} {self.mode}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", help="registered types; default: all of them")
    parser.add_argument(
        "--keywords",
        type=json.loads,
        default={},
        metavar="JSON",
        help='own keywords by layer, such as \'{"SAConv2d": {"use_deform": true}}\'',
    )
    parser.add_argument(
        "--peer",
        action="append",
        type=parse_peer,
        default=[],
        metavar="LAYER=SOURCE:NAME",
        help="another implementation of a layer: SOURCE is a .py file or a module, and NAME in it "
        "takes nn.Conv2d's arguments; may be repeated",
    )
    _add_cases(parser)
    add_arguments(parser, turns=7)
    return parser.parse_args(arguments)


def _add_cases(parser: argparse.ArgumentParser) -> None:
    """The arguments whose values are all combined."""
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=parse_shape,
        default=[
            Shape(64, 64, 56, 3, 1),
            Shape(256, 256, 14, 3, 1),
            Shape(512, 512, 7, 3, 1),
            Shape(128, 128, 56, 3, 2),
        ],
        metavar="IN,OUT,SIDE,K,STRIDE",
        help="convolutions to stand in for: channels, side of the input, kernel size, stride; "
        "default: four of ResNets",
    )
    parser.add_argument(
        "--batches", nargs="+", type=positive, default=[1, 8, 32], help="batch sizes (1 8 32)"
    )
    parser.add_argument(
        "--modes",
        nargs="+",
        choices=MODES,
        default=["forward", "train"],
        help="what is timed: forward alone, forward and backward, the latter with batch norms in "
        "eval mode (forward train)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="of inputs and weights (%(default)s)",
    )


def parse_shape(text: str) -> Shape:
    """Read ``IN,OUT,SIDE,K,STRIDE``."""
    try:
        return Shape(*map(int, text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"expected IN,OUT,SIDE,K,STRIDE, got {text!r}") from error


def parse_peer(text: str) -> tuple[str, str]:
    """Read ``LAYER=SOURCE:NAME``; return the layer and the address."""
    layer, _, address = text.partition("=")
    if not layer or not address:
        raise argparse.ArgumentTypeError(f"expected LAYER=SOURCE:NAME, got {text!r}")
    return layer, address


def turn(module: nn.Module, image: Tensor, mode: str) -> Callable[[], None]:
    """What is timed: a forward pass, or one with a backward pass to the input and the weights."""

    def forward() -> None:
        with torch.no_grad():
            module(image)

    def train() -> None:
        module.zero_grad(set_to_none=True)
        image.grad = None
        module(image).sum().backward()

    image.requires_grad_(mode != "forward")
    return forward if mode == "forward" else train


class _Global(nullcontext[None]):
    """Tells a counter that all operations belong to no module.

    Its own tracker hooks into all modules, and layers with hooks take other paths than those timed.
    """

    parents = frozenset({"Global"})


def multiply_adds(action: Callable[[], None]) -> int:
    """Floating-point operations of the convolutions and products that an action runs."""
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _Global()
    with counter:
        action()
    return counter.get_total_flops()


def _action(
    case: Case, contender: Contender, layout: torch.memory_format, args: argparse.Namespace
) -> Callable[[], None]:
    """A contender, and an image of its own, in one layout."""
    dtype = getattr(torch, args.dtype)
    size = (case.batch, case.shape.in_channels, case.shape.side, case.shape.side)
    image = torch.randn(size, device=args.device, dtype=dtype).to(memory_format=layout)
    module = case.build(contender).to(args.device, dtype).to(memory_format=layout)
    return turn(module, image, case.mode)


def measure(
    case: Case, contenders: dict[str, Contender], args: argparse.Namespace, clock: Clock
) -> dict[str, dict[str, float]]:
    """Time the contenders of one case; the first is nn.Conv2d, in the layout that suits it best."""
    torch.manual_seed(0)
    layouts = [torch.contiguous_format, torch.channels_last]
    layout = layouts[args.channels_last]
    actions = {
        name: _action(case, contender, layout, args) for name, contender in contenders.items()
    }
    other = _action(case, contenders[CONVOLUTION], layouts[not args.channels_last], args)
    times = clock.interleaved({**actions, _OTHER_LAYOUT: other}, args.turns)
    times[CONVOLUTION] = min(times[CONVOLUTION], times.pop(_OTHER_LAYOUT))
    operations = {name: multiply_adds(action) for name, action in actions.items()}
    rate = times[CONVOLUTION].median / operations[CONVOLUTION]
    return {
        name: {
            "milliseconds": times[name].median,
            "best_milliseconds": times[name].best,
            "ratio": times[name].median / times[CONVOLUTION].median,
            "floor": operations[name] / operations[CONVOLUTION],
            "floor_milliseconds": operations[name] * rate,
        }
        for name in actions
    }


def show(case: Case, results: dict[str, dict[str, float]]) -> None:
    """Print a case as rows of a table."""
    for name, result in results.items():
        print(
            table_row(
                case,
                name,
                f"{result['milliseconds']:.2f}",
                f"{result['best_milliseconds']:.2f}",
                f"{result['ratio']:.2f}",
                f"{result['floor']:.2f}",
            ),
            flush=True,
        )


def summary(records: Sequence[dict[str, Any]], layers: Sequence[str]) -> Iterator[str]:
    """Ratios to nn.Conv2d, a row for each layer and shape; those of peers in brackets."""
    results = {tuple(each["case"].values()): each["results"] for each in records}
    shapes = dict.fromkeys(Shape(*case[:-2]) for case in results)
    columns = dict.fromkeys(case[-2:] for case in results)
    heads = (f"{mode}, batch {batch}" for batch, mode in columns)
    yield table_head("layer", "shape", *heads, "floor")
    for layer, shape in product(layers, shapes):
        cases = [results[shape + column] for column in columns]
        yield table_row(
            layer,
            f"{shape.in_channels}-{shape.out_channels} @{shape.side} "
            f"k{shape.kernel_size} s{shape.stride}",
            *(_with_peers(layer, case) for case in cases),
            f"{cases[0][layer]['floor']:.2f}",
        )


def _with_peers(layer: str, results: dict[str, dict[str, float]]) -> str:
    peers = [result for name, result in results.items() if name.startswith(f"{layer} by ")]
    ratios = ", ".join(f"{peer['ratio']:.2f}" for peer in peers)
    return f"{results[layer]['ratio']:.2f}" + (f" ({ratios})" if peers else "")


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all the cases that the command line asks for."""
    args = _parse(arguments)
    set_up(args)
    layers = registered_layers()
    chosen = args.layers or list(layers)
    for name in [*chosen, *args.keywords, *(layer for layer, _ in args.peer)]:
        if name not in layers:
            raise UserError(f"{name!r} is not a registered layer; choose from {', '.join(layers)}")
    contenders = {CONVOLUTION: Contender(nn.Conv2d, {})}
    for name in chosen:
        keywords = args.keywords.get(name, {})
        contenders[name] = Contender(layers[name], keywords)
        for label, factory in (load_peer(address) for layer, address in args.peer if layer == name):
            contenders[f"{name} by {label}"] = Contender(factory, keywords)
    machine, clock = describe_machine(args.device), Clock(args.device)
    print(f"{in_words(machine)}\n")
    print(table_head("case", "contender", "ms", "best ms", "ratio to nn.Conv2d", "floor"))
    records = []
    for shape, batch, mode in product(args.shapes, args.batches, args.modes):
        case = Case(shape, batch, mode)
        results = measure(case, contenders, args, clock)
        show(case, results)
        shown = {**shape._asdict(), "batch": batch, "mode": mode}
        records.append({"case": shown, "results": results})
    print("", *summary(records, chosen), sep="\n")
    if args.out:
        write_results(args.out, machine, args, records)


if __name__ == "__main__":
    sys.exit(run(main))
