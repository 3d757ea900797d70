"""Measures what NonFiniteLossHook adds to a step of the digits demo, in 1 and 2 processes.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/loss_check_cost.py

Steps with and without the hook take turns, so that other load on the machine reaches both.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from rednet.engine import NonFiniteLossHook

ROOT = Path(__file__).resolve().parents[2]
STEPS, WARM_UP = 60, 5


def measure(rank: int, processes: int, meeting: str) -> None:
    """Trains, and prints the medians of the two kinds of steps."""
    torch.set_num_threads(1)
    config = Config.fromfile(ROOT / "configs/demo/rednet26_digits.py")
    init_default_scope("mmpretrain")
    model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor})
    if processes > 1:
        address = f"file://{meeting}"
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=processes)
        model = MMDistributedDataParallel(model)
    batch = _batch(config.train_dataloader.batch_size // processes)
    plain, checked = (build_optim_wrapper(model, config.optim_wrapper) for _ in range(2))
    runner: Any = SimpleNamespace(optim_wrapper=checked, model=model, iter=0)
    NonFiniteLossHook().before_train(runner)
    seconds: dict[str, list[float]] = dict(without=[], with_hook=[])
    for step in range(-2 * WARM_UP, 2 * STEPS):
        kind, wrapper = ("with_hook", checked) if step % 2 else ("without", plain)
        begun = time.perf_counter()
        model.train_step(batch, wrapper)
        if step >= 0:
            seconds[kind].append(time.perf_counter() - begun)
    if rank == 0:
        without, with_hook = (1e3 * statistics.median(seconds[kind]) for kind in seconds)
        added = 100 * (with_hook / without - 1)
        print(f"{processes} processes: {without:.2f} ms, {with_hook:.2f} ms, {added:+.2f} %")


def _batch(size: int) -> dict[str, Any]:
    images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(number % 10) for number in range(size)]
    return dict(inputs=images, data_samples=samples)


def main() -> None:
    """Measures both."""
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(measure, (processes, f"{folder}/meeting"), nprocs=processes)


if __name__ == "__main__":
    sys.exit(main())
