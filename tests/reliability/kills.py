"""Kills trainings at random moments, resumes them and compares them with the undisturbed ones.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/reliability/kills.py --kills 100

A moment is a part of the run (loading, an iteration, the writing of a checkpoint or of
``last_checkpoint``), chosen evenly, and a random place in it: a time in the first two; in the
others a number of bytes, or before or after a system call.
"""

from __future__ import annotations

import argparse
import builtins
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import trainings
from forked_commands import Child, Progress, differing, start

from rednet import files
from rednet.checkpoint.writing import LAST_CHECKPOINT
from rednet.engine.resumable_loops import _SeededIterations
from tools import train

PHASES = ("loading", "iteration", "checkpoint", "last_checkpoint")
LOADING, ITERATION, CHECKPOINT, LAST = range(4)
PLACES = ("bytes", "fsync", "chmod", "replace", "replaced")


def watch(progress: Progress) -> None:
    """Lets a training report its iterations."""
    begin = _SeededIterations.run_iter

    def run_iter(self: Any, *args: Any) -> None:
        progress.set(ITERATION, self.iter)
        begin(self, *args)

    _SeededIterations.run_iter = run_iter  # type: ignore[method-assign]


class Trap:
    """Kills the process in the writing of a file.

    Args:
        phase: Which files count.
        skipped: Such files that are written before.
        place: One of ``PLACES``.
        share: For ``bytes``, the share of the file that is written.
    """

    def __init__(self, phase: int, skipped: int, place: str, share: float) -> None:
        self.phase, self.left, self.place, self.share = phase, skipped, place, share

    def __call__(self, progress: Progress) -> None:
        """Sets the trap in the process of a command."""
        watch(progress)
        write = files._write_aside_and_rename

        def trapped(target: Path, content: bytes) -> None:
            if self._counts(target):
                self.left -= 1
                if self.left < 0:
                    progress.set(self.phase, 0)
                    self._arm()
            write(target, content)

        files._write_aside_and_rename = trapped

    def _counts(self, target: Path) -> bool:
        return (target.name == LAST_CHECKPOINT) == (self.phase == LAST)

    def _arm(self) -> None:
        if self.place == "bytes":
            files.open = self._open  # type: ignore[attr-defined]
        elif self.place == "replaced":
            files._sync_directory = _die
        else:
            setattr(os, self.place, _die)

    def _open(self, path: Any, mode: str) -> Any:
        if mode != "wb":  # it is only locked
            return builtins.open(path, mode)
        return _TornFile(builtins.open(path, mode), self.share)


class _TornFile:
    """A file that is written in part."""

    def __init__(self, file: Any, share: float) -> None:
        self.file, self.share = file, share

    def __enter__(self) -> _TornFile:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        """Writes the first part and dies."""
        self.file.write(content[: int(len(content) * self.share)])
        self.file.flush()
        _die()


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_once(
    config: Path, work_dir: Path, phase: int, iterations: int, seconds: dict[str, float]
) -> bool:
    """Starts or resumes a training and kills it; returns whether it lived up to that moment."""
    arguments = [str(config), "--work-dir", str(work_dir), "--resume"]
    if phase in (CHECKPOINT, LAST):
        trap = Trap(phase, random.randrange(2), random.choice(PLACES), random.random())
        return start(train.main, work_dir.parent, arguments, trap).end() == -signal.SIGKILL
    child = start(train.main, work_dir.parent, arguments, watch)
    if phase == LOADING:
        time.sleep(random.uniform(0, seconds["loading"]))
    else:
        _wait_for_iteration(child, random.randrange(iterations))
        time.sleep(random.uniform(0, seconds["iteration"]))
    child.kill()
    return child.end() == -signal.SIGKILL


def _wait_for_iteration(child: Child, iteration: int) -> None:
    """Waits until a training is at an iteration, or beyond it, or ends."""
    while True:
        phase, count = child.progress.get()
        if phase == ITERATION and count >= iteration:
            return
        if os.waitid(os.P_PID, child.number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)


def measure(config: Path, folder: Path) -> tuple[Path, int, dict[str, float]]:
    """Trains undisturbed; returns the last checkpoint, the iterations and how long parts take."""
    folder.mkdir()
    child = start(train.main, folder, [str(config), "--work-dir", str(folder / "run")], watch)
    _wait_for_iteration(child, 0)
    loading = time.monotonic() - child.begun
    if child.end():
        raise SystemExit(child.text())
    iterations = child.progress.get()[1] + 1
    iteration = (time.monotonic() - child.begun - loading) / iterations
    seconds = dict(loading=loading, iteration=iteration)
    return folder / "run" / f"epoch_{trainings.EPOCHS}.pth", iterations, seconds


class Kind:
    """A kind of training, and what has been done to it."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.expected, self.iterations, self.seconds = measure(config, folder / "whole")
        self.kills: Counter[str] = Counter()
        self.runs = self.same = 0

    def kill_and_resume(self, times: int) -> None:
        """Kills a run several times, lets it end and compares it."""
        place = self.folder / f"killed_{self.runs}"
        place.mkdir()
        for _ in range(times):
            phase = random.randrange(len(PHASES))
            if kill_once(self.config, place / "run", phase, self.iterations, self.seconds):
                self.kills[PHASES[phase]] += 1
        arguments = [str(self.config), "--work-dir", str(place / "run"), "--resume"]
        code = start(train.main, place, arguments).end()
        problems = [f"exit code {code}"] if code else []
        problems += differing(self.expected, place / "run" / self.expected.name)
        problems += [f"a part of a file: {path}" for path in place.rglob("*.rednet-part")]
        self.runs += 1
        self.same += not problems
        if problems:
            print(f"{place}: {problems[:3]}", flush=True)
        else:
            shutil.rmtree(place)


def main() -> None:
    """Prints a table: kind, kills by part, and how many runs ended as the undisturbed one.

    A run does so only if it leaves no part of a file either.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--each", type=int, default=3, help="kills of a run before it may end")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="rednet-kills-"))
    kinds = {}
    for number, (name, config) in enumerate(trainings.write(folder).items()):
        (folder / str(number)).mkdir()
        kinds[name] = Kind(config, folder / str(number))
    number = 0
    while sum(kind.kills.total() for kind in kinds.values()) < args.kills:
        list(kinds.values())[number % len(kinds)].kill_and_resume(args.each)
        number += 1
    print(f"| training | {' | '.join(PHASES)} | runs | bit for bit |\n|{'---|' * 7}")
    for name, kind in kinds.items():
        columns = " | ".join(str(kind.kills[phase]) for phase in PHASES)
        print(f"| {name} | {columns} | {kind.runs} | {kind.same} |")


if __name__ == "__main__":
    main()
