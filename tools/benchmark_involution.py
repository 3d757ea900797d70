"""Time the involution operator against its peers, and measure the memory that it takes.

All contenders of a shape take turns in one process, so that a machine that slows down slows all of
them; medians are reported. The floor is what the machine needs at least: each tensor read or
written once at the rate of a copy, or the multiply-adds at the rate of a matrix product, whichever
takes longer. Both rates are measured in the same run.

    python tools/benchmark_involution.py --threads 2
    python tools/benchmark_involution.py --peer path/to/involution_cuda.py --device cuda

A peer's file defines ``involution(input, weight, stride, padding, dilation)`` on tensors of shape
(N, C, H, W) and (N, G, K, K, Ho, Wo); ``--peer FILE:NAME`` calls the function NAME instead.
"""

from __future__ import annotations

import argparse
import json
import platform
import runpy
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import rednet
from rednet.ops import backend, explain_backends, involution2d
from rednet.ops.geometry import Geometry

Operator = Callable[[Tensor, Tensor], Tensor]
Action = Callable[[], object]

CONVOLUTION = "3x3 convolution"
COMPILED = "torch.compile of unfold"
MODES = ("forward", "train")
FLUSHED_BYTES = 256 * 2**20


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


class Contender(NamedTuple):
    """An operator and the weight that it takes."""

    operator: Operator
    weight: Tensor


class Rates(NamedTuple):
    """What the machine can do: bytes and multiply-adds a second."""

    bytes: float
    multiply_adds: float


class Clock:
    """Times actions on a device; on a GPU by events, after its cache was flushed."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        if self.on_gpu:
            self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def milliseconds(self, action: Action) -> float:
        """The time that one call takes."""
        if not self.on_gpu:
            began = time.perf_counter()
            action()
            return (time.perf_counter() - began) * 1e3
        self.flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        action()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def interleaved(self, actions: dict[str, Action], turns: int) -> dict[str, float]:
        """The median of each action's turns, after two turns that do not count."""
        samples: dict[str, list[float]] = {name: [] for name in actions}
        for _ in range(turns + 2):
            for name, action in actions.items():
                samples[name].append(self.milliseconds(action))
        return {name: statistics.median(sample[2:]) for name, sample in samples.items()}


def parse_args() -> argparse.Namespace:
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
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--group-channels", type=int, default=16)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--peer", action="append", default=[], metavar="FILE[:NAME]")
    parser.add_argument("--compile", action="store_true", help=f"also time {COMPILED}")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--dtype", choices=["float64", "float32", "float16", "bfloat16"])
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--threads", type=int, help="CPU threads; default: PyTorch's choice")
    parser.add_argument("--turns", type=int, default=25, help="timed turns of each contender")
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    args = parser.parse_args()
    args.dtype = getattr(torch, args.dtype or "float32")
    return args


def parse_shape(text: str) -> Shape:
    """Read ``CHANNELS,SIDE,K,STRIDE``."""
    try:
        return Shape(*map(int, text.split(",")))
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f"expected CHANNELS,SIDE,K,STRIDE, got {text!r}"
        ) from error


# ---- the contenders


def load_peer(address: str) -> tuple[str, Callable[..., Tensor]]:
    """What to call a user's implementation, and its function.

    Raises:
        SystemExit: If there is no such file or no such function in it.
    """
    path, _, name = address.partition(":")
    name = name or "involution"
    if not Path(path).is_file():
        raise SystemExit(f"--peer: {path} is no file")
    found = runpy.run_path(path)
    if name not in found:
        raise SystemExit(f"--peer: {path} defines no {name!r}")
    return f"{Path(path).stem}:{name}", found[name]


def forced(name: str, geometry: Geometry) -> Operator:
    """The operator by one backend."""

    def operator(input: Tensor, weight: Tensor) -> Tensor:
        with backend(name):
            return involution2d(input, weight, *geometry[1:])

    return operator


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


def contenders_of(shape: Shape, args: argparse.Namespace) -> tuple[Tensor, dict[str, Contender]]:
    """The input, and what is timed on it."""
    torch.manual_seed(0)
    geometry = shape.geometry()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    options = {"device": args.device, "dtype": args.dtype}
    size = geometry.output_size(shape.side, shape.side)
    groups = shape.channels // args.group_channels
    input = torch.randn(args.batch, shape.channels, shape.side, shape.side, **options)
    flat = torch.randn(args.batch, groups * shape.kernel_size**2, *size, **options)
    weight = flat.contiguous(memory_format=layout).unflatten(1, (groups, *geometry.kernel_size))
    convolution = torch.randn(shape.channels, shape.channels, 3, 3, **options)

    def convolve(input: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(input, weight, padding=1, stride=shape.stride)

    reasons = explain_backends(args.device, args.dtype)
    names = [name for name, reason in reasons.items() if reason is None]
    contenders = {name: Contender(forced(name, geometry), weight) for name in names}
    kernel = convolution.contiguous(memory_format=layout)
    contenders[CONVOLUTION] = Contender(convolve, kernel)
    if args.compile:
        contenders[COMPILED] = Contender(torch.compile(unfold_form(geometry)), weight)
    for label, function in args.peers:
        contenders[label] = Contender(
            lambda input, weight, call=function: call(  # type: ignore[misc]
                input, weight, *(numbers[0] for numbers in geometry[1:])
            ),
            weight,
        )
    return input.contiguous(memory_format=layout), contenders


def action_of(contender: Contender, input: Tensor, mode: str) -> Action:
    """One call: forward alone, or forward and both gradients."""
    leaves = [
        tensor.detach().requires_grad_(mode == "train") for tensor in (input, contender.weight)
    ]
    if mode == "forward":
        return lambda: contender.operator(*leaves)
    cotangent = torch.randn_like(contender.operator(*leaves).detach())
    return lambda: torch.autograd.grad(contender.operator(*leaves), leaves, cotangent)


# ---- what the machine can do, and what it must


def measure_rates(args: argparse.Namespace, clock: Clock) -> Rates:
    """The rates of a large copy and of a large matrix product."""
    source = torch.randn(2**25, device=args.device)
    target = torch.empty_like(source)
    factor = torch.randn(2048, 2048, device=args.device, dtype=args.dtype)
    times = clock.interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: factor @ factor}, 7
    )
    return Rates(
        bytes=2 * source.numel() * source.element_size() / times["copy"] * 1e3,
        multiply_adds=factor.shape[0] ** 3 / times["product"] * 1e3,
    )


def floor(input: Tensor, weight: Tensor, shape: Shape, mode: str, rates: Rates) -> float:
    """The least time in milliseconds.

    The backward pass reads input, weight and the output's gradient, and writes two gradients.
    """
    output = input.numel() // shape.stride**2
    numbers = input.numel() + weight.numel() + output
    work = output * shape.kernel_size**2
    if mode == "train":
        numbers += 2 * (input.numel() + weight.numel()) + output
        work *= 3
    seconds = (numbers * input.element_size() / rates.bytes, work / rates.multiply_adds)
    return max(seconds) * 1e3


# ---- memory


def peak_memory(action: Action, device: torch.device) -> int:
    """Bytes that a call needs beside what was there before."""
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_resident(action)


def _peak_resident(action: Action) -> int:
    """The growth of the resident set, watched by a thread; memory is given back before."""
    _trim()
    before, peak, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.0002):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(5):
        action()
    done.set()
    watcher.join()
    return max(peak, _resident()) - before


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _trim() -> None:
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


# ---- the table


def measure(shape: Shape, mode: str, rates: Rates, clock: Clock, args: argparse.Namespace) -> dict:
    """Times and memory of all contenders of a case."""
    input, contenders = contenders_of(shape, args)
    actions = {name: action_of(each, input, mode) for name, each in contenders.items()}
    times = clock.interleaved(actions, args.turns)
    weight = next(iter(contenders.values())).weight
    least = floor(input, weight, shape, mode, rates)
    results = {
        name: {
            "milliseconds": times[name],
            "over_shifted": times[name] / times["shifted"],
            "over_convolution": times[name] / times[CONVOLUTION],
            "share_of_floor": least / times[name],
            "peak_mib": peak_memory(action, args.device) / 2**20,
        }
        for name, action in actions.items()
    }
    output = input.numel() // shape.stride**2
    tensors = 2 * (input.numel() + weight.numel() + output)
    tensors_mib = tensors * input.element_size() / 2**20
    case = {**shape._asdict(), "batch": args.batch, "mode": mode}
    return {"case": case, "floor": least, "tensors_mib": tensors_mib, "results": results}


def show(record: dict) -> None:
    """Print a case as rows of a table."""
    case = record["case"]
    name = f"{case['batch']}x{case['channels']}x{case['side']}x{case['side']}"
    name += f" K={case['kernel_size']} s={case['stride']} {case['mode']}"
    for contender, result in record["results"].items():
        print(
            f"| {name} | {contender} | {result['milliseconds']:.2f} | {result['over_shifted']:.2f} "
            f"| {result['over_convolution']:.2f} | {result['share_of_floor']:.0%} "
            f"| {result['peak_mib']:.0f} |",
            flush=True,
        )


def main() -> None:
    """Time all the cases that the command line asks for."""
    args = parse_args()
    args.peers = [load_peer(address) for address in args.peer]
    if args.threads:
        torch.set_num_threads(args.threads)
    clock = Clock(args.device)
    rates = measure_rates(args, clock)
    print(
        f"copy {rates.bytes / 1e9:.1f} GB/s, matrix product "
        f"{rates.multiply_adds / 1e9:.0f} G multiply-adds/s\n"
    )
    print("| case | contender | ms | / shifted | / convolution | of the floor | peak MiB |")
    print("|---|---|---|---|---|---|---|")
    records = []
    for shape in args.shapes:
        for mode in args.modes:
            records.append(measure(shape, mode, rates, clock, args))
            show(records[-1])
    if args.out:
        machine = {
            "torch": torch.__version__,
            "rednet": rednet.__version__,
            "python": platform.python_version(),
            "device": str(args.device),
            "threads": torch.get_num_threads(),
            "dtype": str(args.dtype),
            "channels_last": args.channels_last,
            **rates._asdict(),
        }
        args.out.write_text(json.dumps({"machine": machine, "records": records}, indent=1) + "\n")


if __name__ == "__main__":
    main()
