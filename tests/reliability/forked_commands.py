"""The commands in child processes of one that has imported everything.

A command of ten iterations spends nearly all of its time in imports. A forked child begins with
``main`` instead; from there on it is the process that the command line starts.
"""

from __future__ import annotations

import importlib
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner

from rednet.cli.command import run

ROOT = Path(__file__).resolve().parents[2]
Main = Callable[[Sequence[str] | None], None]
Prepare = Callable[["Progress"], None]


for _library in ("mmpretrain", "mmdet"):
    for _room in ("models", "datasets", "evaluation", "engine", "visualization"):
        importlib.import_module(f"{_library}.{_room}")


class Progress:
    """Two numbers that a child and its parent share: what is done, and how often it was begun."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def set(self, phase: int, count: int) -> None:
        """Stores both."""
        self._memory[:] = struct.pack("qq", phase, count)

    def get(self) -> tuple[int, int]:
        """Reads both."""
        phase, count = struct.unpack("qq", self._memory[:])
        return phase, count


@dataclass
class Child:
    """A running command.

    Attributes:
        number: Its process id, and that of its process group.
        progress: What it shares with this process.
        log: The file of its output.
        begun: When it was started.
    """

    number: int
    progress: Progress
    log: Path
    begun: float

    def kill(self, number: int = signal.SIGKILL, group: bool = False) -> None:
        """Sends a signal, to its data loader's workers too with ``group``."""
        (os.killpg if group else os.kill)(self.number, number)

    def wait(self) -> int:
        """Waits for its end; returns the exit code, or the negative number of a signal."""
        _, status = os.waitpid(self.number, 0)
        return os.waitstatus_to_exitcode(status)

    def end(self) -> int:
        """Waits for its end, then ends workers that have outlived it."""
        code = self.wait()
        with suppress(ProcessLookupError):  # there are none
            os.killpg(self.number, signal.SIGKILL)
        return code

    def errors(self) -> list[str]:
        """The lines with which the command reported errors."""
        return [line for line in self.text().splitlines() if line.startswith("error: ")]

    def text(self) -> str:
        """What the command has printed."""
        return self.log.read_text(errors="replace")


def start(
    main: Main, folder: Path, arguments: Sequence[str], prepare: Prepare | None = None
) -> Child:
    """Starts a command in a folder.

    Args:
        main: The command.
        folder: Where it runs.
        arguments: Its arguments.
        prepare: Called in the child before the command.
    """
    progress, log = Progress(), folder.with_suffix(".log")
    sys.stdout.flush()
    number = os.fork()
    if number:
        return Child(number, progress, log, time.monotonic())
    code = 1
    try:
        os.setsid()
        with open(log, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        sys.argv = ["command", *arguments]
        Runner._log_env = lambda *_: None  # type: ignore[method-assign] # takes seconds
        if prepare is not None:
            prepare(progress)
        code = run(main, list(arguments))
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def differences(first: Any, second: Any, key: str = "") -> list[str]:
    """The keys at which two checkpoints differ, bit by bit; times in their logs do not count."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = {*first, *second} - {"message_hub", "time", "cfg", "experiment_name"}
        return [
            line
            for name in sorted(names, key=str)
            for line in differences(first.get(name), second.get(name), f"{key}.{name}")
        ]
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        if len(first) != len(second):
            return [key]
        pairs = enumerate(zip(first, second, strict=True))
        return [line for index, pair in pairs for line in differences(*pair, f"{key}.{index}")]
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return [] if torch.equal(first, second) else [key]
    return [] if first == second else [key]


def differing(first: Path, second: Path) -> list[str]:
    """The keys at which two checkpoint files differ."""
    if not second.is_file():
        return [f"{second} is missing"]
    states = [torch.load(path, map_location="cpu", weights_only=True) for path in (first, second)]
    return differences(*states)
