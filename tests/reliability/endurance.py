"""Trains 2,000 iterations and draws the memory, files and threads of the process.

OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/endurance.py docs/pictures/endurance.png
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trainings
from forked_commands import Progress, start
from matplotlib.figure import Figure

from rednet.engine.resumable_loops import _SeededIterations
from tools import train

STEPS, INTERVAL = 2000, 10
# Checkpoints, validations, EMA and workers take part; the first epochs fill caches.
OPTIONS = (
    "train_cfg.max_epochs=334",
    "train_cfg.val_interval=20",
    "default_hooks.checkpoint.interval=20",
)
SETTLED = 500


def samples() -> tuple[float, int, int]:
    """Resident memory in MiB, open files and threads of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = len(os.listdir("/proc/self/fd"))
    return int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"])


def watch(path: Path, _: Progress) -> None:
    """Writes a sample at every tenth iteration."""
    begin = _SeededIterations.run_iter

    def run_iter(self: Any, *args: Any) -> None:
        if self.iter % INTERVAL == 0:
            with open(path, "a") as file:
                file.write(json.dumps([self.iter, *samples()]) + "\n")
        begin(self, *args)

    _SeededIterations.run_iter = run_iter  # type: ignore[method-assign]


def draw(table: np.ndarray, path: Path) -> None:
    """Draws the three curves."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    names = ("resident memory, MiB", "open files", "threads")
    for axes, name, values in zip(figure.subplots(3, sharex=True), names, table.T[1:], strict=True):
        axes.plot(table[:, 0], values, color="#1f6f8b")
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylim(0, 1.2 * values.max())
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("iteration")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Trains, draws and prints how much the second half differs from the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    picture = args.picture.absolute()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="rednet-endurance-"))
    config = trainings.write(folder)["RedNet-26 with EMA"]
    (folder / "run").mkdir()
    log = folder / "samples.jsonl"
    arguments = [str(config), "--work-dir", str(folder / "run"), "--cfg-options", *OPTIONS]
    child = start(train.main, folder / "run", arguments, lambda each: watch(log, each))
    if child.end():
        raise SystemExit(child.text())
    table = np.array([json.loads(line) for line in log.read_text().splitlines()])
    draw(table, picture)
    settled = table[table[:, 0] >= SETTLED]
    for name, column in (("memory, MiB", 1), ("files", 2), ("threads", 3)):
        slope = np.polyfit(settled[:, 0], settled[:, column], 1)[0] * 1000
        low, high = settled[:, column].min(), settled[:, column].max()
        print(f"{name}: {low:.1f} to {high:.1f} from iteration {SETTLED} on, {slope:+.2f} per 1000")


if __name__ == "__main__":
    main()
