"""What the benchmarks in tools/ share: a clock, memory, the machine's rates, peers and results."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import platform
import random
import runpy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rednet.cli.arguments import positive
from rednet.cli.paths import check_output
from rednet.errors import UserError
from rednet.files import write_file
from rednet.version import __version__

Action = Callable[[], object]

MIB = 2**20
# A turn on a CPU lasts this long at least, in seconds: single calls of a millisecond are noise.
SHORTEST_TURN = 0.02
# More than any GPU's cache holds.
FLUSHED_BYTES = 256 * MIB
COPIED_NUMBERS = 2**25
PRODUCT_SIDE = 2048
_CLEAR_REFS = Path("/proc/self/clear_refs")


# ---- the command line


def add_arguments(parser: argparse.ArgumentParser, turns: int) -> None:
    """Adds the arguments that all benchmarks have; ``turns`` is the default of ``--turns``."""
    parser.add_argument(
        "--channels-last", action="store_true", help="tensors in channels_last, not contiguous"
    )
    parser.add_argument(
        "--device", type=torch.device, default="cpu", help="device to time on (%(default)s)"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads; default: PyTorch's choice")
    parser.add_argument(
        "--turns",
        type=positive,
        default=turns,
        help="timed turns of each contender (%(default)s)",
    )
    parser.add_argument("--out", type=_json_file, help="write the results to this .json file too")


def _json_file(text: str) -> Path:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(f"expected a .json file, got {text!r}")
    return Path(text)


def set_up(args: argparse.Namespace) -> None:
    """Applies the arguments of :func:`add_arguments`, and seeds.

    Raises:
        UserError: If the results cannot be written or PyTorch does not find the device.
    """
    if args.out:
        check_output(args.out, "--out")
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"--device {args.device}: PyTorch finds no CUDA device")
        if args.device.index is not None:  # PyTorch refuses to set a device without a number
            torch.cuda.set_device(args.device)


def load_peer(address: str, name: str | None = None) -> tuple[str, Callable[..., Any]]:
    """A user's implementation, and what to call it.

    Args:
        address: ``SOURCE:NAME``; the source is a .py file, which is run, or an importable module.
        name: What is loaded where the address ends with its source.

    Raises:
        UserError: If there is no such source, or nothing of that name in it.
    """
    source, _, given = address.partition(":")
    name = given or name
    if not source or not name:
        raise UserError(f"expected FILE.py:NAME or MODULE:NAME, got {address!r}")
    if source.endswith(".py") and not Path(source).is_file():
        raise UserError(f"there is no file {source}")
    try:
        found = (
            runpy.run_path(source)
            if source.endswith(".py")
            else vars(importlib.import_module(source))
        )
    except ModuleNotFoundError as error:
        raise UserError(f"{source} cannot be imported: {error}") from error
    if name not in found:
        raise UserError(f"{source} defines no {name!r}")
    return f"{Path(source).stem if source.endswith('.py') else source}:{name}", found[name]


# ---- time


class Times(NamedTuple):
    """Milliseconds of a call, over all turns."""

    median: float
    best: float


class Clock:
    """Times actions that take turns, so that a machine that slows down slows all of them.

    On a CPU a turn repeats a short action. On a GPU a turn is one call between two events, after
    the cache was flushed; the flush also gives the CPU time to launch ahead.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            self._flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def interleaved(self, actions: Mapping[str, Action], turns: int) -> dict[str, Times]:
        """The times of each action, after two calls that do not count."""
        calls = {name: self._calls_of_a_turn(action) for name, action in actions.items()}
        samples: dict[str, list[float]] = {name: [] for name in actions}
        # In a new order each turn: what an action leaves in the cache helps or hinders the next.
        shuffled = random.Random(0)
        for _ in range(turns):
            for name in shuffled.sample(list(actions), len(actions)):
                samples[name].append(self._milliseconds(actions[name], calls[name]))
        return {
            name: Times(statistics.median(sample), min(sample)) for name, sample in samples.items()
        }

    def _calls_of_a_turn(self, action: Action) -> int:
        _, once = (self._milliseconds(action, 1) for _ in range(2))
        return 1 if self._device.type == "cuda" else max(1, round(SHORTEST_TURN * 1e3 / once))

    def _milliseconds(self, action: Action, calls: int) -> float:
        if self._device.type == "cuda":
            return self._milliseconds_on_gpu(action)
        began = time.perf_counter()
        for _ in range(calls):
            action()
        return (time.perf_counter() - began) / calls * 1e3

    def _milliseconds_on_gpu(self, action: Action) -> float:
        self._flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream = torch.cuda.current_stream(self._device)
        start.record(stream)
        action()
        end.record(stream)
        end.synchronize()
        return start.elapsed_time(end)


class Rates(NamedTuple):
    """What a machine can do: bytes read or written a second, and multiply-adds a second."""

    bytes: float
    multiply_adds: float

    def least_milliseconds(self, bytes: int, multiply_adds: int) -> float:
        """The least time for these bytes and multiply-adds: that of whichever takes longer."""
        return 1e3 * max(bytes / self.bytes, multiply_adds / self.multiply_adds)


def measure_rates(clock: Clock, device: torch.device, dtype: torch.dtype) -> Rates:
    """The rates of a large copy, and of a large matrix product in numbers of ``dtype``."""
    source = torch.randn(COPIED_NUMBERS, device=device)
    target = torch.empty_like(source)
    factor = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, device=device, dtype=dtype)
    times = clock.interleaved(
        {"copy": lambda: target.copy_(source), "product": lambda: factor @ factor}, 7
    )
    return Rates(
        bytes=2 * source.numel() * source.element_size() / times["copy"].median * 1e3,
        multiply_adds=PRODUCT_SIDE**3 / times["product"].median * 1e3,
    )


# ---- memory


def peak_memory(action: Action, device: torch.device) -> int | None:
    """Bytes that a call needs at most, besides what was there before.

    On a GPU they are those of PyTorch's allocator, on Linux without one those of the resident set,
    elsewhere unknown: None. The action should have run before: it is called once.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if not _CLEAR_REFS.exists():
        return None
    _give_back_freed_memory()
    _CLEAR_REFS.write_text("5")  # sets the peak back to what is resident now
    before = _resident("VmRSS")
    action()
    return max(0, _resident("VmHWM") - before)  # the kernel's counts are a few pages off


def saved_activations(action: Action) -> int:
    """Bytes that a call keeps for its backward passes: every storage once, without parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            # Held, so that no other storage gets its address.
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        action()
    return sum(storage.nbytes() for storage in storages.values())


def _give_back_freed_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


# ---- results


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The device, its threads and the versions of what runs on it."""
    versions = dict(python=platform.python_version(), torch=torch.__version__, rednet=__version__)
    if device.type != "cuda":
        return dict(device=_processor(), threads=torch.get_num_threads(), **versions)
    properties = torch.cuda.get_device_properties(device)
    return dict(
        device=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        multiprocessors=properties.multi_processor_count,
        cuda=torch.version.cuda,
        cupy=_cupy_version(),
        **versions,
    )


def _processor() -> str:
    """The processor's name, with the vector instructions that PyTorch uses."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.processor() or platform.machine())
    return f"{name}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def _cupy_version() -> str | None:
    for package in ("cupy-cuda12x", "cupy-cuda13x", "cupy"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    return None


def in_words(machine: Mapping[str, Any]) -> str:
    """One line for :func:`describe_machine`'s answer."""
    rest = (f"{name} {value}" for name, value in machine.items() if name != "device")
    return ", ".join((machine["device"], *rest))


def table_row(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(*cells: str) -> str:
    """The first two lines of a Markdown table."""
    return f"{table_row(*cells)}\n|{'---|' * len(cells)}"


def in_mib(bytes: float | None) -> str:
    """A number of MiB for a table, a dash where it is unknown."""
    return "-" if bytes is None else f"{bytes / MIB:.0f}"


def write_results(
    path: Path, machine: Mapping[str, Any], args: argparse.Namespace, records: Sequence[Any]
) -> None:
    """Writes machine, arguments and records as JSON."""
    results = dict(machine=machine, arguments=vars(args), records=records)
    write_file(path, (json.dumps(results, indent=1, default=str) + "\n").encode())
