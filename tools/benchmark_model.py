"""Time whole models and measure their memory, on random images.

Several configs are timed in turns in one process, so that whatever else the machine does falls on
all of them; the ratio is to the first. A step is inference (with a detector's box selection), with
--train forward, backward and optimizer step. Memory is the peak that one step adds to the model:
of the device's allocator on a GPU, of the resident set on Linux without one.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from rednet.engine.command_line import OptionsAction, run
from rednet.engine.config_options import read_config
from rednet.engine.preflight import check_scope
from rednet.engine.random_batch import random_batch

DEFAULT_SHAPES = {"mmdet": (800, 1280)}
MIB = 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures what the arguments ask for, and prints a table."""
    args = _parse(arguments)
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = get_device()
    configs = [read_config(path, args.cfg_options)[0] for path in args.configs]
    steps = [_step(config, args, device) for config in configs]
    memory = [_peak_memory(step, device) for step in steps]
    times = _time_in_turns(steps, args.repeats, device)
    rows = [
        dict(config=path, ms=1e3 * statistics.median(each), best_ms=1e3 * min(each), mib=peak)
        for path, each, peak in zip(args.configs, times, memory, strict=True)
    ]
    print(_table(rows, args, device))
    if args.out:
        environment = dict(device=device, threads=torch.get_num_threads(), torch=torch.__version__)
        mmengine.dump(dict(**environment, arguments=vars(args), rows=rows), args.out, indent=2)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument("configs", nargs="+", metavar="config", help="config files")
    parser.add_argument("--train", action="store_true", help="time training steps")
    parser.add_argument("--batch-size", type=int, default=1, help="images in a batch (%(default)s)")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images (224 224; for detectors 800 1280)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed steps (%(default)s)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (those of torch)")
    parser.add_argument("--out", metavar="FILE", help="write the results to this .json file too")
    parser.add_argument("--cfg-options", nargs="+", action=OptionsAction, metavar="KEY=VALUE")
    args = parser.parse_args(arguments)
    for name in ("batch_size", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.out and not args.out.endswith(".json"):
        parser.error("--out takes a .json file")
    return args


def _step(config: Config, args: argparse.Namespace, device: str) -> Callable[[], Any]:
    """One step of a model that is ready to run."""
    scope = config.get("default_scope")
    check_scope(scope)
    init_default_scope(scope or "mmengine")
    size = tuple(args.shape or DEFAULT_SHAPES.get(scope or "", (224, 224)))
    model = MODELS.build(config.model).to(device).train(args.train)
    data = random_batch(scope, [size] * args.batch_size)
    if not args.train:
        return lambda: model.test_step(copy.deepcopy(data))
    optimizer = build_optim_wrapper(model, copy.deepcopy(config.optim_wrapper))
    return lambda: model.train_step(copy.deepcopy(data), optimizer)


def _time_in_turns(steps: Sequence[Callable], repeats: int, device: str) -> list[list[float]]:
    """Seconds of every step, one of each model after another."""
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for step, seconds in zip(steps, times, strict=True):
            _synchronize(device)
            start = time.perf_counter()
            step()
            _synchronize(device)
            seconds.append(time.perf_counter() - start)
    return times


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_memory(step: Callable, device: str) -> float | None:
    """MiB that a step adds at most; None where the system does not tell. Two steps warm up."""
    step(), step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if not Path("/proc/self/clear_refs").exists():
        return None
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is resident now
    before = _resident("VmRSS")
    step()
    return max(0, _resident("VmHWM") - before) / MIB  # the kernel's counts are a few pages off


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _table(rows: Sequence[dict], args: argparse.Namespace, device: str) -> str:
    where = f"{device}, {torch.get_num_threads()} threads" if device == "cpu" else device
    what = "training step" if args.train else "inference"
    lines = [
        f"{what}, batch {args.batch_size}, torch {torch.__version__}, {where}\n",
        "| config | ms | best ms | ratio | images/s | MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        name, speed = Path(row["config"]).stem, args.batch_size / row["ms"] * 1e3
        memory = "-" if row["mib"] is None else f"{row['mib']:.0f}"
        ratio = row["ms"] / rows[0]["ms"]
        lines.append(
            f"| {name} | {row['ms']:.1f} | {row['best_ms']:.1f} | {ratio:.2f} | {speed:.2f} "
            f"| {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
